"""The messages segment as operations: queues, capacity, expiry, parking, slots, counters."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc._operator.check import check_messages
from asgi_ipc._process.witness import Life
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Plan, Segment
from asgi_ipc._store.fanout import Envelope, GroupMessage
from asgi_ipc._store.messages import MessageStore, Settled, Taken
from asgi_ipc.exceptions import ChannelFull, SegmentCorrupt, TooManyLoops
from asgi_ipc.names import home_of

from .bells import WrittenBells

if TYPE_CHECKING:
    from tests.conftest import Clock

MINUTE_NS = 60 * 10**9


class Store:
    """A store whose rings are written down, with short ways to send and take."""

    def __init__(self, name: str, size: int, members: dict[tuple[str, str], list[str]]) -> None:
        self.bells = WrittenBells()
        self.rings = self.bells.rings
        self.members = members
        self.segment = Segment(name, L.KIND_MESSAGES, size, mode=0o600, lock_timeout=10.0)
        self.store = MessageStore(self.segment, self.bells, self._members_at)

    def claim(self, number: int) -> tuple[int, int]:
        """Begin to receive, as a process of its own; return slot and token."""
        return self.store.slots.claim(number, process=number)

    def kill(self, slot: int) -> None:
        """Let the process of a slot be dead."""
        self.bells.dead.add(self.process(slot))

    def process(self, slot: int) -> int:
        """Return the token of a slot's process."""
        process: int = self.segment.words[L.SLOTS + L.SLOT_WORDS * slot + L.SLOT_PROCESS]
        return process

    def _members_at(self, group: str, home: str, version: int) -> list[str]:
        return self.members.get((group, home), [])

    def send(
        self,
        name: str,
        body: bytes = b"m",
        capacity: int = 100,
        expiry_ns: int = MINUTE_NS,
        by_name: bool = True,
    ) -> None:
        """Send with a test's defaults."""
        home = home_of(name)
        self.store.send(name, name if home == name else home, body, capacity, expiry_ns, by_name)

    def take(self, *homes: str, **options: Any) -> Taken:
        """Take with a test's defaults."""
        return self.store.take(homes, **options)

    def bodies(self, home: str) -> list[bytes]:
        """Take everything, one by one."""
        found: list[bytes] = []
        while (taken := self.take(home)).messages:
            found += [message.body for message in taken.messages]
        return found

    def park(self, slot: int, *homes: str) -> None:
        """Park a loop on homes that are empty."""
        assert not self.take(*homes, slot=slot, token=self.process(slot)).messages

    def token(self, slot: int) -> int:
        """Return the token of a slot."""
        token: int = self.segment.words[L.SLOTS + L.SLOT_WORDS * slot]
        return token

    def fill(self, name: str, body: bytes = b"f" * 900, **options: Any) -> int:
        """Send until the channel or the memory is full; return how many fitted."""
        count = 0
        try:
            while True:
                self.send(name, body, capacity=10**9, **options)
                count += 1
        except ChannelFull:
            return count


MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(prefix: str) -> Iterator[MakeStore]:
    made: list[Store] = []

    def make(size: int = 4 << 20, members: dict[tuple[str, str], list[str]] | None = None) -> Store:
        made.append(Store(f"/{prefix}-messages", size, members or {}))
        return made[-1]

    yield make
    problems = [
        problem
        for store in made[:1]
        for problem in store.segment.transact(check_messages, store.segment)
    ]
    for store in made:
        store.segment.close()
    assert not problems


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


# -- queues ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a?b", "a!", "a!b"])
def test_messages_come_out_as_they_went_in(store: Store, name: str) -> None:
    """First in, first out, whatever the kind of channel and the size of the body."""
    sizes = (0, 1, 23, 100, 4095, 4096, 4097, 16_383, 16_384, 70_000, 245_000, 245_800, 300_000)
    sent = [bytes([n]) * size for n, size in enumerate(sizes)]
    for _ in range(3):  # cut from the heap first, then from the quick lists
        for body in sent:
            store.send(name, body)
        assert store.bodies(home_of(name)) == sent


def test_a_message_carries_its_full_name(store: Store) -> None:
    """One queue holds the messages of all names of a home, in order."""
    for name in ("a!x", "a!y", "a!", "a!x"):
        store.send(name)
    names = []
    while (taken := store.take("a!")).messages:
        names += [message.name for message in taken.messages]
    assert names == ["a!x", "a!y", "a!", "a!x"]


