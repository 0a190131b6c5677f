"""The checker finds every kind of damage, and survives any bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from asgi_ipc._operator.check import PROBLEM_LIMIT, check_groups, check_messages
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment
from asgi_ipc._store.fanout import Envelope, GroupMessage
from asgi_ipc._store.membership import GroupStore
from asgi_ipc._store.messages import MessageStore

from .bells import WrittenBells

HOUR_NS = 3600 * 1_000_000_000


class Site:
    """A messages and a groups segment with something of everything in them."""

    def __init__(self, prefix: str) -> None:
        self.messages = attach(f"/{prefix}-messages", L.KIND_MESSAGES)
        self.groups = attach(f"/{prefix}-groups", L.KIND_GROUPS)
        groups = GroupStore(self.groups)
        store = MessageStore(self.messages, WrittenBells(), groups.members_at)
        slot, _ = store.slots.claim(7, process=77)
        store.take(["waited.for"], slot=slot, token=77)
        for size in (20, 20, 300, 5000):
            store.send("queue", "queue", bytes(size), 100, HOUR_NS, True)
        for name in ("home!x", "home!x", "home!y"):
            store.send(name, "home!", b"body", 100, HOUR_NS, True)
        for channel in ("home!x", "home!y", "one", "two"):
            groups.add("group", channel.replace("x", "").replace("y", ""), channel, HOUR_NS)
        groups.add("other", "one", "one", HOUR_NS)
        groups.discard("group", "home!", "home!y", HOUR_NS)  # leaves a tombstone
        envelopes = [Envelope("home!", 1, 1, b"\0home!z"), Envelope("one", 0, 1)]
        store.send_group(GroupMessage("group", b"to all", envelopes, lambda _: 9, HOUR_NS))
        for _ in range(2):
            store.take(["queue"])  # to a quick list, and the large one to a free list

    def close(self) -> None:
        """Detach."""
        self.messages.close()
        self.groups.close()

    def check(self) -> list[str]:
        """Return what is wrong with either segment."""
        return [
            *self.messages.transact(check_messages, self.messages),
            *self.groups.transact(check_groups, self.groups),
        ]

    def extents(self, segment: Segment, kind: int) -> Iterator[int]:
        """Yield the extents of a kind, in order."""
        words, extent = segment.words, segment.heap_start
        while extent < words[L.HEAP_END]:
            if words[extent] >> L.KIND_SHIFT == kind:
                yield extent
            extent += L.GRANULE_WORDS * (words[extent] & L.SIZE_MASK)

    def record(self, kind: int, name: str) -> int:
        """Return the record with a name."""
        segment = self.messages if kind == L.EXTENT_CHANNEL else self.groups
        for extent in self.extents(segment, kind):
            start = 8 * (extent + L.KEY_WORD[kind])
            if segment.memory[start : start + len(name)] == name.encode():
                return extent
        raise LookupError(name)

    def channel(self, name: str) -> int:
        """Return the record of a channel."""
        return self.record(L.EXTENT_CHANNEL, name)


def attach(name: str, kind: int) -> Segment:
    return Segment(name, kind, L.MIN_SEGMENT_BYTES, mode=0o600, lock_timeout=10)


@pytest.fixture
def site(prefix: str) -> Iterator[Site]:
    """A sound site."""
    site = Site(prefix)
    yield site
    site.close()


def test_a_sound_site_has_no_problems(site: Site) -> None:
    """Nothing is found where nothing is wrong."""
    assert site.check() == []


Damage = Callable[[Site], None]


def message_word(word: int, value: int, *, of: str = "queue") -> Damage:
    """Change a word of the first message of a queue."""

    def damage(site: Site) -> None:
        message = site.messages.words[site.channel(of) + L.CH_HEAD]
        site.messages.words[message + word] = value

    return damage


def channel_word(word: int, change: Callable[[int], int], *, of: str = "queue") -> Damage:
    def damage(site: Site) -> None:
        site.messages.words[site.channel(of) + word] = change(
            site.messages.words[site.channel(of) + word]
        )

    return damage


def hold_what_was_never_drained(site: Site) -> None:
    for word in (L.CH_SENT, L.LEAF_DRAINED):
        site.messages.words[site.channel("home!x") + word] += 1


def group_word(kind: int, name: str, word: int, change: Callable[[int], int]) -> Damage:
    def damage(site: Site) -> None:
        record = site.record(kind, name)
        site.groups.words[record + word] = change(site.groups.words[record + word])

    return damage


def header_word(word: int, change: Callable[[int], int]) -> Damage:
    def damage(site: Site) -> None:
        site.messages.words[word] = change(site.messages.words[word])

    return damage


def first_free_word(word: int, change: Callable[[int], int]) -> Damage:
    def damage(site: Site) -> None:
        words = site.messages.words
        extent = next(site.extents(site.messages, L.EXTENT_FREE)) + word
        words[extent] = change(words[extent])

    return damage


def swap_two_free(site: Site) -> None:
    """Put a free extent into another class's list."""
    words = site.messages.words
    listed = next(index for index in range(L.CLASS_COUNT) if words[L.CLASSES + index])
    words[L.CLASSES + listed + 1] = words[L.CLASSES + listed]
    words[L.CLASSES + listed] = 0
    words[L.BITMAP + (listed >> 6)] &= ~(1 << (listed & 63))
    words[L.BITMAP + (listed + 1 >> 6)] |= 1 << (listed + 1 & 63)


