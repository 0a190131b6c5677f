"""Reading a whole segment in slices: records copied under the lock, taken apart outside.

The lock is held for about ``HOLD_S`` at a time; only the last hold grows with the number of
records, by 0.2 µs each. Each record is consistent in itself. What several slices saw is
reconciled: a record that went away meanwhile counts in the header and nowhere else, so no
count of the totals ever goes down between two readings.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from itertools import compress
from operator import itemgetter
from typing import Any, TypeVar

from .._shm import layout as L
from .._shm.segment import damaged
from ..exceptions import SegmentError
from .image import Image
from .reading import Channel, Group, Home, Leaf, Loop, Memory, Totals

__all__ = ["HOLD_S", "Messages", "read_groups", "read_memory", "repeat_if_flushed"]

T = TypeVar("T")

HOLD_S = 0.001  # a site's own operations hold the lock for some µs, and wait 2 ms at a time
_CLOCK_EVERY = 32  # records between two looks at the clock
_BUCKETS_AT_ONCE = 1024
_CHAIN_LIMIT = 10_000  # a chain this long is a loop: some hundred when the largest is full
_NAME_LIMIT = 99
_RESTARTS = 5  # a flush in the middle of a reading begins it anew

_RECORD = struct.Struct(f"<{L.CH_KEY - L.IDENT}Q").unpack_from
_RECORD_START = 8 * L.IDENT
_KIND_BYTE = L.KIND_SHIFT // 8  # of a header
_COUNTERS = (
    ("sent", L.COUNT_SENT),
    ("received", L.COUNT_RECEIVED),
    ("expired", L.COUNT_EXPIRED),
    ("full", L.COUNT_FULL),
    ("memory_full", L.COUNT_MEMORY_FULL),
    ("dropped", L.COUNT_DROPPED),
    ("flushed", L.COUNT_FLUSHED),
    ("copies", L.COUNT_COPIES),
    ("shared", L.COUNT_SHARED),
)


class _Flushed(Exception):
    """A flush came between two holds."""


def repeat_if_flushed(read: Callable[[], T]) -> T:
    for _ in range(_RESTARTS):
        try:
            return read()
        except _Flushed:
            pass
    raise SegmentError(f"the site was flushed {_RESTARTS} times while it was read: try again")


# -- copying records out -----------------------------------------------------------------


class _Walk:
    """All records of a segment's table, in slices of at most ``HOLD_S``.

    ``copy(record)`` is called with the lock held.
    """

    def __init__(self, image: Image, copy: Callable[[int], None]) -> None:
        self.image = image
        self.holds = 0
        self._copy = copy
        self._epoch = -1
        self._bucket = 0
        self._is_late = False

    def run(self) -> None:
        """Visit every record."""
        while self._bucket < self.image.heap_start - L.BUCKETS:
            self.image.transact(self._slice)

    def finish(self, last_look: Callable[[], T]) -> T:
        """Run something that belongs to what was visited, in one more hold of the lock."""
        return self.image.transact(self._in_this_epoch, last_look)

    def _in_this_epoch(self, operation: Callable[[], T]) -> T:
        if self.holds and self.image.epoch != self._epoch:
            raise _Flushed
        self._epoch = self.image.epoch
        self.holds += 1
        return operation()

    def _slice(self) -> None:
        self._in_this_epoch(self._copy_some)

    def _copy_some(self) -> None:
        give_up = time.perf_counter() + HOLD_S
        for visited, record in enumerate(self._chains(), start=1):
            self._copy(record)
            if visited % _CLOCK_EVERY == 0 and time.perf_counter() > give_up:
                self._is_late = True

    def _chains(self) -> Iterator[int]:
        """Yield records, whole buckets at a time, until time is over or there are no more."""
        image, words = self.image, self.image.words
        total = image.heap_start - L.BUCKETS
        self._is_late = False
        while self._bucket < total:
            first = L.BUCKETS + self._bucket
            some = words[first : min(first + _BUCKETS_AT_ONCE, image.heap_start)].tolist()
            for record in some:
                self._bucket += 1
                if not record:
                    continue
                for _ in range(_CHAIN_LIMIT):
                    if record & 3 or record < image.heap_start:
                        raise damaged(image.name, f"a record at word {record}")
                    following = words[record + L.HASH_NEXT]
                    yield record
                    if not following:
                        break
                    record = following
                else:
                    raise damaged(image.name, f"a record at word {record}")
                if self._is_late:
                    return


# -- the messages segment ----------------------------------------------------------------


class Messages:
    """What one walk over the messages segment found."""

    def __init__(self, image: Image) -> None:
        self.image = image
        # Three lists, and not one of tuples: what is made under the lock must not set off the
        # garbage collector.
        self._records: list[int] = []
        self._raws: list[Any] = []
        self._heads_sent_ns: list[int] = []
        walk = _Walk(image, self._copy)
        walk.run()
        for record, raw in zip(self._records, self._raws, strict=True):
            if len(raw) < 8 * L.CH_KEY or raw[_KIND_BYTE] != L.EXTENT_CHANNEL:
                raise damaged(image.name, f"a record at word {record}")
        idents = [_RECORD(raw, _RECORD_START)[0] for raw in self._raws]
        look_again = itemgetter(0, 0, *[record + L.IDENT for record in self._records])
        walk.finish(lambda: self._finish(look_again))
        self._lives = [now == ident for now, ident in zip(self._now[2:], idents, strict=True)]

    def _copy(self, record: int) -> None:
        image, words = self.image, self.image.words
        start = 8 * record
        sent_ns = 0
        if words[record + L.CH_SENT] != words[record + L.CH_TAKEN] and not words[record + L.OWNER]:
            head = words[record + L.CH_HEAD]
            if head & 3 or head < image.heap_start:
                raise damaged(image.name, f"a record at word {record}")
            sent_ns = words[head + L.MSG_SENT]
        self._records.append(record)
        self._raws.append(image.memory[start : start + 8 * L.CH_KEY + _NAME_LIMIT])
        self._heads_sent_ns.append(sent_ns)

    def _finish(self, look_again: Callable[[Any], tuple[int, ...]]) -> None:
        """Read the header, and which of the records have gone into its counts meanwhile."""
        words = self.image.words
        self._now = look_again(words)
        self.taken_ns = time.monotonic_ns()
        self.created_ns: int = words[L.CREATED]
        self.counts = {name: words[word] for name, word in _COUNTERS}
        self.slots = words[L.SLOTS : L.BUCKETS].tolist()

    def channels(self) -> list[Channel]:
        """Return every queue."""
        leaves: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
        homes = []
        for record, raw, head_sent_ns in compress(
            zip(self._records, self._raws, self._heads_sent_ns, strict=True), self._lives
        ):
            fields = _RECORD(raw, _RECORD_START)
            name = _name(self.image, record, raw, fields[L.KEY - L.IDENT], L.CH_KEY)
            owner = fields[L.OWNER - L.IDENT]
            if owner:
                leaves.setdefault(owner, []).append((name, fields))
            else:
                homes.append((record, name, fields, head_sent_ns))
        return [
            self._channel(
                name,
                fields,
                head_sent_ns,
                tuple(self._leaf(fields, *leaf) for leaf in leaves.get(record, ())),
            )
            for record, name, fields, head_sent_ns in homes
        ]

    def _leaf(self, home: tuple[int, ...], name: str, leaf: tuple[int, ...]) -> Leaf:
        holds = home[L.CH_HELD_UNTIL - L.IDENT] > self.taken_ns  # or its holder has died since
        gone = leaf[(L.CH_TAKEN if holds else L.LEAF_DRAINED) - L.IDENT]
        return Leaf(name, leaf[L.CH_SENT - L.IDENT] - gone, leaf[L.CH_FULL - L.IDENT])

    def _channel(
        self, name: str, fields: tuple[int, ...], head_sent_ns: int, leaves: tuple[Leaf, ...]
    ) -> Channel:
        sent, taken = fields[L.CH_SENT - L.IDENT], fields[L.CH_TAKEN - L.IDENT]
        expired = fields[L.CH_EXPIRED - L.IDENT]
        masks = fields[L.CH_PARKED - L.IDENT : L.CH_FULL - L.IDENT]
        parked = tuple(_bits(masks)) if any(masks) else ()
        owner = fields[L.CH_OWNER - L.IDENT]
        return Channel(
            name=name,
            depth=sent - taken,
            sent=sent,
            received=taken - expired,
            expired=expired,
            full=fields[L.CH_FULL - L.IDENT],
            oldest_age_s=max(0, self.taken_ns - head_sent_ns) / 1e9 if head_sent_ns else 0.0,
            parked=parked,
            loop=self._slot_of(owner, parked) if owner else None,
            leaves=leaves,
        )

    def _slot_of(self, process: int, parked: tuple[int, ...]) -> int | None:
        """Return the slot of a process's loop, of one that is parked rather."""
        for slot in (*parked, *range(L.SLOT_COUNT)):
            base = L.SLOT_WORDS * slot
            if self.slots[base + L.SLOT_PROCESS] == process and self.slots[base + L.SLOT_TOKEN]:
                return int(slot)
        return None

    def totals(self, channels: list[Channel]) -> Totals:
        """Return the counts of the header and of the living records together."""
        counts = dict(self.counts)
        for name in ("sent", "received", "expired"):
            counts[name] += sum(getattr(channel, name) for channel in channels)
        counts["full"] += sum(
            channel.full + sum(leaf.full for leaf in channel.leaves) for channel in channels
        )
        return Totals(
            **counts,
            pending=sum(channel.depth for channel in channels),
            channels=len(channels),
            oldest_age_s=max((channel.oldest_age_s for channel in channels), default=0.0),
        )

    def loops(self, channels: list[Channel]) -> list[Loop]:
        """Return the owners of slots."""
        parked_on: dict[int, list[str]] = {}
        for channel in channels:
            for slot in channel.parked:
                parked_on.setdefault(slot, []).append(channel.name)
        loops = []
        for slot in range(L.SLOT_COUNT):
            base = L.SLOT_WORDS * slot
            token = self.slots[base + L.SLOT_TOKEN]
            if token:
                pid, since = self.slots[base + L.SLOT_PID], self.slots[base + L.SLOT_SINCE]
                names = tuple(sorted(parked_on.get(slot, ())))
                process = self.slots[base + L.SLOT_PROCESS]
                loops.append(Loop(slot, token, pid, since / 1e9, names, process))
        return loops