def test_a_batch_is_bounded_and_says_if_there_is_more(store: Store) -> None:
    """Process-specific homes give up to ``limit`` at once, other channels one."""
    for number in range(5):
        store.send("a!x", bytes([number]))
        store.send("n", bytes([number]))
    taken = store.take("a!", limit=3)
    assert [message.body for message in taken.messages] == [b"\0", b"\1", b"\2"]
    assert taken.more
    assert len(store.take("n", limit=3).messages) == 1
    taken = store.take("a!", limit=3)
    assert len(taken.messages) == 2
    assert not taken.more


def test_the_first_home_with_a_message_gives_it(store: Store) -> None:
    """The caller's order decides; nothing anywhere is NOTHING."""
    store.send("b")
    store.send("c")
    assert store.take("a", "b", "c").home == "b"
    assert store.take("c", "b").home == "c"
    assert store.take("a", "b", "c").messages == ()


def test_two_stores_are_one_queue(make_store: MakeStore) -> None:
    """What one process queues another takes, each message once."""
    first, second = make_store(), make_store()
    for number in range(10):
        (first, second)[number % 2].send("c", bytes([number]))
    assert [(second, first)[number % 2].take("c").messages[0].body for number in range(10)] == [
        bytes([number]) for number in range(10)
    ]


# -- capacity ----------------------------------------------------------------------------


def test_a_full_channel_refuses_with_the_numbers(store: Store) -> None:
    """Nothing is queued; the exception names channel, depth and capacity."""
    for _ in range(3):
        store.send("c", capacity=3)
    with pytest.raises(ChannelFull, match="'c' is full: 3 of 3") as caught:
        store.send("c", capacity=3)
    error = caught.value
    assert (error.channel, error.depth, error.capacity) == ("c", 3, 3)
    assert len(store.bodies("c")) == 3
    assert store.store.statistics()["full"] == 1


def test_capacity_counts_on_the_name_or_on_the_home(store: Store) -> None:
    """Channels 4 counts per full name, Channels 1 on what ends at the exclamation mark."""
    for _ in range(2):
        store.send("a!x", capacity=2, by_name=True)
    store.send("a!y", capacity=2, by_name=True)
    with pytest.raises(ChannelFull, match="'a!x' is full: 2 of 2"):
        store.send("a!x", capacity=2, by_name=True)
    for number in range(2):
        store.send(f"b!{number}", capacity=2, by_name=False)
    with pytest.raises(ChannelFull, match="2 of 2"):
        store.send("b!new", capacity=2, by_name=False)


def test_a_drained_message_stays_counted_until_it_is_settled(store: Store) -> None:
    """What waits in a loop's inbox still counts against its name's capacity."""
    for _ in range(2):
        store.send("a!x", capacity=2)
    store.take("a!", limit=8, wanted=())
    with pytest.raises(ChannelFull):
        store.send("a!x", capacity=2)
    for _ in range(2):  # a statement, which may be repeated
        store.store.note_settled(Settled({"a!x": 1}, 0, store.store.epoch()))
    store.send("a!x", capacity=2)
    with pytest.raises(ChannelFull):
        store.send("a!x", capacity=2)


@pytest.mark.parametrize(
    ("wanted", "held"),
    [(("a!x",), [False, True, True]), (("a!",), [False, True, True]), (("a!y",), [True] * 3)],
)
def test_only_what_is_returned_at_once_is_counted_no_more(
    store: Store, wanted: tuple[str, ...], held: list[bool]
) -> None:
    """The first message, if its name or its home was asked for; whatever else waits, waits on."""
    for name in ("a!x", "a!x", "a!y"):
        store.send(name, capacity=2)
    taken = store.take("a!", limit=8, wanted=wanted)
    assert [bool(message.leaf) for message in taken.messages] == held
    assert store.store.channel_statistics("a!x", "a!")["pending"] == sum(held[:2])


def test_all_may_be_returned_at_once(store: Store) -> None:
    """Nobody holds any of it then."""
    for name in ("a!x", "a!x", "a!y"):
        store.send(name, capacity=2)
    assert len(store.take("a!", limit=8, wanted=None).messages) == 3
    for name in ("a!x", "a!y"):
        assert store.store.channel_statistics(name, "a!")["pending"] == 0


