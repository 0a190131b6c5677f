"""A creator that dies half way is redone by the next process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from asgi_ipc._operator.check import check_messages
from asgi_ipc._process.shm import shm_unlink
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment

from .killing import Fuse, Ledger, arm_memory, in_child


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Numbers that survive a kill."""
    ledger = Ledger()
    yield ledger
    ledger.close()


def counted(call: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    def counted_call(*arguments: Any) -> Any:
        fuse.step("growth")
        return call(*arguments)

    return counted_call


def create(name: str, segment_class: type[Segment] = Segment) -> Segment:
    return segment_class(name, L.KIND_MESSAGES, L.MIN_SEGMENT_BYTES, mode=0o600, lock_timeout=10)


def create_armed(name: str, fuse: Fuse) -> None:
    """Create a segment in a child, with every system call and store counted."""

    class Armed(Segment):
        def _map(self, fd: int, size: int) -> None:
            super()._map(fd, size)
            arm_memory(self, fuse)

    for call in (os.ftruncate, os.posix_fallocate, os.fchmod, os.fstat):
        setattr(os, call.__name__, counted(call, fuse))
    create(name, Armed)


def test_creation_can_be_killed_everywhere(prefix: str, ledger: Ledger) -> None:
    """Whatever its creator had done when it was killed, the next finds or makes it empty."""
    name = f"/{prefix}-messages"
    killed, step = True, 0
    while killed:
        step += 1
        ledger.clear()
        killed = in_child(partial(create_armed, name, Fuse(ledger, step)), ledger)
        segment = create(name)
        try:
            assert segment.transact(check_messages, segment) == [], f"killed at step {step}"
            assert segment.words[L.HEAP_END] == segment.heap_start
        finally:
            segment.close()
            shm_unlink(name)
    assert step > 10, "the steps of a creation are no longer counted"
