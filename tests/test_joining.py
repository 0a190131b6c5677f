"""Joining, renewing and leaving, straight-lined: the same words as by the general path."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc._memory import table
from asgi_ipc._shm import layout as L
from asgi_ipc._store import groups_fast, membership
from asgi_ipc._store.membership import GroupStore
from asgi_ipc.exceptions import ChannelFull, SegmentCorrupt
from asgi_ipc.names import home_of

from .twins import Twin

if TYPE_CHECKING:
    from tests.conftest import Clock

SECOND_NS = 10**9
DAY_NS = 86_400 * SECOND_NS
GROUPS = ("g", "h")
CHANNELS = [f"{home}!{'x' * (number % 40)}.{number}" for home in "ab" for number in range(200)]


class General(GroupStore):
    """A store that does nothing the short way."""

    def _add_straight(self, *arguments: Any) -> bool:
        return False

    def _discard_straight(self, *arguments: Any) -> bool:
        return False


class Site(Twin):
    """A groups segment."""

    def __init__(self, name: str, size: int, store_class: type[GroupStore]) -> None:
        super().__init__(name, L.KIND_GROUPS, size)
        self.stores = [store_class(segment) for segment in self.segments]

    def stock(self, channel: str) -> None:
        """Have memory in stock for a member."""
        heap = self.stores[0].groups.heap
        size = self.stores[0].groups.member_bytes(channel)
        self.segments[0].transact(heap.stock, size, L.EXTENT_MEMBER)


MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(prefix: str) -> Iterator[MakeSite]:
    made: list[Site] = []

    def make(store_class: type[GroupStore] = GroupStore, size: int = 256 << 10) -> Site:
        made.append(Site(f"/{prefix}-groups{len(made)}", size, store_class))
        return made[-1]

    yield make
    for twin in made:
        twin.close()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what was done the short way, and what was declined."""
    counts: Counter[str] = Counter()
    for way in ("join", "renew", "leave"):
        short_way = getattr(membership, way)

        def counted(*arguments: Any, way: str = way, short_way: Any = short_way) -> Any:
            result = short_way(*arguments)
            counts[way if result and result != (0, 0) else f"no {way}"] += 1
            return result

        monkeypatch.setattr(membership, way, counted)
    return counts


def add(store: GroupStore, group: str, channel: str, expiry_ns: int = DAY_NS) -> bool:
    try:
        store.add(group, home_of(channel), channel, expiry_ns)
    except ChannelFull:
        return False
    return True


@pytest.mark.parametrize("chain_limit", [64, 1])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_write_the_same_words(
    make_site: MakeSite,
    clock: Clock,
    ways: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    chain_limit: int,
) -> None:
    """Whatever happens in whatever order, memory is the same, and so is every answer."""
    monkeypatch.setattr(groups_fast, "_CHAIN_LIMIT", chain_limit)
    twins = make_site(), make_site(General)
    dice = random.Random(seed)
    for step in range(1500):
        who = int(dice.random() < 0.02)
        group, channel = dice.choice(GROUPS), dice.choice(CHANNELS)
        home = home_of(channel)
        what = dice.random()
        if what < 0.6:
            if channel in twins[0].stores[0].channels(group):
                for twin in twins:  # only the general path stocks for a renewal as well
                    twin.stock(channel)
            expiry_ns = dice.choice((DAY_NS, DAY_NS, 60 * SECOND_NS))
            done = [add(twin.stores[who], group, channel, expiry_ns) for twin in twins]
            assert done[0] == done[1]
        elif what < 0.95:
            tombstone_ns = dice.choice((0, 0, 5 * SECOND_NS))
            for twin in twins:
                twin.stores[who].discard(group, home, channel, tombstone_ns)
        elif what < 0.96:
            clock.advance(dice.choice((1, 10, 100)))
        elif what < 0.965:
            for twin in twins:
                store = twin.stores[who]
                store.drop_homes({home}, store.version())
        elif what < 0.97:
            # More of them than a quick list holds: the others are merged.
            for name in CHANNELS:
                for twin in twins:
                    twin.stores[who].discard(group, home_of(name), name, 0)
        elif what < 0.972:
            for twin in twins:
                twin.stores[who].flush()
        else:
            version = twins[0].segments[0].words[L.SEQUENCE] - dice.randint(0, 5)
            for store, other in zip(twins[0].stores, twins[1].stores, strict=True):
                at = store.members_at(group, home, version)
                assert sorted(at) == sorted(other.members_at(group, home, version))
                assert store.snapshot(group) == other.snapshot(group)
        assert twins[0].content() == twins[1].content(), f"after step {step}"
    assert not twins[0].problems()
    assert ways["join"] > 200 and ways["renew"] > 20 and ways["leave"] > 50, ways