def test_expired_messages_do_not_count(store: Store, clock: Clock) -> None:
    """A full channel whose messages have expired has room for as many again."""
    for name in ("c", "a!x"):
        for _ in range(40):
            store.send(name, capacity=40, expiry_ns=10**9)
        clock.advance(2)
        for _ in range(40):
            store.send(name, capacity=40, expiry_ns=10**9)
        with pytest.raises(ChannelFull, match="40 of 40"):
            store.send(name, capacity=40)


def test_what_expired_in_an_inbox_does_not_count_for_long(store: Store, clock: Clock) -> None:
    """Messages that a dead process had drained give their name's capacity back in time."""
    for _ in range(3):
        store.send("a!x", capacity=3, expiry_ns=10**9)
    assert len(store.take("a!", limit=8).messages) == 3  # and never credited
    clock.advance(2)
    for _ in range(3):
        store.send("a!x", capacity=3, expiry_ns=10**9)


# -- expiry ------------------------------------------------------------------------------


def test_an_expired_message_is_never_given_out(store: Store, clock: Clock) -> None:
    """It is dropped when met, and counted as expired."""
    store.send("c", b"old", expiry_ns=10**9)
    store.send("c", b"new", expiry_ns=3 * 10**9)
    clock.advance(1)
    assert store.bodies("c") == [b"new"]
    counts = store.store.statistics()
    assert (counts["sent"], counts["received"], counts["expired"]) == (2, 1, 1)


def test_a_message_lives_until_its_deadline(store: Store, clock: Clock) -> None:
    """One nanosecond before the end it is still there."""
    store.send("c", expiry_ns=10**9)
    clock.now_ns += 10**9 - 1
    assert store.store.depth("c") == 1
    assert len(store.bodies("c")) == 1


def test_abandoned_channels_cost_bounded_memory(make_store: MakeStore, clock: Clock) -> None:
    """Ten thousand channels that nobody reads are reclaimed by sends to others."""
    store = make_store(2 << 20)
    for number in range(10_000):
        store.send(f"reply?{number}", b"x" * 300, expiry_ns=10**9)
        clock.advance(0.01)
    assert store.store.statistics()["channels"] < 1000
    assert store.segment.words[L.HEAP_END] * 8 < 2 << 20


def test_idle_records_are_forgotten_and_busy_ones_kept(store: Store, clock: Clock) -> None:
    """An empty channel keeps its counters for a minute, one with a parked loop for ever."""
    slot, _ = store.claim(1)
    store.park(slot, "parked")
    store.send("idle")
    store.bodies("idle")
    for _ in range(3):
        clock.advance(61)
        for number in range(3000):
            store.send("other", bytes([number % 256]))
            store.take("other")
    names = {
        store.store.queues.table.key_of(record, L.EXTENT_CHANNEL)
        for record in store.segment.transact(lambda: list(store.store.queues.table.records()))
    }
    assert "idle" not in names
    assert "parked" in names
    assert store.store.statistics()["sent"] == 1 + 9000  # what it counted is not lost


# -- memory ------------------------------------------------------------------------------


def test_a_full_memory_refuses_with_the_numbers(make_store: MakeStore) -> None:
    """The error says that it is the memory, how much there is, and the remedy."""
    store = make_store(256 << 10)
    assert store.fill("c") > 100
    with pytest.raises(ChannelFull, match="message_memory") as caught:
        store.send("c", b"f" * 900, capacity=10**9)
    error = caught.value
    assert (error.capacity, error.needed_bytes, error.memory_bytes) == (None, 900, 256 << 10)
    assert store.store.statistics()["memory_full"] == 2
    store.take("c")
    store.send("c", b"f" * 900, capacity=10**9)


def test_expired_messages_make_room_when_the_memory_is_full(
    make_store: MakeStore, clock: Clock
) -> None:
    """A send that finds no memory first drops what has expired anywhere."""
    store = make_store(256 << 10)
    for number in range(4):
        store.fill(f"c{number}", b"f" * 20_000, expiry_ns=10**9)
    clock.advance(2)
    store.send("other", b"x" * 100_000)


