"""Extents of one segment: never two of them over one another, and everything comes back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ipc._memory.heap import Heap, HeapFull
from asgi_ipc._process.shm import shm_unlink
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Plan, Segment
from asgi_ipc.exceptions import SegmentCorrupt

from .doctor.grounds import ground, needs_mount, shm

if TYPE_CHECKING:
    from .conftest import Child

SIZE = 4 << 20
KIND = L.EXTENT_MESSAGE


class Arena:
    """A heap with a record of what it has given out."""

    def __init__(self, name: str, size: int = SIZE) -> None:
        self.segment = Segment(name, L.KIND_MESSAGES, size, mode=0o600, lock_timeout=10.0)
        self.heap = Heap(self.segment)
        self.held: dict[int, int] = {}

    def allocate(self, size_bytes: int) -> int:
        """Allocate in a transaction of its own."""
        extent = self.segment.transact(self._allocate, size_bytes)
        self.held[extent] = size_bytes
        return extent

    def _allocate(self, size_bytes: int) -> int:
        def attempt() -> tuple[Plan, int]:
            plan = Plan(self.segment.words)
            return plan, self.heap.allocate(plan, size_bytes, KIND)

        plan, extent = self.heap.fit(attempt, lambda: None)
        self.segment.commit(plan)
        return extent

    def free(self, extent: int) -> None:
        """Free in a transaction of its own."""
        del self.held[extent]
        self.segment.transact(self._free, extent)

    def _free(self, extent: int) -> None:
        plan = Plan(self.segment.words)
        self.heap.free(plan, extent)
        self.segment.commit(plan)

    def fill(self, size_bytes: int) -> None:
        """Allocate for ever."""
        while True:
            self.allocate(size_bytes)

    def consolidate(self) -> bool:
        """Empty the quick lists."""
        return self.segment.transact(self.heap.consolidate)

    def walk(self) -> list[tuple[int, int, int]]:
        """Return ``(word, kind, granules)`` of every extent, having checked that they tile."""
        words = self.segment.words
        found = []
        word, before = self.segment.heap_start, 0
        while words[word] >> L.KIND_SHIFT != L.EXTENT_END:
            granules = words[word] & L.SIZE_MASK
            assert granules > 0
            assert words[word] >> L.PREVIOUS_SHIFT & L.SIZE_MASK == before
            found.append((word, words[word] >> L.KIND_SHIFT, granules))
            word, before = word + L.GRANULE_WORDS * granules, granules
            assert word <= words[L.HEAP_END]
        assert word == words[L.HEAP_END]
        assert words[word] >> L.PREVIOUS_SHIFT & L.SIZE_MASK == before
        return found

    def check(self) -> None:
        """Check that the extents tile the heap and are as large as was asked for."""
        tiles = {word: granules for word, _, granules in self.walk()}
        for extent, size_bytes in self.held.items():
            assert tiles[extent] * L.GRANULE_BYTES >= size_bytes


@pytest.fixture
def make_arena(prefix: str) -> Iterator[Callable[..., Arena]]:
    made: list[Arena] = []

    def make(size: int = SIZE) -> Arena:
        made.append(Arena(f"/{prefix}-{len(made)}", size))
        return made[-1]

    yield make
    for arena in made:
        arena.segment.close()


@given(st.integers(1, 15 << 24))  # 7.5 GiB
def test_every_extent_of_a_rounded_size_class_is_large_enough(granules: int) -> None:
    """A request rounded up may take any extent that waits in the class it looks in."""
    rounded = L.round_to_class(granules)
    assert rounded >= granules
    assert L.size_class(rounded) < L.CLASS_COUNT
    assert L.size_class(granules) <= L.size_class(rounded)
    if rounded > 1:
        assert L.size_class(rounded - 1) < L.size_class(rounded)


def test_what_is_allocated_is_large_enough_and_apart(make_arena: Callable[..., Arena]) -> None:
    """Extents of every size up to a few thousand bytes tile the heap."""
    arena = make_arena()
    for size_bytes in range(25, 5000, 83):
        arena.allocate(size_bytes)
    arena.check()


def test_two_growths_in_one_plan_do_not_overlap(make_arena: Callable[..., Arena]) -> None:
    """An operation that allocates twice in an empty heap gets two extents, not one in the other."""
    arena = make_arena()
    segment = arena.segment

    def attempt() -> tuple[Plan, int, int]:
        plan = Plan(segment.words)
        small = arena.heap.allocate(plan, 200, KIND)
        return plan, small, arena.heap.allocate(plan, 2 << 20, KIND)

    def operation() -> tuple[int, int]:
        plan, small, large = arena.heap.fit(attempt, lambda: None)
        segment.commit(plan)
        return small, large

    small, large = segment.transact(operation)
    arena.held = {small: 200, large: 2 << 20}
    arena.check()


def test_freed_neighbours_merge_into_one(make_arena: Callable[..., Arena]) -> None:
    """Whatever the order of freeing, the quick lists emptied, one free extent is left."""
    for seed in range(20):
        arena = make_arena(1 << 20)
        shuffle = random.Random(seed).shuffle
        extents = [arena.allocate(size) for size in (40, 300, 70, 2000, 33, 40, 500, 9000, 100)]
        shuffle(extents)
        for extent in extents:
            arena.free(extent)
        arena.consolidate()
        assert [kind for _, kind, _ in arena.walk()] == [L.EXTENT_FREE]
        assert not arena.consolidate()


def test_the_largest_extent_fits_again_after_any_use(make_arena: Callable[..., Arena]) -> None:
    """Half of the heap in one piece, before and after thousands of random operations."""
    arena = make_arena()
    largest = arena.heap.capacity_bytes() // 2
    arena.free(arena.allocate(largest))
    chance = random.Random(7)
    for _ in range(4000):
        if arena.held and (len(arena.held) > 150 or chance.random() < 0.5):
            arena.free(chance.choice(list(arena.held)))
        else:
            arena.allocate(int(chance.lognormvariate(6, 1.5)) + 25)
    arena.check()
    for extent in list(arena.held):
        arena.free(extent)
    arena.consolidate()
    arena.free(arena.allocate(largest))
    arena.check()


def test_a_stock_is_cut_into_an_empty_quick_list_only(make_arena: Callable[..., Arena]) -> None:
    """Up to 16 extents of a class and 128 KiB, in one piece, and none where a list has some."""
    arena = make_arena(4 << 20)
    segment, heap = arena.segment, arena.heap
    arena.free(arena.allocate(2 << 20))  # backs memory
    for size_bytes, stocked in ((200, 16), (1100, 16), (20_000, 6), (100_000, 0)):
        extents = [one for one in arena.walk() if one[1] == KIND]
        segment.transact(heap.stock, size_bytes, KIND)
        segment.transact(heap.stock, size_bytes, KIND)
        arena.check()
        more = [one for one in arena.walk() if one[1] == KIND]
        assert len(more) - len(extents) == stocked
    whole = heap.capacity_bytes() // 2
    arena.consolidate()
    arena.free(arena.allocate(whole))


def test_stocking_before_every_allocation_loses_nothing(make_arena: Callable[..., Arena]) -> None:
    """The heap tiles after thousands of operations, and the largest extent fits again."""
    arena = make_arena()
    chance = random.Random(11)
    for _ in range(3000):
        if arena.held and (len(arena.held) > 150 or chance.random() < 0.5):
            arena.free(chance.choice(list(arena.held)))
        else:
            size_bytes = int(chance.lognormvariate(6, 1.5)) + 25
            arena.segment.transact(arena.heap.stock, size_bytes, KIND)
            arena.allocate(size_bytes)
    arena.check()
    for extent in list(arena.held):
        arena.free(extent)
    arena.consolidate()
    arena.free(arena.allocate(arena.heap.capacity_bytes() // 2))
    arena.check()


@pytest.mark.parametrize("size", [L.MIN_SEGMENT_BYTES, 200_000, SIZE])
def test_the_whole_heap_can_be_one_extent(make_arena: Callable[..., Arena], size: int) -> None:
    """All there is fits, one granule more does not; rounding to a class costs nothing here."""
    arena = make_arena(size)
    whole = arena.heap.capacity_bytes()
    arena.free(arena.allocate(whole))
    with pytest.raises(HeapFull):
        arena.allocate(whole + 1)
    arena.free(arena.allocate(whole))
    arena.check()


def test_a_full_heap_says_so_and_goes_on(make_arena: Callable[..., Arena]) -> None:
    """Exhaustion plans nothing; after a free the size fits again."""
    arena = make_arena(256 << 10)
    with pytest.raises(HeapFull):
        arena.fill(1000)
    arena.check()
    assert sum(arena.held.values()) > 0.8 * arena.heap.capacity_bytes()
    arena.free(next(iter(arena.held)))
    arena.allocate(1000)
    arena.check()


def test_what_is_filled_before_the_commit_is_not_written_over_by_it(
    make_arena: Callable[..., Arena],
) -> None:
    """Neither by the plan of the same operation nor by a growth, wherever the heap had ended."""
    arena = make_arena(32 << 20)
    segment = arena.segment
    chance = random.Random(3)

    def operation(size_bytes: int, is_large: bool) -> list[tuple[int, bytes]]:
        def attempt() -> tuple[Plan, list[tuple[int, bytes]]]:
            plan = Plan(segment.words)
            filled = []
            for size in (chance.randrange(30, 400), size_bytes):
                extent = arena.heap.allocate(plan, size, KIND if is_large else L.EXTENT_CHANNEL)
                content = chance.randbytes(size - 8 * L.DATA)
                start = 8 * (extent + L.DATA)
                segment.memory[start : start + len(content)] = content
                filled.append((extent, content))
            return plan, filled

        plan, filled = arena.heap.fit(attempt, lambda: None)
        segment.commit(plan)
        return filled

    held: list[tuple[int, bytes]] = []
    for step in range(300):
        size = chance.choice((50, 300, 5000, 300_000, 1_500_000, 3_000_000))
        while len(held) > 12 or sum(len(one) for _, one in held) > 16 << 20:
            extent, content = held.pop(chance.randrange(len(held)))
            start = 8 * (extent + L.DATA)
            assert segment.memory[start : start + len(content)] == content
            segment.transact(arena._free, extent)
        held += segment.transact(operation, size, step % 2 == 0)
        for extent, content in held:
            start = 8 * (extent + L.DATA)
            assert segment.memory[start : start + len(content)] == content
        arena.walk()


def test_a_failed_growth_leaves_no_trace(
    make_arena: Callable[..., Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the filesystem is full the OSError comes out and nothing was planned."""
    arena = make_arena()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(OSError, match="No space"):
            arena.allocate(1000)
    arena.check()
    arena.allocate(1000)
    arena.check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("allocate"), st.integers(25, 60_000)),
            st.tuples(st.just("allocate"), st.integers(25, 400)),
            st.tuples(st.just("free"), st.integers(0, 1000)),
            st.tuples(st.just("consolidate"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_no_program_makes_extents_overlap(program: list[tuple[str, int]]) -> None:
    """After any sequence of allocations and frees the extents tile the heap."""
    name = f"/test-{os.getpid()}-heap"
    arena = Arena(name, 512 << 10)
    try:
        for verb, number in program:
            if verb == "allocate":
                try:
                    arena.allocate(number)
                except HeapFull:
                    pass
            elif verb == "consolidate":
                arena.consolidate()
            elif arena.held:
                arena.free(list(arena.held)[number % len(arena.held)])
        arena.check()
    finally:
        arena.segment.close()
        shm_unlink(name)


@pytest.mark.parametrize("extent", [0, 3, 1 << 40, 2**64 - 4, L.BUCKETS])
def test_an_offset_outside_of_the_heap_is_corruption(
    make_arena: Callable[..., Arena], extent: int
) -> None:
    """Numbers that come out of memory are checked before they are used."""
    arena = make_arena()
    arena.allocate(100)
    with pytest.raises(SegmentCorrupt):
        arena.segment.transact(arena.heap.check, extent)
    with pytest.raises(SegmentCorrupt):
        arena.segment.transact(arena._free, extent)


def test_a_damaged_free_list_is_noticed(make_arena: Callable[..., Arena]) -> None:
    """A bitmap that promises what is not there ends in SegmentCorrupt."""
    arena = make_arena()
    arena.allocate(100)
    words = arena.segment.words
    for part in range(L.BITMAP_WORDS):
        words[L.BITMAP + part] = 2**64 - 1
    with pytest.raises(SegmentCorrupt):
        arena.fill(100_000)


@needs_mount
def test_a_small_filesystem_is_used_to_its_end(start: Callable[..., Child]) -> None:
    """Where a whole step does not fit any more, the heap grows by what there is."""
    child = start(
        """
layer = IPCChannelLayer(PREFIX, capacity=100_000, **SIZES)
try:
    while True:
        layer.send("c", {"body": b"x" * 100})
except ChannelFull as exc:
    say("full" if "filesystem is full" in str(exc) else exc)
room = os.statvfs("/dev/shm")
say(room.f_bavail)
""",
        wrapper=ground(shm("size=1m")),
    )
    child.expect("full")
    assert int(child.line()) <= 1  # pages
    child.end()
