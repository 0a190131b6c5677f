"""Two segments to which the same is done in two ways: every word of them must be the same."""

from __future__ import annotations

from collections.abc import Callable

from asgi_ipc._operator.check import check_groups, check_messages
from asgi_ipc._process.shm import shm_unlink
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment

_CHECKS: dict[int, Callable[[Segment], list[str]]] = {
    L.KIND_MESSAGES: check_messages,
    L.KIND_GROUPS: check_groups,
}


class Twin:
    """A segment that two processes use."""

    def __init__(self, name: str, kind: int, size: int) -> None:
        self.segments = [Segment(name, kind, size, mode=0o600, lock_timeout=10.0) for _ in range(2)]

    def content(self) -> list[object]:
        """Return everything but what differs between any two segments, and the log."""
        segment = self.segments[0]
        end = segment.words[L.HEAP_END]
        slots = segment.words[L.SLOTS : L.BUCKETS].tolist()
        parts = ((L.BITMAP, L.SEQUENCE + 1), (L.CLASSES, L.LOG), (L.BUCKETS, end + 1))
        return [
            slots[L.SLOT_TOKEN :: L.SLOT_WORDS],
            slots[L.SLOT_HINT :: L.SLOT_WORDS],
            *(segment.memory[8 * first : 8 * last] for first, last in parts),
        ]

    def problems(self) -> list[str]:
        """Ask the checker."""
        segment = self.segments[0]
        return segment.transact(_CHECKS[segment.kind], segment)

    def close(self) -> None:
        """Detach, and remove the segment."""
        for segment in self.segments:
            segment.close()
        shm_unlink(self.segments[0].name)