def test_the_largest_message_fits_again_after_everything_was_read(store: Store) -> None:
    """Filling up with small ones and reading them leaves room for half the memory at once."""
    large = bytes(store.store.queues.heap.capacity_bytes() // 2)
    store.send("large", large)
    assert store.bodies("large") == [large]
    for _ in range(3):
        count = store.fill("c", b"y" * 300)
        assert len(store.bodies("c")) == count
        store.send("large", large)
        assert store.bodies("large") == [large]


# -- parking and waking ------------------------------------------------------------------


def test_a_send_rings_one_parked_loop_and_unparks_it(store: Store) -> None:
    """Of several parked loops one is rung for each message, in turn."""
    slots = [store.claim(number + 1)[0] for number in range(3)]
    for slot in slots:
        store.park(slot, "c")
    for _ in range(3):
        store.send("c")
    assert sorted(slot for slot, _ in store.rings) == slots
    store.send("c")
    assert len(store.rings) == 3  # nobody is parked any more


def test_nobody_is_rung_for_another_channel(store: Store) -> None:
    """A loop parked on one channel sleeps through sends to others."""
    slot, _ = store.claim(1)
    store.park(slot, "c")
    store.send("d")
    assert store.rings == []


def test_rings_are_spread_over_the_parked(store: Store) -> None:
    """Loops that park again at once take turns."""
    slots = [store.claim(number + 1)[0] for number in range(4)]
    for slot in slots:
        store.park(slot, "c")
    for _ in range(40):
        store.send("c")
        store.take("c")
        store.park(store.rings[-1][0], "c")
    rung = [slot for slot, _ in store.rings]
    assert all(5 <= rung.count(slot) <= 20 for slot in slots)


def test_the_ring_comes_before_the_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the ring the message is not in the queue yet: SYNC POINT "wake"."""
    slot, _ = store.claim(1)
    depths: list[int] = []

    def ring(*_: int) -> Life:
        record = store.store.queues.find_channel(_plan(store), "c")
        words = store.segment.words
        depths.append(words[record + L.CH_SENT] - words[record + L.CH_TAKEN])
        return Life.ALIVE

    monkeypatch.setattr(store.store.slots, "ring", ring)
    for _ in range(3):
        store.park(slot, "c")
        store.send("c")
        store.bodies("c")
    assert depths == [0, 0, 0]


def _plan(store: Store) -> Plan:
    return Plan(store.segment.words)


def test_a_dead_loop_is_passed_over_and_reaped(store: Store) -> None:
    """When a ring finds nobody the next parked loop is rung, and the slot is free again."""
    dead, living = store.claim(1)[0], store.claim(2)[0]
    store.park(dead, "c", "d")
    store.park(living, "c", "d")
    store.kill(dead)
    for _ in range(2):
        store.send("c")
        store.bodies("c")
        store.park(living, "c")
    assert store.token(dead) == 0
    store.rings.clear()
    store.send("d")
    assert [slot for slot, _ in store.rings] == [living]


def test_a_reaped_loops_messages_ring_somebody_else(store: Store) -> None:
    """What a dead loop was rung for and never took is offered to another parked loop."""
    dead, living = store.claim(1)[0], store.claim(2)[0]
    store.park(dead, "c", "d")
    store.send("c")  # rings it; then it dies
    assert [slot for slot, _ in store.rings] == [dead]
    store.segment.transact(store.store.slots.park, "c", living, store.process(living))
    store.kill(dead)
    store.send("d")
    assert living in [slot for slot, _ in store.rings]


def test_withdrawing_passes_an_unanswered_ring_on(store: Store) -> None:
    """A rung loop that no longer wants the message lets another one know."""
    first, second = (store.claim(number)[0] for number in (1, 2))
    store.park(first, "c")
    store.send("c")
    store.segment.transact(store.store.slots.park, "c", second, store.process(second))
    store.rings.clear()
    store.store.slots.withdraw(first, ["c"])
    assert [slot for slot, _ in store.rings] == [second]


def test_withdrawing_unparks(store: Store) -> None:
    """A loop that took its bit back is not rung."""
    slot, _ = store.claim(1)
    store.park(slot, "c", "d")
    store.store.slots.withdraw(slot, ["c", "d", "unknown"])
    store.send("c")
    assert store.rings == []


def test_taking_leaves_the_other_channels(store: Store) -> None:
    """A receive that got its message is parked nowhere, unless it asked to stay."""
    slot, token = store.claim(1)
    store.park(slot, "c", "d")
    store.send("c")
    store.rings.clear()
    assert store.take("c", "d", slot=slot, token=token, leave=["c", "d"]).messages
    store.send("d")
    assert store.rings == []
    store.bodies("d")
    store.send("c")
    assert store.take("c", slot=slot, token=token, stay=True).messages
    store.send("c")
    assert [one for one, _ in store.rings] == [slot]


def test_leaving_hundreds_of_channels_takes_the_message(store: Store) -> None:
    """However many parked bits go with it, and however few are left in the last plan."""
    slot, token = store.claim(1)
    homes = [f"c{number}" for number in range(600)]
    for first_unparked in range(380, 420):
        store.park(slot, *homes)
        for home in homes[first_unparked:]:
            store.send(home)
            store.bodies(home)
        store.send("c0", b"wanted")
        taken = store.take(*homes, slot=slot, token=token, leave=homes)
        assert [message.body for message in taken.messages] == [b"wanted"]


def test_a_look_tells_the_depths_and_parks_on_the_rest(store: Store) -> None:
    """A rung loop learns which channels have how much, in one transaction."""
    slot, token = store.claim(1)
    for _ in range(3):
        store.send("c")
    assert store.store.slots.look(slot, token, ["a", "c", "d"], hinted=False) == [("c", 3)]
    store.send("d")
    assert [one for one, _ in store.rings] == [slot]


# -- slots -------------------------------------------------------------------------------


def test_slots_are_claimed_and_given_back(store: Store) -> None:
    """All slots can be taken; one more is refused; one given back is free."""
    claimed = [store.claim(number + 1) for number in range(L.SLOT_COUNT)]
    assert len({slot for slot, _ in claimed}) == L.SLOT_COUNT
    with pytest.raises(TooManyLoops, match=str(L.SLOT_COUNT)):
        store.claim(999)
    slot, token = claimed[77]
    store.store.slots.release(slot, token, [])
    assert store.claim(1000)[0] == slot


def test_slots_of_the_dead_are_found_when_none_is_free(store: Store) -> None:
    """Before anybody is refused every slot's door is knocked at."""
    for number in range(L.SLOT_COUNT):
        store.claim(number + 1)
    store.kill(5)
    store.kill(9)
    assert store.claim(999)[0] == 5
    assert store.claim(1000)[0] == 9


def test_a_slot_is_only_given_back_by_its_owner(store: Store) -> None:
    """A late release of a slot that was reaped and claimed again does nothing."""
    slot, token = store.claim(1)
    store.store.slots.release(slot, token, [])
    again, new_token = store.claim(2)
    assert again == slot
    store.store.slots.release(slot, token, [])
    assert store.token(slot) == new_token


# -- groups ------------------------------------------------------------------------------


def send_group(
    store: Store,
    envelopes: list[tuple[str, int, int]],
    channels: list[str],
    body: bytes = b"g",
    capacity: int = 100,
) -> tuple[list[str], int]:
    """Send to homes and channels; return the dead homes and how many members were skipped."""
    targets = [Envelope(*one) for one in envelopes]
    targets += [Envelope(channel, 0, 1) for channel in channels]
    message = GroupMessage("g", body, targets, lambda _: capacity, MINUTE_NS)
    dead, drops = store.store.send_group(message)
    return dead, sum(drop.members for drop in drops)


def test_a_group_message_reaches_homes_and_channels(make_store: MakeStore) -> None:
    """An envelope for each home is expanded to its members; channels get the message."""
    store = make_store(members={("g", "a!"): ["a!x", "a!y"]})
    assert send_group(store, [("a!", 7, 2)], ["c", "d"]) == ([], 0)
    (envelope,) = store.take("a!", limit=9).messages
    assert envelope.group_version == 7
    assert envelope.members == ["a!x", "a!y"]
    assert (envelope.name, envelope.body) == ("g", b"g")
    assert store.bodies("c") == store.bodies("d") == [b"g"]


def test_envelopes_of_every_size_come_out_in_order(store: Store) -> None:
    """Body and envelope of one size give their memory back to one list."""
    bodies = [b"b" * size for size in range(0, 1_000, 4)]
    for first, second in itertools.pairwise(bodies):
        for body in (first, second):
            assert send_group(store, [("a!", 1, 1)], [], body) == ([], 0)
        assert store.bodies("a!") == [first, second]


def test_an_expired_envelope_is_dropped(store: Store, clock: Clock) -> None:
    """And counted, also if nothing else lies there."""
    send_group(store, [("a!", 1, 1)], [])
    clock.advance(61)
    assert store.bodies("a!") == []
    assert store.store.statistics()["expired"] == 1


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    ("messages", "homes", "body_bytes"),
    [(1, 600, 90), (10, 1, 60_000), (600, 1, 40)],
    ids=["envelopes", "bodies", "both of one size"],
)
def test_more_envelopes_than_quick_lists_hold(
    store: Store, messages: int, homes: int, body_bytes: int, before: int
) -> None:
    """All come out, and what the lists have no room for is merged: room for one is not for two."""
    for _ in range(before):
        store.send("c", bytes(24))
    envelopes = [(f"a{number}!", 1, 1) for number in range(homes)]
    for _ in range(messages):
        assert send_group(store, envelopes, [], bytes(body_bytes), messages) == ([], 0)
    assert len(store.bodies("c")) == before
    for home, _, _ in envelopes:
        assert len(store.bodies(home)) == messages


