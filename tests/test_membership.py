"""The groups segment as operations: joining, leaving, expiring, and what each process keeps."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._operator.check import check_groups
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Plan, Segment
from asgi_ipc._store.membership import GroupStore
from asgi_ipc.exceptions import ChannelFull
from asgi_ipc.names import home_of

if TYPE_CHECKING:
    from tests.conftest import Clock

DAY_NS = 86_400 * 10**9
SECOND_NS = 10**9


class Groups:
    """A group store with short ways to ask it."""

    def __init__(self, name: str, size: int) -> None:
        self.segment = Segment(name, L.KIND_GROUPS, size, mode=0o600, lock_timeout=10.0)
        self.store = GroupStore(self.segment)

    def add(self, group: str, channel: str, expiry_ns: int = DAY_NS) -> None:
        """Add with a test's defaults."""
        self.store.add(group, home_of(channel), channel, expiry_ns)

    def discard(self, group: str, channel: str, tombstone_ns: int = 0) -> None:
        """Discard with a test's defaults."""
        self.store.discard(group, home_of(channel), channel, tombstone_ns)

    def members(self, group: str) -> list[str]:
        """Return the members, sorted."""
        return sorted(self.store.channels(group))

    def targets(self, group: str) -> tuple[dict[str, int], list[str]]:
        """Return the homes and channels a message would go to."""
        snapshot = self.store.snapshot(group)
        return dict(snapshot.homes), sorted(snapshot.channels)


MakeGroups = Callable[..., Groups]


@pytest.fixture
def make_groups(prefix: str) -> Iterator[MakeGroups]:
    made: list[Groups] = []

    def make(size: int = 2 << 20) -> Groups:
        made.append(Groups(f"/{prefix}-groups", size))
        return made[-1]

    yield make
    problems = [
        problem
        for groups in made[:1]
        for problem in groups.segment.transact(check_groups, groups.segment)
    ]
    for groups in made:
        groups.segment.close()
    assert not problems


@pytest.fixture
def groups(make_groups: MakeGroups) -> Groups:
    return make_groups()


def test_members_are_those_that_joined_and_did_not_leave(groups: Groups) -> None:
    """Adding twice is adding once; discarding a stranger is nothing."""
    for channel in ("c", "a!x", "a!y", "b!x", "c"):
        groups.add("g", channel)
    groups.discard("g", "a!y")
    groups.discard("g", "nobody")
    groups.discard("other", "c")
    assert groups.members("g") == ["a!x", "b!x", "c"]
    assert groups.members("other") == []
    assert groups.targets("g") == ({"a!": 1, "b!": 1}, ["c"])


def test_a_group_without_members_is_gone(groups: Groups) -> None:
    """The last discard frees everything the group took."""
    for _ in range(3):
        for number in range(50):
            groups.add("g", f"a!{number}")
        for number in range(50):
            groups.discard("g", f"a!{number}")
        assert groups.members("g") == []
        assert groups.targets("g") == ({}, [])
    assert not groups.segment.transact(lambda: list(groups.store.groups.table.records()))


def test_two_processes_see_one_membership(make_groups: MakeGroups) -> None:
    """What each has remembered is checked against the version in memory."""
    first, second = make_groups(), make_groups()
    for number in range(30):
        adder, asker = (first, second) if number % 2 else (second, first)
        adder.add("g", f"a!{number}")
        assert len(asker.members("g")) == number + 1
        assert asker.targets("g") == ({"a!": number + 1}, [])
        version = asker.store.snapshot("g").version
        assert len(asker.store.members_at("g", "a!", version)) == number + 1
    for number in range(30):
        remover, asker = (first, second) if number % 3 else (second, first)
        remover.discard("g", f"a!{number}")
        version = asker.store.snapshot("g").version
        assert len(asker.store.members_at("g", "a!", version)) == 29 - number


def test_a_member_gets_what_was_sent_while_it_was_one(groups: Groups) -> None:
    """The version of the message decides, not the moment it is read."""
    groups.add("g", "a!early")
    before = groups.store.snapshot("g").version
    groups.add("g", "a!late")
    both = groups.store.snapshot("g").version
    groups.discard("g", "a!early", 60 * SECOND_NS)
    after = groups.store.snapshot("g").version
    at = groups.store.members_at
    assert at("g", "a!", before) == ["a!early"]
    assert sorted(at("g", "a!", both)) == ["a!early", "a!late"]
    assert at("g", "a!", after) == ["a!late"]