def _bits(masks: tuple[int, ...]) -> Iterator[int]:
    for part, mask in enumerate(masks):
        while mask:
            lowest = mask & -mask
            yield 64 * part + lowest.bit_length() - 1
            mask ^= lowest


def _name(image: Image, record: int, raw: Any, key: int, key_word: int) -> str:
    length = key & 0xFFFFFFFF
    if length > _NAME_LIMIT:
        raise damaged(image.name, f"a record at word {record}")
    return bytes(raw[8 * key_word : 8 * key_word + length]).decode("ascii", "replace")


# -- the groups segment ------------------------------------------------------------------


def read_groups(image: Image) -> list[Group]:
    """Return every group, without the names of its members."""
    copied: list[tuple[int, int, Any]] = []

    def copy(record: int) -> None:
        kind = image.words[record] >> L.KIND_SHIFT
        if kind != L.EXTENT_MEMBER:
            start = 8 * record
            copied.append((record, kind, image.memory[start : start + 8 * L.H_KEY + _NAME_LIMIT]))

    _Walk(image, copy).run()
    homes: dict[int, list[Home]] = {}
    groups = []
    for record, kind, raw in copied:
        if kind not in (L.EXTENT_GROUP, L.EXTENT_HOME):
            raise damaged(image.name, f"a record at word {record}")
        fields = _RECORD(raw.ljust(8 * L.CH_KEY, b"\0"), _RECORD_START)
        name = _name(image, record, raw, fields[L.KEY - L.IDENT], L.KEY_WORD[kind])
        if kind == L.EXTENT_GROUP:
            groups.append((record, name, fields))
        else:
            home = Home(name, fields[L.H_COUNT - L.IDENT], fields[L.H_VERSION - L.IDENT])
            homes.setdefault(fields[L.OWNER - L.IDENT], []).append(home)
    return [
        Group(
            name=name,
            members=fields[L.G_COUNT - L.IDENT],
            version=fields[L.G_VERSION - L.IDENT],
            homes=tuple(home for home in homes.get(record, ()) if home.members),
        )
        for record, name, fields in groups
    ]