def test_the_body_of_a_group_message_is_stored_once(make_store: MakeStore) -> None:
    """A hundred members in a hundred homes cost one body, given back with the last."""
    store = make_store(2 << 20)
    body = b"b" * 500_000
    channels = [f"c{number}" for number in range(100)]
    assert send_group(store, [], channels, body) == ([], 0)
    for channel in channels[1:]:
        assert store.bodies(channel) == [body]
    with pytest.raises(ChannelFull):
        store.send("big", bytes(store.store.queues.heap.capacity_bytes() - 300_000))
    assert store.bodies("c0") == [body]
    for _ in range(3):
        assert send_group(store, [], channels, body) == ([], 0)
        for channel in channels:
            assert store.bodies(channel) == [body]


def test_full_members_are_skipped_and_counted(store: Store) -> None:
    """The others get theirs; nobody hears of ChannelFull."""
    store.send("c", capacity=1)
    assert send_group(store, [], ["c", "d"], capacity=1) == ([], 1)
    assert store.bodies("c") == [b"m"]
    assert store.bodies("d") == [b"g"]
    assert store.store.statistics()["dropped"] == 1


def test_a_dead_processs_home_is_reported(store: Store) -> None:
    """Once its process is proven dead, sending to a member of it says so."""
    slot, token = store.claim(1)
    process = store.process(slot)
    store.park(slot, "a!")
    assert send_group(store, [("a!", 1, 1)], []) == ([], 0)
    store.store.slots.release(slot, token, ["a!"])  # its loop ends, and it is still the owner
    assert send_group(store, [("a!", 1, 1)], ["c"]) == ([], 0)
    store.bells.unknown.add(process)
    assert send_group(store, [("a!", 1, 1)], ["c"]) == ([], 0)
    store.bells.unknown.clear()
    store.bells.dead.add(process)
    assert send_group(store, [("a!", 1, 1)], ["c"]) == (["a!"], 0)
    store.segment.transact(store.store.slots.disown, {"a!": process})
    assert send_group(store, [("a!", 1, 1)], ["c"]) == ([], 0)