def test_a_tombstone_is_no_member_and_ends(groups: Groups, clock: Clock) -> None:
    """It is neither listed nor sent to, and it is swept when its time is over."""
    groups.add("g", "a!x")
    groups.discard("g", "a!x", 5 * SECOND_NS)
    assert groups.members("g") == []
    assert groups.targets("g") == ({}, [])
    clock.advance(6)
    for number in range(2000):
        groups.add("other", f"c{number % 7}")
    assert not groups.segment.transact(groups.store.groups.find_group, _plan(groups.segment), "g")


def _plan(segment: Segment) -> Plan:
    return Plan(segment.words)


@pytest.mark.parametrize("channel", ["c", "a!x"])
def test_a_membership_ends_with_its_expiry(groups: Groups, clock: Clock, channel: str) -> None:
    """Counted from the latest add; nobody need do anything."""
    groups.add("g", channel, 10 * SECOND_NS)
    clock.advance(8)
    groups.add("g", channel, 10 * SECOND_NS)
    clock.advance(8)
    assert groups.members("g") == [channel]
    clock.advance(2)
    assert groups.members("g") == []
    version = groups.store.snapshot("g").version
    assert groups.store.members_at("g", home_of(channel), version) == []


def test_a_renewal_by_another_process_counts(make_groups: MakeGroups, clock: Clock) -> None:
    """A process that remembers the old deadline looks again before it drops a member."""
    first, second = make_groups(), make_groups()
    first.add("g", "a!x", 10 * SECOND_NS)
    first.add("g", "c", 10 * SECOND_NS)
    version = second.store.snapshot("g").version
    assert second.store.members_at("g", "a!", version) == ["a!x"]
    clock.advance(5)
    first.add("g", "a!x", 10 * SECOND_NS)
    first.add("g", "c", 10 * SECOND_NS)
    clock.advance(8)
    version = second.store.snapshot("g").version
    assert second.store.members_at("g", "a!", version) == ["a!x"]
    assert second.targets("g") == ({"a!": 1}, ["c"])
    assert second.members("g") == ["a!x", "c"]


def test_expired_members_are_reclaimed_without_being_asked_for(
    make_groups: MakeGroups, clock: Clock
) -> None:
    """Adds to any group sweep the others, so abandoned members cost bounded memory."""
    groups = make_groups(1 << 20)
    for number in range(10_000):
        groups.add(f"room.{number}", f"p.{number}!x", SECOND_NS)
        clock.advance(0.02)
    assert len(groups.segment.transact(lambda: list(groups.store.groups.table.records()))) < 3000


def test_the_home_of_a_dead_process_is_dropped(groups: Groups) -> None:
    """Its members go from all groups; the others stay, and whoever has joined it since."""
    for number in range(400):
        groups.add(f"g{number % 3}", f"dead!{number}")
    groups.add("g0", "live!x")
    version = groups.store.version()
    groups.add("g1", "dead!new")
    for _ in range(2):
        groups.store.drop_homes({"dead!"}, version)
        found = [groups.members(f"g{number}") for number in range(3)]
        assert found == [["live!x"], ["dead!new"], []]


def test_a_full_memory_is_refused_with_the_remedy(make_groups: MakeGroups) -> None:
    """An add that finds no room changes nothing and names ``group_memory``."""
    groups = make_groups(128 << 10)
    number = 0

    def fill() -> None:
        nonlocal number
        while True:
            groups.add("g", f"c{number}")
            number += 1

    with pytest.raises(ChannelFull, match="group_memory"):
        fill()
    assert len(groups.members("g")) == number
    groups.discard("g", "c0")
    groups.add("g", "c0")
    assert len(groups.members("g")) == number