def used_quick_list(site: Site) -> int:
    words = site.messages.words
    return next(word for word in range(L.QUICK, L.QUICK + L.QUICK_CLASSES) if words[word])


def empty_quick_list(site: Site) -> None:
    site.messages.words[used_quick_list(site)] = 0


def overfill_quick_list(site: Site) -> None:
    site.messages.words[used_quick_list(site)] += 1000 << L.COUNT_SHIFT


def use_a_queued_message_twice(site: Site) -> None:
    """Let a quick list hold an extent that is queued."""
    message = site.messages.words[site.channel("queue") + L.CH_HEAD]
    granules = site.messages.words[message] & L.SIZE_MASK
    site.messages.words[L.QUICK + L.size_class(granules)] = 1 << L.COUNT_SHIFT | message


def move_to_another_bucket(site: Site) -> None:
    words = site.messages.words
    record = site.channel("queue")
    used = next(w for w in range(L.BUCKETS, site.messages.heap_start) if words[w] == record)
    free = next(w for w in range(L.BUCKETS, site.messages.heap_start) if not words[w])
    words[free], words[used] = record, 0


def split_a_free_extent(site: Site) -> None:
    """Leave two free extents side by side."""
    words = site.messages.words
    extent = max(site.extents(site.messages, L.EXTENT_FREE), key=lambda e: words[e] & L.SIZE_MASK)
    granules = words[extent] & L.SIZE_MASK
    words[extent] -= 1
    last = extent + L.GRANULE_WORDS * (granules - 1)
    words[last] = L.EXTENT_FREE << L.KIND_SHIFT | (granules - 1) << L.PREVIOUS_SHIFT | 1
    following = last + L.GRANULE_WORDS
    words[following] += (1 - granules) << L.PREVIOUS_SHIFT


def claim_a_body_less(site: Site) -> None:
    words = site.messages.words
    bodies = site.extents(site.messages, L.EXTENT_BODY)
    words[next(body for body in bodies if words[body + L.BODY_REFS]) + L.BODY_REFS] -= 1