def test_a_dead_process_parked_on_a_home_is_met_by_the_ring(store: Store) -> None:
    """Its slot is free, and its home is told of, to have its members dropped."""
    slot, _ = store.claim(1)
    store.park(slot, "a!")
    store.kill(slot)
    told: list[set[str]] = []
    store.store.on_dead_homes = lambda: told.append(set(store.store.slots.dead_homes))
    send_group(store, [("a!", 1, 1)], [])
    assert told == [{"a!"}]
    assert store.token(slot) == 0


def test_a_home_goes_over_to_who_lives_and_waits_there(store: Store) -> None:
    """A living owner keeps it; from a dead one the next who parks takes it, members and all."""
    first, second = store.claim(1)[0], store.claim(2)[0]
    processes = [store.process(slot) for slot in (first, second)]
    store.park(first, "a!")
    store.park(second, "a!")

    def owner() -> int:
        record = store.store.records.find("a!")
        return int(store.segment.words[record + L.CH_OWNER])

    def dead() -> list[str]:
        return list(store.segment.transact(store.store.slots.owners_of_dead, ["a!"]))

    assert owner() == processes[0]
    store.kill(first)
    assert dead() == []  # another is parked there
    store.park(second, "a!")
    assert owner() == processes[1]
    assert send_group(store, [("a!", 1, 1)], []) == ([], 0)
    store.kill(second)
    assert dead() == ["a!"]