@pytest.mark.usefixtures("clock")
def test_members_that_leave_by_the_hundred_are_merged(
    make_site: MakeSite, ways: Counter[str]
) -> None:
    """A quick list that is full declines, and the general path leaves the same words."""
    twins = make_site(size=1 << 20), make_site(General, size=1 << 20)
    names = [f"a!{number:03}" for number in range(300)]
    for twin in twins:
        for name in names:
            add(twin.stores[0], "g", name)
        for name in names:
            twin.stores[0].discard("g", "a!", name, 0)
    assert twins[0].content() == twins[1].content()
    assert ways["leave"] >= 250 and ways["no leave"] >= 30


def test_an_interrupted_change_is_read_again(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed when a signal handler raised is not committed a second time."""
    twin = make_site()
    store = twin.stores[0]
    add(store, "g", "a!first")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(membership._KnownHome, "note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(store, "g", "a!x")
    assert sorted(store.channels("g")) == ["a!first", "a!x"]
    add(store, "g", "a!x")
    assert sorted(store.channels("g")) == ["a!first", "a!x"]
    version = store.snapshot("g").version
    assert sorted(store.members_at("g", "a!", version)) == ["a!first", "a!x"]
    assert not twin.problems()


def test_an_interrupted_renewal_that_is_shorter_ends_in_time(
    make_site: MakeSite, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that raised right after the commit does not make it outlive itself."""
    twin = make_site()
    store = twin.stores[0]
    for channel in ("a!first", "a!x"):
        add(store, "g", channel)
    version = store.snapshot("g").version
    assert len(store.members_at("g", "a!", version)) == 2
    renew = groups_fast.renew

    def interrupted(*arguments: Any) -> None:
        assert renew(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(membership, "renew", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(store, "g", "a!x", 60 * SECOND_NS)
    clock.advance(61)
    assert store.members_at("g", "a!", version) == ["a!first"]


def test_a_renewal_counts_from_now(make_site: MakeSite, clock: Clock) -> None:
    """Also a shorter one; a membership that is over at this very moment begins anew."""
    store = make_site().stores[0]
    add(store, "g", "a!first")
    add(store, "g", "a!x")
    version = store.snapshot("g").version
    assert sorted(store.members_at("g", "a!", version)) == ["a!first", "a!x"]
    add(store, "g", "a!x", 10 * SECOND_NS)
    assert store.snapshot("g").version == version
    clock.advance(9)
    assert sorted(store.members_at("g", "a!", version)) == ["a!first", "a!x"]
    clock.advance(1)
    assert store.members_at("g", "a!", version) == ["a!first"]
    add(store, "g", "a!x")
    assert store.snapshot("g").version == version + 1
    assert store.members_at("g", "a!", version) == ["a!first"]
    assert sorted(store.members_at("g", "a!", version + 1)) == ["a!first", "a!x"]


@pytest.mark.parametrize("broken", ["stock", "first"])
def test_a_join_does_not_write_over_damage(make_site: MakeSite, broken: str) -> None:
    """Numbers that cannot be are left to the general path, which says so."""
    twin = make_site()
    store, words = twin.stores[0], twin.segments[0].words
    add(store, "g", "a!0")
    twin.stock("a!1")
    if broken == "stock":
        quick = L.QUICK_FOR[(store.groups.member_bytes("a!1") + 31) >> 5]
        extent = words[quick] & L.OFFSET_MASK
        words[quick] += 1
        words[extent + 1] = words[extent]  # looks like a member's
    else:
        words[store._known_homes["g", "a!"].record + L.H_FIRST] += 1
    with pytest.raises(SegmentCorrupt):
        add(store, "g", "a!1")


@pytest.mark.parametrize("leads_to", ["no record", "itself"])
def test_a_leave_does_not_write_over_damage(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, leads_to: str
) -> None:
    """The same for a hash chain that lacks the member."""
    monkeypatch.setattr(table, "_CHAIN_LIMIT", 1000)
    twin = make_site()
    store, words = twin.stores[0], twin.segments[0].words
    for number in range(3):
        add(store, "g", f"a!{number}")
    known = store._known_homes["g", "a!"]
    member = known.members["a!0"].record
    chains = twin.segments[0].heap_start - L.BUCKETS
    bucket = L.BUCKETS + (words[member + L.KEY] >> 32 & (chains - 1))
    if leads_to == "itself":
        words[bucket] = words[known.record + L.HASH_NEXT] = known.record
    else:
        words[bucket] = known.record + 2  # and from there to the member
        words[known.record + 2 + L.HASH_NEXT] = member
    with pytest.raises(SegmentCorrupt):
        store.discard("g", "a!", "a!0", 0)
