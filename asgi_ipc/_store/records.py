"""Channel records as a process sees them: found, remembered, made, tidied away.

A process remembers where a record lies; its ident tells whether it still lies there. What
nobody will ever read again is found by a clock hand: every few sends, and every send that
makes a record, look at the next few hash buckets, drop what has expired there and forget
channels that are empty, unparked and idle. So abandoned channels cost bounded memory
without any reader, thread or timer. Every method is called with the lock held.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from .._memory.heap import HeapFull
from .._process.witness import Life
from .._shm import layout as L
from .._shm.segment import Plan, Segment
from ..names import home_of
from .queues import Queues

__all__ = ["DROPS", "Records", "is_full"]

R = TypeVar("R")

IDLE_S = 60  # an empty channel keeps its record, and so its counters, at least this long
_IDLE_SINGLE_S = 1  # single-reader and process-specific names are used once and forgotten
DROPS = 16  # expired messages dropped in one plan
_PRESSURE_BUCKETS = 4096  # when the memory is full
_CACHE_LIMIT = 50_000
_MASK_BYTES = 8 * L.PARKED_WORDS


class Records:
    """The channel records of one messages segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.queues = Queues(segment)
        self.known: dict[str, tuple[int, int]] = {}
        self.known_below: dict[tuple[str, int], tuple[int, int]] = {}  # of groups, by home
        self.name_at: dict[int, str] = {}
        self._hand = 0
        self.ask: Callable[[int], Life] = lambda _: Life.UNKNOWN  # whether a process lives
        self.is_kept: Callable[[int], bool] = lambda _: False  # asked before one is forgotten
        segment.on_epoch = self.forget

    def forget(self) -> None:
        """Drop every remembered offset: the segment was flushed or replaced."""
        self.known.clear()
        self.known_below.clear()
        self.name_at.clear()

    def find(self, name: str, owner: int = 0) -> int:
        """Return a channel's record, or 0: from memory if its ident still holds."""
        if owner and "!" not in name:
            return self._find_below(name, owner)
        words = self.segment.words
        known = self.known.get(name)
        if known is not None:
            record, ident = known
            if words[record + L.IDENT] == ident:
                return record
            del self.known[name]
        record = self.queues.find_channel(Plan(words), name, owner)
        if record:
            self.remember(name, record)
        return record

    def find_leaf(self, name: str) -> int:
        """Return the record that counts a full process-specific name, or 0."""
        known = self.known.get(name)
        if known is not None and self.segment.words[known[0] + L.IDENT] == known[1]:
            return known[0]
        home = self.find(home_of(name))
        return self.find(name, home) if home else 0

    def _find_below(self, group: str, home: int) -> int:
        """Return the record that counts a group's envelopes for one home, or 0."""
        words = self.segment.words
        record, ident = self.known_below.get((group, home), (0, 0))
        if record and words[record + L.IDENT] == ident:
            return record
        record = self.queues.find_channel(Plan(words), group, home)
        if record:
            if len(self.known_below) >= _CACHE_LIMIT:
                self.known_below.clear()
            self.known_below[group, home] = (record, words[record + L.IDENT])
        return record

    def remember(self, name: str, record: int) -> None:
        if len(self.known) >= _CACHE_LIMIT:
            self.forget()
        self.known[name] = (record, self.segment.words[record + L.IDENT])
        self.name_at[record] = name

    def make(self, name: str, owner: int = 0) -> int:
        """Create a channel record at once; 0 when the memory is full.

        May make room, so that no record found before is to be trusted afterwards.
        """
        try:
            return self.fit(lambda: self.make_now(name, owner), time.monotonic_ns())
        except (HeapFull, OSError) as exc:
            if not is_full(exc):
                raise
            return 0

    def make_now(self, name: str, owner: int = 0) -> int:
        """Create a channel record at once, inside an attempt of ``fit``.

        Raises:
            HeapFull: there is no memory just now.
        """
        plan = Plan(self.segment.words)
        record = self.queues.create_channel(plan, name, owner)
        self.segment.commit(plan)
        return record

    def fit(self, attempt: Callable[[], R], now: int) -> R:
        """Run something that allocates, with the room this segment can give: ``Heap.fit``."""
        return self.queues.heap.fit(attempt, lambda: self.make_room(now))

    def is_surely_empty(self, home: str) -> bool:
        """Whether a home has no messages; False also where that cannot be told without the lock.

        Never true while what was sent before this call is still queued: ``CH_TAKEN`` is read
        first, and ``CH_SENT``, which only grows and is never behind it, was no larger then.
        """
        words = self.segment.words
        known = self.known.get(home)
        if known is None or words is None or words[L.LOG_N]:
            return False
        record, ident = known
        return bool(
            words[record + L.CH_TAKEN] == words[record + L.CH_SENT]
            and words[record + L.IDENT] == ident
            and words[L.EPOCH] == self.segment.epoch
        )

    def queued(self, home: str) -> int:
        """Return how many messages wait in a home that is known; read without the lock: a hint."""
        words = self.segment.words
        known = self.known.get(home)
        if known is None or words is None or words[known[0] + L.IDENT] != known[1]:
            return 0
        return int(words[known[0] + L.CH_SENT] - words[known[0] + L.CH_TAKEN])

    def depth(self, home: str) -> int:
        """Return how many messages wait in a home."""
        record = self.find(home)
        return self.depth_of(record) if record else 0

    def depth_of(self, record: int) -> int:
        """Return how many messages a record counts."""
        words = self.segment.words
        return int(words[record + L.CH_SENT] - words[record + L.CH_TAKEN])

    def is_parked(self, record: int) -> bool:
        start = 8 * (record + L.CH_PARKED)
        mask: bytes = self.segment.memory[start : start + _MASK_BYTES]
        return any(mask)

    def sweep(self, now: int, buckets: int) -> int:
        """Look at the next few buckets: drop what expired, forget idle channels.

        The hand is this process's own: where it stands need not be shared.

        Returns:
            How many records were looked at.
        """
        used, self._hand = self.queues.table.some_buckets(self._hand, buckets)
        visited = 0
        for bucket in used:
            for record in list(self.queues.table.chain(bucket)):
                self._tidy(record, now)
                visited += 1
        return visited

    def _tidy(self, record: int, now: int) -> None:
        words = self.segment.words
        owner = words[record + L.OWNER]
        if words[record + L.CH_SENT] != words[record + L.CH_TAKEN]:
            if owner:
                if words[record + L.CH_SENT] != words[record + L.LEAF_DRAINED]:
                    return
                if self.holds(record, now):
                    return
                self.write_off(record)
            else:
                self._drop_some(record, now)
                return
        if self.is_parked(record) or words[record + L.CH_LEAVES]:
            return
        sent = words[record + L.CH_SENT] & 0xFFFFFFFF
        seconds = now // 1_000_000_000
        mark = words[record + L.CH_MARK]
        if mark == 0 or mark & 0xFFFFFFFF != sent:
            self.segment.commit({record + L.CH_MARK: (seconds + 1) << 32 | sent})
            return
        name = self.queues.table.key_of(record, L.EXTENT_CHANNEL)
        single = owner or "?" in name
        if seconds - (mark >> 32) >= (_IDLE_SINGLE_S if single else IDLE_S):
            if not owner and words[record + L.CH_OWNER] and self.is_kept(record):
                return
            plan = Plan(words)
            self.queues.remove_channel(plan, record)
            self.segment.commit(plan)

    def drop_expired(self, record: int, now: int) -> None:
        """Drop what has expired at the head of a queue. Commits, so nothing may be planned."""
        while self._drop_some(record, now) == DROPS:
            pass

    def _drop_some(self, record: int, now: int) -> int:
        plan = Plan(self.segment.words)
        dropped = self.queues.drop_expired(plan, record, now, DROPS)
        if dropped:
            self.segment.commit(plan)
        return dropped

    def holds(self, leaf: int, now: int) -> bool:
        """Whether what was drained for a leaf's name may still lie in an inbox.

        Not if it has all expired, nor if the process that drained it is proven dead.
        """
        words = self.segment.words
        home = self.queues.heap.check(words[leaf + L.OWNER])
        return bool(
            words[leaf + L.LEAF_DRAINED] != words[leaf + L.CH_TAKEN]
            and words[home + L.CH_HELD_UNTIL] > now
            and self.ask(words[leaf + L.LEAF_HOLDER]) is not Life.DEAD
        )

    def write_off(self, leaf: int) -> None:
        """Count no more what was drained for a leaf's name: nobody holds it."""
        words = self.segment.words
        if words[leaf + L.LEAF_DRAINED] != words[leaf + L.CH_TAKEN]:
            self.segment.commit({leaf + L.CH_TAKEN: words[leaf + L.LEAF_DRAINED]})

    def make_room(self, now: int) -> None:
        """Find memory: expired messages of all queues, then the quick lists."""
        total = self.segment.heap_start - L.BUCKETS
        for _ in range(0, min(total, _PRESSURE_BUCKETS), 64):
            self.sweep(now, 64)
        self.queues.heap.consolidate()


def is_full(exc: BaseException) -> bool:
    """Whether an error says that there is no memory, in the segment or behind it."""
    return isinstance(exc, HeapFull) or (isinstance(exc, OSError) and exc.errno == errno.ENOSPC)