def test_whom_nobody_can_tell_of_stays_parked_and_another_is_rung(store: Store) -> None:
    """Of each message both hear, as long as it is not known whether the first one lives."""
    slots = [store.claim(number)[0] for number in (1, 2)]
    for slot in slots:
        store.park(slot, "c")
    store.bells.unknown.add(store.process(slots[0]))
    for _ in range(4):
        store.rings.clear()
        store.send("c")
        assert slots[1] in [slot for slot, _ in store.rings]
        store.bodies("c")
        store.park(slots[1], "c")
    assert store.token(slots[0])
    store.bells.unknown.clear()
    for _ in range(2):
        store.rings.clear()
        store.send("c")
        store.bodies("c")
        store.park(slots[1], "c")
    assert slots[0] in [slot for slot, _ in store.rings] or store.token(slots[0])


def test_a_group_message_that_finds_no_memory_is_skipped(make_store: MakeStore) -> None:
    """A full memory drops and counts it; later ones arrive."""
    store = make_store(256 << 10)
    store.fill("c")
    _, skipped = send_group(store, [], ["d", "e"], b"g" * 5000)
    assert skipped == 2
    store.bodies("c")
    assert send_group(store, [], ["d", "e"], b"g" * 5000) == ([], 0)


@pytest.mark.parametrize("idle_s", [2, 61])
def test_making_room_for_a_group_message_forgets_none_of_its_channels(
    make_store: MakeStore, clock: Clock, idle_s: int
) -> None:
    """Records that are idle for long are not reclaimed from under the send that needs them."""
    store = make_store(256 << 10, members={("g", "a!"): ["a!x"]})
    channels = [f"m{number}" for number in range(20)]
    for channel in channels:
        store.send(channel)
        store.bodies(channel)
    assert send_group(store, [("a!", 1, 1)], []) == ([], 0)
    store.take("a!")
    for _ in range(2000):  # the hand passes everywhere and marks who is idle
        store.send("tick")
        store.take("tick")
    clock.advance(idle_s)
    store.fill("c", b"f" * 900, expiry_ns=MINUTE_NS)
    for _ in range(12):
        store.take("c")
    dead, skipped = send_group(store, [("a!", 2, 1)], channels, b"g" * 3000)
    assert dead == []
    arrived = sum(len(store.bodies(channel)) for channel in channels)
    arrived += len(store.take("a!").messages)
    assert arrived + skipped == len(channels) + 1


def test_a_group_that_was_forgotten_is_counted_anew(make_store: MakeStore, clock: Clock) -> None:
    """Where its envelopes for a home were counted, another channel is counted by now."""
    store, other = make_store(members={("g", "a!"): ["a!x"]}), make_store()
    for _ in range(2):  # made, then found
        assert send_group(store, [("a!", 1, 1)], []) == ([], 0)
        assert [message.name for message in store.take("a!").messages] == ["g"]
    ((counter, ident),) = store.store.records.known_below.values()
    for _ in range(2000):  # the hand passes everywhere and marks who is idle
        other.send("tick")
        other.take("tick")
    clock.advance(3)
    number = 0
    while other.segment.words[counter + L.IDENT] in (0, ident):
        assert number < 1000
        number += 1
        for _ in range(200):
            other.send("tick")
            other.take("tick")
        other.send(f"new{number}")
    sent = {name: other.store.records.depth(name) for name in other.store.records.known}
    assert send_group(store, [("a!", 2, 1)], []) == ([], 0)
    assert {name: other.store.records.depth(name) for name in sent} == sent