def test_expired_members_make_room_when_the_memory_is_full(
    make_groups: MakeGroups, clock: Clock
) -> None:
    """Before an add is refused everything that expired is dropped."""
    groups = make_groups(128 << 10)
    for number in range(400):
        groups.add("old", f"c{number}", SECOND_NS)
    clock.advance(2)
    for number in range(400):
        groups.add("new", f"c{number}")
    assert len(groups.members("new")) == 400


def test_a_flush_forgets_every_group_for_everybody(make_groups: MakeGroups) -> None:
    """Also what other processes remembered."""
    first, second = make_groups(), make_groups()
    first.add("g", "a!x")
    second.add("h", "c")
    assert second.targets("g") == ({"a!": 1}, [])
    version = second.store.snapshot("g").version
    first.store.flush()
    assert second.targets("g") == second.targets("h") == ({}, [])
    assert second.store.members_at("g", "a!", version) == []
    second.add("g", "b!y")
    assert first.members("g") == ["b!y"]


def test_leaving_and_joining_again_loses_nothing_in_between(groups: Groups) -> None:
    """A message sent to a member still reaches it when it left and came back meanwhile."""
    groups.add("g", "a!x")
    groups.add("g", "a!other")
    sent = groups.store.snapshot("g").version
    groups.discard("g", "a!x", 60 * SECOND_NS)
    away = groups.store.snapshot("g").version
    groups.add("g", "a!x")
    back = groups.store.snapshot("g").version
    at = groups.store.members_at
    assert "a!x" in at("g", "a!", sent)
    assert "a!x" in at("g", "a!", back)
    assert "a!other" in at("g", "a!", away)


@pytest.mark.parametrize(
    ("joins", "targets", "members"),
    [("y!b", {"x!": 1, "y!": 1}, ["x!a"]), ("x!b", {"x!": 2}, ["x!a", "x!b"])],
)
@pytest.mark.parametrize("asked", ["targets", "members"])
def test_what_a_killed_process_had_committed_counts(
    make_groups: MakeGroups,
    monkeypatch: pytest.MonkeyPatch,
    joins: str,
    targets: dict[str, int],
    members: list[str],
    asked: str,
) -> None:
    """What still seems to hold is not used while a log waits to be replayed."""
    first, second = make_groups(), make_groups()
    first.add("g", "x!a")
    second.add("h", "y!z")  # so that memory is in stock, and joining is one commit
    assert first.targets("g") == ({"x!": 1}, [])
    later = first.segment.words[L.SEQUENCE] + 1
    assert first.store.members_at("g", "x!", later) == ["x!a"]
    memory, words = second.segment.memory, second.segment.words

    def log_and_die(plan: Plan) -> None:
        pairs = [number for pair in plan.items() for number in pair]
        start = 8 * L.LOG
        memory[start : start + 8 * len(pairs)] = struct.pack(f"<{len(pairs)}Q", *pairs)
        words[L.LOG_N] = len(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(second.segment, "commit", log_and_die)
    with pytest.raises(KeyboardInterrupt):
        second.add("g", joins)
    if asked == "targets":
        assert first.targets("g") == (targets, [])
    else:
        assert sorted(first.store.members_at("g", "x!", later)) == members


@pytest.mark.parametrize("by", ["flush", "join", "leave", "expiry"])
def test_a_remembered_snapshot_ends_with_what_it_says(
    make_groups: MakeGroups, clock: Clock, by: str
) -> None:
    """Whatever another process changes, and whatever time does, is seen by the next send."""
    first, second = make_groups(), make_groups()
    first.add("g", "x!a")
    first.add("g", "c", 10 * SECOND_NS)
    assert first.targets("g") == first.targets("g") == ({"x!": 1}, ["c"])
    version = first.store.snapshot("g").version
    assert first.store.members_at("g", "x!", version) == ["x!a"]
    if by == "flush":
        second.store.flush()
        assert first.store.members_at("g", "x!", version) == []
        assert first.targets("g") == ({}, [])
    elif by == "join":
        second.add("g", "y!b")
        assert first.targets("g") == ({"x!": 1, "y!": 1}, ["c"])
    elif by == "leave":
        second.discard("g", "x!a")
        assert first.targets("g") == ({}, ["c"])
    else:
        clock.advance(11)
        assert first.targets("g") == ({"x!": 1}, [])