DAMAGES: dict[str, tuple[Damage, str]] = {
    "magic": (header_word(L.MAGIC_WORD, lambda _: 1), "magic"),
    "version": (header_word(L.VERSION_WORD, lambda v: v + 1), "layout version"),
    "kind": (header_word(L.KIND_WORD, lambda _: 3), "the kind is"),
    "size": (header_word(L.SIZE_WORD, lambda v: v + 4096), "the size is"),
    "heap end": (header_word(L.HEAP_END, lambda v: v + 1), "the heap, from"),
    "heap end far away": (header_word(L.HEAP_END, lambda _: 1 << 60), "the heap, from"),
    "sentinel": (header_word(L.HEAP_END, lambda v: v - 4), "the extent at word"),
    "slot token": (header_word(L.SLOTS + L.SLOT_WORDS * 5, lambda _: 1 << 8), "slot 5 has"),
    "slot process": (header_word(L.SLOTS + L.SLOT_PROCESS, lambda _: 0), "slot 0 belongs to no"),
    "slot hint": (header_word(L.SLOTS + L.SLOT_HINT, lambda _: 12345), "slot 0 was rung"),
    "slot freed": (header_word(L.SLOTS, lambda _: 0), "slot 0, which nobody owns"),
    "bitmap": (header_word(L.BITMAP, lambda v: v ^ 8), "the bitmap 0x"),
    "bitmap beyond": (header_word(L.BITMAP + 3, lambda v: v | 1 << 63), "the bitmap 0x"),
    "free list": (swap_two_free, "bytes at word"),
    "free link": (first_free_word(L.FREE_NEXT, lambda v: v ^ 4), "free list"),
    "free link back": (first_free_word(L.FREE_PREVIOUS, lambda v: v ^ 4), "a wrong link back"),
    "not merged": (split_a_free_extent, "is not merged"),
    "quick list lost": (empty_quick_list, "lost: a"),
    "quick list too long": (overfill_quick_list, "says it holds"),
    "used twice": (use_a_queued_message_twice, " and in quick list"),
    "wrong bucket": (move_to_another_bucket, "where its key does not belong"),
    "ident": (channel_word(L.IDENT, lambda _: 0), "as if it were gone"),
    "key": (channel_word(L.KEY, lambda v: v ^ 1 << 63), "does not fit its name"),
    "name": (channel_word(L.CH_KEY, lambda v: v ^ 0x80), "has the name"),
    "owner": (channel_word(L.OWNER, lambda _: 4, of="home!x"), "is a leaf below"),
    "hash link": (channel_word(L.HASH_NEXT, lambda _: 12345), "where no extent begins"),
    "record's kind": (channel_word(0, lambda v: v ^ 7 << L.KIND_SHIFT), "holds a body"),
    "sent": (channel_word(L.CH_SENT, lambda v: v + 1), "message 3 of 3 leads"),
    "taken": (channel_word(L.CH_TAKEN, lambda v: v + 1), "and its tail says otherwise"),
    "taken too much": (channel_word(L.CH_TAKEN, lambda v: v + 9), "sent and"),
    "expired": (channel_word(L.CH_EXPIRED, lambda v: v + 9), "sent and"),
    "head": (channel_word(L.CH_HEAD, lambda v: v + 4), "message 1 of 2"),
    "tail": (channel_word(L.CH_TAIL, lambda v: v + 4), "and its tail says otherwise"),
    "process": (channel_word(L.CH_OWNER, lambda _: 1), "belongs to a process"),
    "leaves": (channel_word(L.CH_LEAVES, lambda v: v + 1, of="home!"), "miscounts its"),
    "leaf parked": (channel_word(L.CH_PARKED, lambda _: 1, of="home!x"), "is parked on"),
    "leaf count": (channel_word(L.CH_SENT, lambda _: 1, of="home!x"), "that are queued"),
    "leaf drained": (channel_word(L.LEAF_DRAINED, lambda v: v + 1, of="home!x"), "are queued"),
    "leaf taken": (channel_word(L.CH_TAKEN, lambda v: v + 1, of="home!x"), "in an inbox"),
    "leaf held": (hold_what_was_never_drained, "says there are none"),
    "held until": (channel_word(L.CH_HELD_UNTIL, lambda _: 1), "drained below it"),
    "leaf held until": (channel_word(L.CH_HELD_UNTIL, lambda _: 1, of="home!x"), "drained below"),
    "message link": (message_word(L.MSG_NEXT, 8), "message 2 of 2"),
    "message flags": (message_word(L.MSG_LENGTHS, 9 << 40), "has flags 9"),
    "message size": (message_word(L.MSG_LENGTHS, 99999), "99999 of body"),
    "message name": (message_word(L.MSG_LENGTHS, 3 << 32), "bears the name"),
    "message deadline": (message_word(L.MSG_DEADLINE, 1), "had expired when"),
    "message leaf": (message_word(L.MSG_LEAF, 4), "is counted by word 4"),
    "message excludes": (message_word(L.MSG_LENGTHS, 5 << 48 | 2 << 40, of="one"), "excluded"),
    "body lost": (message_word(L.MSG_DATA, 4, of="one"), "where no extent begins"),
    "body version": (message_word(L.MSG_DATA + 1, 5, of="one"), "group version 5"),
    "body size": (message_word(L.MSG_LENGTHS, 2 << 40 | 7, of="one"), "refers to"),
    "body count": (claim_a_body_less, "miscounts the 2 messages"),
    "group count": (group_word(L.EXTENT_GROUP, "group", L.G_COUNT, lambda v: v + 1), "miscounts"),
    "group version": (group_word(L.EXTENT_GROUP, "group", L.G_VERSION, lambda _: 0), "order"),
    "group homes": (group_word(L.EXTENT_GROUP, "group", L.G_HOMES, lambda _: 0), "nobody"),
    "home count": (group_word(L.EXTENT_HOME, "home!", L.H_COUNT, lambda v: v + 1), "miscounts"),
    "home link": (group_word(L.EXTENT_HOME, "home!", L.H_PREVIOUS, lambda v: v ^ 4), "link back"),
    "home list": (group_word(L.EXTENT_HOME, "home!", L.H_FIRST, lambda _: 8), "leads to word 8"),
    "member link": (group_word(L.EXTENT_MEMBER, "home!x", L.M_PREVIOUS, lambda v: v ^ 4), "back"),
    "member left": (group_word(L.EXTENT_MEMBER, "home!x", L.M_LEFT, lambda _: 1), "joined at"),
    "member joined": (group_word(L.EXTENT_MEMBER, "one", L.M_JOINED, lambda _: 99), "joined at"),
    "member's owner": (group_word(L.EXTENT_MEMBER, "two", L.OWNER, lambda v: v + 4), "leads to"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(site: Site, damage: str) -> None:
    """Each kind of damage is found, and said in words that name it."""
    apply, symptom = DAMAGES[damage]
    apply(site)
    problems = site.check()
    assert any(symptom in problem for problem in problems), problems


def test_a_log_that_was_not_replayed_is_found(site: Site) -> None:
    """A check without the replay that goes before it says so."""
    site.messages.words[L.LOG_N] = 1
    assert check_messages(site.messages) == ["the number of log entries is 0x1, not 0x0"]


def test_the_other_kind_of_segment_is_refused(site: Site) -> None:
    """Each check looks at its own kind of segment only."""
    assert check_groups(site.messages)
    assert check_messages(site.groups)


def test_problems_have_a_limit(site: Site) -> None:
    """Damage everywhere gives a list that a person can read."""
    for bucket in range(L.BUCKETS, site.messages.heap_start):
        site.messages.words[bucket] = 12345
    for slot in range(L.SLOT_COUNT):
        site.groups.words[L.SLOTS + L.SLOT_WORDS * slot] = 1
    assert len(check_messages(site.messages)) <= PROBLEM_LIMIT + 1
    assert check_groups(site.groups)[-1] == "... and more"


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_survived(site: Site, seed: int) -> None:
    """Random words anywhere never make the checker raise or go on for ever."""
    dice = random.Random(seed)
    for segment, check in ((site.messages, check_messages), (site.groups, check_groups)):
        sound = segment.memory[:]
        words = segment.words
        used = [*range(L.BUCKETS, words[L.HEAP_END]), *range(L.HEAP_END, L.QUICK + 64)]
        for _ in range(300):
            for _ in range(dice.randint(1, 4)):
                word = dice.choice(used)
                words[word] = dice.choice(
                    (
                        0,
                        dice.getrandbits(64),
                        dice.choice(used),
                        words[dice.choice(used)],
                        words[word] ^ 1 << dice.randrange(64),
                    )
                )
            check(segment)
            segment.memory[:] = sound
        assert check(segment) == []