def test_thousands_of_members_are_more_than_one_plan(store: Store) -> None:
    """A group larger than the log is sent in parts, each of them whole."""
    channels = [f"c{number}" for number in range(1500)]
    assert send_group(store, [], channels) == ([], 0)
    assert all(store.bodies(channel) == [b"g"] for channel in channels)


# -- everything --------------------------------------------------------------------------


def test_a_flush_empties_everything_for_everybody(make_store: MakeStore) -> None:
    """Other processes see it at once; parked loops are rung to park again; totals go on."""
    first, second = make_store(), make_store()
    slot, _ = first.claim(1)
    first.park(slot, "parked")
    for name in ("c", "a!x", "b?y"):
        first.send(name)
        second.send(name)
    second.store.flush()
    assert [one for one, _ in second.rings] == [slot]
    for name in ("c", "a!", "b?y"):
        assert first.store.depth(name) == 0
    counts = first.store.statistics()
    assert (counts["sent"], counts["flushed"], counts["pending"]) == (6, 6, 0)
    first.send("c", b"after")
    assert second.bodies("c") == [b"after"]


def test_what_is_settled_after_a_flush_does_nothing(store: Store) -> None:
    """A leaf that is gone, even one whose place was taken, is not counted down."""
    store.send("a!x")
    store.take("a!", limit=8)
    epoch = store.store.epoch()
    store.store.flush()
    store.send("a!x", capacity=1)
    store.take("a!", limit=8)
    store.store.note_settled(Settled({"a!x": 0}, 0, epoch))
    with pytest.raises(ChannelFull):
        store.send("a!x", capacity=1)


def test_the_statistics_add_up(store: Store, clock: Clock) -> None:
    """Sent = received + expired + pending + flushed, over any mixture."""
    for number in range(30):
        store.send(f"c{number % 3}", expiry_ns=10**9 if number % 2 else 10**12)
    store.take("c0")
    store.take("c1")
    clock.advance(5)
    store.bodies("c2")
    counts = store.store.statistics()
    assert counts["sent"] == 30
    assert counts["received"] + counts["expired"] + counts["pending"] == 30
    assert counts["max_age_ns"] == 5 * 10**9
    one = store.store.channel_statistics("c2", "c2")
    assert one["sent"] == one["received"] + one["expired"] == 10


def test_a_queue_that_runs_in_a_circle_is_an_error(store: Store) -> None:
    """Damaged links end in SegmentCorrupt or in NOTHING, and in finite time."""
    for _ in range(3):
        store.send("c", expiry_ns=1)
    words = store.segment.words
    record = store.segment.transact(store.store.records.find, "c")
    head = words[record + L.CH_HEAD]
    words[head + L.MSG_NEXT] = head
    words[record + L.CH_SENT] = 2**63
    with pytest.raises(SegmentCorrupt):
        store.take("c")
    os.ftruncate(store.segment.lock_fd, store.segment.size_bytes)  # still there
    store.segment.transact(store.store._flush)


def test_without_the_lock_only_what_is_certain_is_called_empty(make_store: MakeStore) -> None:
    """Neither a home that is not known, nor one with messages, nor any while a log waits."""
    store, other = make_store(), make_store()
    is_empty = store.store.records.is_surely_empty
    assert not is_empty("x!")
    store.send("x!a")
    assert not is_empty("x!")
    other.take("x!")
    assert is_empty("x!")
    other.send("x!b")
    assert not is_empty("x!")
    other.take("x!")
    words = store.segment.words
    words[L.LOG_N] = 1  # as a process leaves it that was killed while it sent
    assert not is_empty("x!")
    words[L.LOG_N] = 0
    assert is_empty("x!")
    other.store.flush()
    assert not is_empty("x!")


def test_a_home_that_was_forgotten_is_not_called_empty(make_store: MakeStore, clock: Clock) -> None:
    """What lies now where a record was says nothing about its home."""
    store, other = make_store(), make_store()
    store.send("c")
    other.bodies("c")
    assert store.store.records.is_surely_empty("c")
    clock.advance(3600)
    for _ in range(3):  # the clock hand looks at a record twice
        other.segment.transact(other.store.records.make_room, clock.now_ns)
        clock.advance(3600)
    assert not other.segment.transact(other.store.records.find, "c")
    assert not store.store.records.is_surely_empty("c")