# -- memory ------------------------------------------------------------------------------


def read_memory(image: Image) -> Memory:
    words = image.words
    end = image.heap_end()
    quick_bytes = _quick_bytes(words)
    free_bytes, largest, is_exact = _listed_bytes(image)
    # What is not backed yet can be, and joins a free extent at the end of what is.
    room_bytes = min(8 * (image.heap_limit - end), image.filesystem_bytes())
    before = words[end] >> L.PREVIOUS_SHIFT & L.SIZE_MASK
    last = end - L.GRANULE_WORDS * before
    if before and words[last] >> L.KIND_SHIFT == L.EXTENT_FREE:
        largest = max(largest, room_bytes + before * L.GRANULE_BYTES)
    return Memory(
        segment=image.name,
        size=image.size_bytes,
        backed=8 * (end + L.GRANULE_WORDS),
        used=8 * (end - image.heap_start) - free_bytes - quick_bytes,
        free=free_bytes + quick_bytes + room_bytes,
        growth=room_bytes,
        largest_free=max(largest, room_bytes),
        is_exact=is_exact,
    )


def _quick_bytes(words: Any) -> int:
    """Return what the quick lists hold: in one list all extents have one size."""
    return sum(
        (entry >> L.COUNT_SHIFT) * L.class_granules(index) * L.GRANULE_BYTES
        for index, entry in enumerate(words[L.QUICK : L.QUICK + L.QUICK_CLASSES].tolist())
    )


def _listed_bytes(image: Image) -> tuple[int, int, bool]:
    """Return the bytes in the free lists, those of the largest extent, and if that is all."""
    words = image.words
    give_up = time.perf_counter() + HOLD_S
    free = largest = seen = 0
    firsts = words[L.CLASSES : L.CLASSES + L.CLASS_COUNT].tolist()
    for extent in reversed(firsts):  # the large ones first
        while extent:
            if extent & 3 or extent < image.heap_start:
                raise damaged(image.name, f"an extent at word {extent}")
            granules = words[extent] & L.SIZE_MASK
            free += granules
            largest = max(largest, granules)
            extent = words[extent + L.FREE_NEXT]
            seen += 1
            if seen % _CLOCK_EVERY == 0 and time.perf_counter() > give_up:
                return free * L.GRANULE_BYTES, largest * L.GRANULE_BYTES, False
    return free * L.GRANULE_BYTES, largest * L.GRANULE_BYTES, True
