"""Allocation inside a segment: contiguous extents, in constant time.

Two tiers. Free extents wait in one list per size class, always merged with free
neighbours (a two-level segregated fit; Masmano et al., "TLSF", 2004). In front of it a
last-in-first-out *quick list* per class up to 240 KiB keeps just-freed extents unmerged, so
that the usual send and receive cost one and two logged words instead of about ten each.

Invariants, between transactions:

* The extents tile the heap: each header's size leads to the next, each header's
  ``previous`` to the one before, and ``EXTENT_END`` stands at ``HEAP_END``.
* No two free extents touch. A class's bitmap bit is set if and only if its list is not
  empty.
* An extent in a quick list has exactly its class's size, keeps the kind of its last owner
  and is referred to by the list alone; a list holds at most ``quick_limit`` of them.

Everything is planned, nothing written, but for growing and for consolidating, which are
committed steps of their own: see ``Segment.commit``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from .._shm import layout as L
from .._shm.segment import Plan, Segment, damaged

__all__ = ["Heap", "HeapFull"]

R = TypeVar("R")

GROWTH_BYTES = 1 << 20  # memory is backed in steps of this size
_GROWTH_GRANULES = GROWTH_BYTES // L.GRANULE_BYTES
_LAST_RESORT = 8  # extents looked at
_STOCK = 16  # extents cut at once
_STOCK_GRANULES = 4096  # together at most: 128 KiB
_STOCK_FROM = 8  # times as much must be free in one piece
_SHORT_LIVED = (L.EXTENT_MESSAGE, L.EXTENT_BODY)
_W = L.GRANULE_WORDS

_SIZES = [L.class_granules(index) for index in range(L.QUICK_CLASSES)]
_LIMIT = [L.quick_limit(index) for index in range(L.QUICK_CLASSES)]


class HeapFull(Exception):
    """No free extent of so many granules. Internal."""

    def __init__(self, granules: int) -> None:
        super().__init__(granules)
        self.granules = granules


class Heap:
    """The extents of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def check(self, extent: int) -> int:
        """Return ``extent`` if it can be one: inside the heap and aligned.

        Raises:
            SegmentCorrupt: it is not.
        """
        segment = self._segment
        if (
            extent & 3
            or extent < segment.heap_start
            or (extent >= segment.backed_end and not segment.is_backed(extent))
        ):
            raise damaged(segment.name, f"an extent at word {extent}")
        return extent

    def capacity_bytes(self) -> int:
        """Bytes of heap there can ever be; the largest message is a little smaller."""
        return 8 * (self._segment.heap_limit - self._segment.heap_start)

    def allocate(self, plan: Plan, size_bytes: int, kind: int) -> int:
        """Return an extent of at least ``size_bytes``, header included.

        Until ``plan`` is committed nothing refers to its words from ``DATA`` on: they may be
        written directly.

        Raises:
            HeapFull: as it says; nothing was planned. ``fit`` takes care of it.
        """
        granules = (size_bytes + L.GRANULE_BYTES - 1) >> 5
        if granules <= L.LARGEST_QUICK:
            quick = L.QUICK_FOR[granules]
            entry = plan[quick]
            if entry:
                extent = self.check(entry & L.OFFSET_MASK)
                count = (entry >> L.COUNT_SHIFT) - 1
                plan[quick] = (
                    count << L.COUNT_SHIFT | plan[extent + L.FREE_NEXT] & L.OFFSET_MASK
                    if count
                    else 0
                )
                header = plan[extent]
                if header >> L.KIND_SHIFT != kind:
                    plan[extent] = kind << L.KIND_SHIFT | header & ((1 << L.KIND_SHIFT) - 1)
                return extent
            index = quick - L.QUICK
            found = self._first_fit(plan, index)
            if found:
                return self._carve(plan, found, _SIZES[index], kind)
        else:
            found = self._first_fit(plan, L.size_class(L.round_to_class(granules)))
        # Not rounded any more: the last bytes of a segment are a message's as well.
        found = found or self._last_resort(plan, granules)
        if not found:
            raise HeapFull(granules)
        return self._carve(plan, found, granules, kind)

    def stock(self, size_bytes: int, kind: int) -> bool:
        """Cut several extents into an empty quick list: a committed step of its own.

        What is cut one by one costs about ten logged words each, and the large free extent's
        place in its list again and again. Does nothing where memory is short.

        Returns:
            Whether it has.
        """
        granules = (size_bytes + L.GRANULE_BYTES - 1) >> 5
        if granules > _STOCK_GRANULES // 2:
            return False
        words = self._segment.words
        quick = L.QUICK_FOR[granules]
        granules = _SIZES[quick - L.QUICK]
        if words[quick]:
            return False
        count = min(_STOCK, _STOCK_GRANULES // granules)
        plan = Plan(words)
        wanted = count * granules * _STOCK_FROM
        found = self._first_fit(plan, L.size_class(L.round_to_class(wanted)))
        if not found:
            return False
        extent = self._carve(plan, found, count * granules, kind)
        before = plan[extent] >> L.PREVIOUS_SHIFT & L.SIZE_MASK
        following = 0
        for _ in range(count):
            plan[extent] = kind << L.KIND_SHIFT | before << L.PREVIOUS_SHIFT | granules
            plan[extent + L.FREE_NEXT] = following
            before, following = granules, extent
            extent += _W * granules
        self._set_previous(plan, extent, granules)
        plan[quick] = count << L.COUNT_SHIFT | following
        self._segment.commit(plan)
        return True

    def free(self, plan: Plan, extent: int) -> None:
        """Give an extent back."""
        header = plan[self.check(extent)]
        if not L.EXTENT_FREE < header >> L.KIND_SHIFT < L.EXTENT_END:
            raise damaged(self._segment.name, f"word {extent} freed twice")
        granules = header & L.SIZE_MASK
        quick = L.QUICK_OF[granules] if granules <= L.LARGEST_QUICK else 0
        if quick:
            entry = plan[quick]
            count = entry >> L.COUNT_SHIFT
            if count < _LIMIT[quick - L.QUICK]:
                plan[extent + L.FREE_NEXT] = entry & L.OFFSET_MASK
                plan[quick] = (count + 1) << L.COUNT_SHIFT | extent
                return
        self._merge(plan, extent)

    def consolidate(self) -> bool:
        """Empty the quick lists, one committed step an extent; whether there was anything."""
        words = self._segment.words
        freed = False
        for quick in range(L.QUICK, L.QUICK + L.QUICK_CLASSES):
            for _ in range(_LIMIT[quick - L.QUICK]):
                entry = words[quick]
                if not entry:
                    break
                plan = Plan(words)
                extent = self.check(entry & L.OFFSET_MASK)
                count = (entry >> L.COUNT_SHIFT) - 1
                following = words[extent + L.FREE_NEXT] & L.OFFSET_MASK
                plan[quick] = count << L.COUNT_SHIFT | following if count else 0
                self._merge(plan, extent)
                self._segment.commit(plan)
                freed = True
        return freed

    # -- the merged tier -----------------------------------------------------------------

    def _first_fit(self, plan: Plan, index: int) -> int:
        """Return the first free extent of the smallest class from ``index`` on, or 0."""
        part = index >> 6
        mask = plan[L.BITMAP + part] >> (index & 63) << (index & 63)
        while not mask:
            part += 1
            if part == L.BITMAP_WORDS:
                return 0
            mask = plan[L.BITMAP + part]
        found = (part << 6) + (mask & -mask).bit_length() - 1
        if found >= L.CLASS_COUNT:
            raise damaged(self._segment.name, f"a free list of class {found}")
        return self.check(plan[L.CLASSES + found])

    def _last_resort(self, plan: Plan, granules: int) -> int:
        """Look at a few extents of the class below, some of which are large enough."""
        extent = plan[L.CLASSES + L.size_class(granules)]
        for _ in range(_LAST_RESORT):
            if not extent or plan[self.check(extent)] & L.SIZE_MASK >= granules:
                return extent
            extent = plan[extent + L.FREE_NEXT]
        return 0

    def _carve(self, plan: Plan, found: int, granules: int, kind: int) -> int:
        """Take ``granules`` out of a free extent.

        Messages are cut from its end, where its links can stay. Records live long: they are
        cut from its front, so that they gather at the bottom of the heap and leave the rest
        in one piece.
        """
        header = plan[found]
        size = header & L.SIZE_MASK
        rest = size - granules
        if rest < 0 or header >> L.KIND_SHIFT != L.EXTENT_FREE:
            raise damaged(self._segment.name, f"a free extent of {size} granules in the wrong list")
        if not rest:
            self._unlist(plan, found, size)
            plan[found] = header ^ (L.EXTENT_FREE ^ kind) << L.KIND_SHIFT
            return found
        if kind not in _SHORT_LIVED:
            self._unlist(plan, found, size)
            before = header & L.SIZE_MASK << L.PREVIOUS_SHIFT
            plan[found] = kind << L.KIND_SHIFT | before | granules
            remains = found + _W * granules
            plan[remains] = L.EXTENT_FREE << L.KIND_SHIFT | granules << L.PREVIOUS_SHIFT | rest
            self._set_previous(plan, found + _W * size, rest)
            self._enlist(plan, remains, rest)
            return found
        if L.size_class(rest) != L.size_class(size):
            self._unlist(plan, found, size)
            self._enlist(plan, found, rest)
        plan[found] = header - granules
        extent = found + _W * rest
        plan[extent] = kind << L.KIND_SHIFT | rest << L.PREVIOUS_SHIFT | granules
        self._set_previous(plan, extent + _W * granules, granules)
        return extent

    def _merge(self, plan: Plan, extent: int) -> None:
        header = plan[extent]
        size = header & L.SIZE_MASK
        before = header >> L.PREVIOUS_SHIFT & L.SIZE_MASK
        following = extent + _W * size
        next_header = plan[following]
        if next_header >> L.KIND_SHIFT == L.EXTENT_FREE:
            self._unlist(plan, following, next_header & L.SIZE_MASK)
            _absorb(plan, following)
            size += next_header & L.SIZE_MASK
        if before:
            previous = self.check(extent - _W * before)
            previous_header = plan[previous]
            if previous_header >> L.KIND_SHIFT == L.EXTENT_FREE:
                self._unlist(plan, previous, before)
                _absorb(plan, extent)
                extent = previous
                size += before
                before = previous_header >> L.PREVIOUS_SHIFT & L.SIZE_MASK
        plan[extent] = L.EXTENT_FREE << L.KIND_SHIFT | before << L.PREVIOUS_SHIFT | size
        self._set_previous(plan, extent + _W * size, size)
        self._enlist(plan, extent, size)

    def _set_previous(self, plan: Plan, extent: int, granules: int) -> None:
        plan[extent] = (
            plan[extent] & ~(L.SIZE_MASK << L.PREVIOUS_SHIFT) | granules << L.PREVIOUS_SHIFT
        )

    def _enlist(self, plan: Plan, extent: int, granules: int) -> None:
        index = L.size_class(granules)
        first = plan[L.CLASSES + index]
        plan[extent + L.FREE_NEXT] = first
        plan[extent + L.FREE_PREVIOUS] = 0
        plan[L.CLASSES + index] = extent
        if first:
            plan[self.check(first) + L.FREE_PREVIOUS] = extent
        else:
            plan[L.BITMAP + (index >> 6)] |= 1 << (index & 63)

    def _unlist(self, plan: Plan, extent: int, granules: int) -> None:
        index = L.size_class(granules)
        following = plan[extent + L.FREE_NEXT]
        previous = plan[extent + L.FREE_PREVIOUS]
        if following:
            plan[self.check(following) + L.FREE_PREVIOUS] = previous
        if previous:
            plan[self.check(previous) + L.FREE_NEXT] = following
        else:
            plan[L.CLASSES + index] = following
            if not following:
                plan[L.BITMAP + (index >> 6)] &= ~(1 << (index & 63))

    def fit(self, attempt: Callable[[], R], make_room: Callable[[], None]) -> R:
        """Run something that allocates; when it finds no memory, get some and run it again.

        Growing is a committed step of its own, never part of a plan: a plan could put a
        message over the old end of the heap, which lives until the commit.

        Args:
            attempt: plans from scratch each time.
            make_room: drops and merges what it can; called once, when growing is over.

        Raises:
            HeapFull: the segment is full.
            OSError: the filesystem is (``ENOSPC``).
        """
        has_made_room = False
        while True:
            try:
                return attempt()
            except HeapFull as exc:  # not kept: its frames are the way to the memory
                try:
                    if self._grow(exc.granules):
                        continue
                except OSError as cause:
                    if has_made_room or cause.errno != errno.ENOSPC:
                        raise
                if has_made_room:
                    raise
            make_room()
            has_made_room = True

    def _grow(self, granules: int) -> bool:
        """Back more memory, for an extent of that size at the end; False if there is no room."""
        segment = self._segment
        plan = Plan(segment.words)
        end = segment.heap_end()
        before = plan[end] >> L.PREVIOUS_SHIFT & L.SIZE_MASK
        last = end - _W * before
        last_is_free = before and plan[last] >> L.KIND_SHIFT == L.EXTENT_FREE
        missing = granules - (before if last_is_free else 0)
        room = (segment.heap_limit - end) // _W
        if room < missing or not room:
            return False
        added = self._back(end, least=max(1, missing), most=room)
        plan[end] = L.EXTENT_CHANNEL << L.KIND_SHIFT | before << L.PREVIOUS_SHIFT | added
        new_end = end + _W * added
        plan[new_end] = L.EXTENT_END << L.KIND_SHIFT | added << L.PREVIOUS_SHIFT
        plan[L.HEAP_END] = new_end
        self._merge(plan, end)
        segment.commit(plan)
        return True

    def _back(self, end: int, *, least: int, most: int) -> int:
        """Back a step of memory at the heap's end, or as much as the filesystem has; return it.

        Raises:
            OSError: not even what is needed can be had.
        """
        added = min(most, max(least, _GROWTH_GRANULES))
        while True:
            try:
                self._segment.back(end, end + _W * (added + 1))
            except OSError as exc:
                if exc.errno != errno.ENOSPC or added <= least:
                    raise
                added = max(least, added // 2)
            else:
                return added


def _absorb(plan: Plan, extent: int) -> None:
    """Take back what is planned for the header and the links of an extent that is no more.

    They are in the middle of another one now: were that allocated in the same plan and
    filled, the commit would write them over its content.
    """
    for word in (extent, extent + L.FREE_NEXT, extent + L.FREE_PREVIOUS):
        plan.pop(word, None)
