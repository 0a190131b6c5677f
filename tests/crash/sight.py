"""What an observer sees in two segments: the state that a crash must not spoil.

Read with ``_shm/layout`` alone. A state is a flat dict of components, so that two of them can
be compared piece by piece. What housekeeping may do between any two operations is left
out of it, and nothing else:

* a message, membership or tombstone whose time is over is as good as gone (and counts as
  expired, whether somebody has dropped it yet or not);
* what was drained is as good as gone when it has all expired, or whoever has it is dead;
* an empty record that nobody is parked on is as good as gone, with the owner it remembers
  (its counts are part of the totals, wherever they are kept).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment

Key = tuple[str | int, ...]
State = dict[Key, object]


def records(segment: Segment) -> Iterator[tuple[int, int, int, str]]:
    """Yield ``(record, kind, owner, name)``."""
    words = segment.words
    for first in words[L.BUCKETS : segment.heap_start].tolist():
        record = first
        while record:
            kind = words[record] >> L.KIND_SHIFT
            start = 8 * (record + L.KEY_WORD[kind])
            length = words[record + L.KEY] & 0xFFFFFFFF
            name = bytes(segment.memory[start : start + length]).decode("ascii")
            yield record, kind, words[record + L.OWNER], name
            record = words[record + L.HASH_NEXT]


def see_messages(is_dead: Callable[[int], bool], segment: Segment, now_ns: int) -> State:
    """Return the state of a messages segment."""
    words = segment.words
    state: State = {("epoch", "messages"): words[L.EPOCH]}
    homes: dict[int, str] = {}
    leaves: list[tuple[int, int, str]] = []
    totals = {
        "sent": words[L.COUNT_SENT],
        "received": words[L.COUNT_RECEIVED],
        "expired": words[L.COUNT_EXPIRED],
        "full": words[L.COUNT_FULL],
        "memory full": words[L.COUNT_MEMORY_FULL],
        "dropped": words[L.COUNT_DROPPED],
        "flushed": words[L.COUNT_FLUSHED],
    }
    for record, _, owner, name in records(segment):
        totals["full"] += words[record + L.CH_FULL]
        if owner:
            leaves.append((record, owner, name))
        else:
            homes[record] = name
    expired_of: dict[int, int] = {}
    alive: dict[int, str] = {}
    for home, name in homes.items():
        sent, taken = words[home + L.CH_SENT], words[home + L.CH_TAKEN]
        expired = words[home + L.CH_EXPIRED]
        totals["sent"] += sent
        totals["received"] += taken - expired
        totals["expired"] += expired
        queue = []
        message = words[home + L.CH_HEAD]
        for _ in range(sent - taken):
            if words[message + L.MSG_DEADLINE] > now_ns:
                queue.append(see_message(segment, message))
            else:
                totals["expired"] += 1
                leaf = words[message + L.MSG_LEAF]
                expired_of[leaf] = expired_of.get(leaf, 0) + 1
            message = words[message + L.MSG_NEXT]
        parked = list(parked_on(segment, home))
        for slot in parked:
            state["parked", name, slot] = True
        if queue:
            state["queue", name] = tuple(queue)
        if queue or parked:
            alive[home] = name
            state["owner", name] = words[home + L.CH_OWNER]
    for leaf, owner, name in leaves:
        drained = words[leaf + L.LEAF_DRAINED]
        queued = words[leaf + L.CH_SENT] - drained - expired_of.get(leaf, 0)
        held = drained - words[leaf + L.CH_TAKEN]
        if words[owner + L.CH_HELD_UNTIL] <= now_ns or is_dead(words[leaf + L.LEAF_HOLDER]):
            held = 0
        if queued:
            state["leaf", homes[owner], name] = queued
        if held:
            state["held", homes[owner], name] = held
    for what, count in totals.items():
        state["total", what] = count
    slots = words[L.SLOTS : L.BUCKETS].tolist()
    for slot, token in enumerate(slots[L.SLOT_TOKEN :: L.SLOT_WORDS]):
        if token:
            hint = slots[L.SLOT_WORDS * slot + L.SLOT_HINT]
            state["slot", slot] = token, slots[L.SLOT_WORDS * slot + L.SLOT_PROCESS]
            state["hint", slot] = hint if hint <= L.HINT_MANY else alive.get(hint, "gone")
    return state


def parked_on(segment: Segment, home: int) -> Iterator[int]:
    """Yield the slots whose bits are set in a record."""
    start = home + L.CH_PARKED
    for part, mask in enumerate(segment.words[start : start + L.PARKED_WORDS].tolist()):
        while mask:
            yield 64 * part + (mask & -mask).bit_length() - 1
            mask &= mask - 1


def see_message(segment: Segment, message: int) -> tuple[bytes, int, int, int]:
    """Return name (and who is excluded), body (its CRC), deadline and group version."""
    words, memory = segment.words, segment.memory
    lengths = words[message + L.MSG_LENGTHS]
    name_bytes, body_bytes = lengths >> 32 & 0xFF, lengths & 0xFFFFFFFF
    start = 8 * (message + L.MSG_DATA)
    version = 0
    excluded_bytes = lengths >> 48
    if lengths >> 40 & 0xFF:
        body = 8 * (words[message + L.MSG_DATA] + L.BODY_DATA)
        version = words[message + L.MSG_DATA + 1]
        start += 16
    else:
        body = start + name_bytes
    name = bytes(memory[start : start + name_bytes + excluded_bytes])
    crc = zlib.crc32(memory[body : body + body_bytes])
    return name, crc, words[message + L.MSG_DEADLINE], version


def see_groups(segment: Segment, now_ns: int) -> State:
    """Return the state of a groups segment."""
    words = segment.words
    state: State = {("epoch", "groups"): words[L.EPOCH]}
    found = {record: (kind, owner, name) for record, kind, owner, name in records(segment)}
    for record, (kind, home, name) in found.items():
        if kind == L.EXTENT_MEMBER and words[record + L.M_DEADLINE] > now_ns:
            _, group, home_name = found[home]
            # A member that has come back stands beside its own tombstone.
            joined = words[record + L.M_JOINED]
            state["member", found[group][2], home_name, name, joined] = (
                words[record + L.M_LEFT],
                words[record + L.M_DEADLINE],
            )
    return state
