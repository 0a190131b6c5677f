"""What a signal handler raises, wherever it comes out, leaves guard and lock free.

The real thing, thousands of times, is in ``test_segment``. Here it comes at every line, and out of
the very call that takes something, as from Python 3.14 on.
"""

from __future__ import annotations

import fcntl
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._shm import segment as segment_module
from asgi_ipc._shm.segment import Segment
from asgi_ipc._store import queues_fast

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Work = Callable[[AsyncIPCChannelLayer], object]


class Interrupt(BaseException):
    """What the handler raises."""


def _send(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.send("c", {"n": 1})


def _send_below(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.send("home!c", {"n": 1})


def _receive(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.send("r", {"n": 1})
    layer.sync.receive("r", timeout=0)


def _park(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.receive("p", timeout=0.001)


def _send_many(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.send_many([("m", {"n": 1}), ("home!m", {"n": 2})])


def _join(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.group_add("g", "home!c")
    layer.sync.group_send("g", {"n": 1})
    layer.sync.group_discard("g", "home!c")


def _close(layer: AsyncIPCChannelLayer) -> None:
    layer.close_now()
    layer.sync.send("again", {})


WORKS: dict[str, Work] = {
    function.__name__.strip("_"): function
    for function in (_send, _send_below, _receive, _park, _send_many, _join, _close)
}
CODES = tuple(
    function.__code__
    for function in (
        queues_fast.append,
        queues_fast.pop,
        queues_fast.park,
        Segment.transact,
        Segment.alone,
    )
)
# From here on a frame only gives back what it has: each of these calls is reached without a check
# for signals, and what comes out of the first one still runs into the second.
GIVING_BACK = (
    "guard.release()",
    "_flock(self.lock_fd, _UNLOCK)",
    "_flock(segment.lock_fd, _UNLOCK)",
)
# These make no call, so nothing can come between the last one and that.
LEADING_THERE = (
    "try:",
    "finally:",
    "return True",
    "return False",
    "return None",
    "return borne, body",
)


class Tracer:
    """Raises at the n-th line of what takes guard and lock."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """Trace what is to be interrupted, and nothing else."""
        if frame.f_code not in CODES:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and text in GIVING_BACK:
            return None
        if event == "line" and text not in LEADING_THERE:
            self._left -= 1
            if self._left == 0:
                raise Interrupt(f"{frame.f_code.co_name}, line {frame.f_lineno}")
        return self


def assert_all_is_free(
    layer: AsyncIPCChannelLayer, other: AsyncIPCChannelLayer, where: str = ""
) -> None:
    """Another thread of the process gets the guard, and another process would get the lock."""
    got: list[bool] = []

    def try_both() -> None:
        for segment in layer._site._segments():
            got.append(segment.guard.acquire(blocking=False))
            if got[-1]:
                segment.guard.release()
        for segment in other._site._segments():
            segment.transact(lambda: None)

    thread = threading.Thread(target=try_both)
    thread.start()
    thread.join()
    assert got == [True, True], where


@pytest.fixture
def no_tracer_stays() -> Iterator[None]:
    """Put the tracer of whoever runs the tests back."""
    before = sys.gettrace()
    yield
    sys.settrace(before)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_an_interrupt_at_any_line_leaves_guard_and_lock_free(
    make_layer: MakeLayer, work: Work, no_tracer_stays: None
) -> None:
    """At every line of a transaction and of each straight-lined one, one after the other."""
    layer, other = make_layer(capacity=10**4), make_layer(capacity=10**4)
    work(layer)
    at = 0
    while True:
        at += 1
        sys.settrace(Tracer(at))
        try:
            work(layer)
        except Interrupt as exc:
            where = str(exc)
        else:
            break
        finally:
            sys.settrace(None)
        assert_all_is_free(layer, other, where)
    assert at > 10, "the lines are not traced any more"


class RaisesOnceHeld:
    """A guard that is interrupted when it has been taken and nobody knows it yet."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_armed = True

    def acquire(self, blocking: bool = True) -> bool:
        """Take it, and raise the first time."""
        got = self._lock.acquire(blocking)
        if self.is_armed:
            self.is_armed = False
            raise Interrupt
        return got

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def _is_owned(self) -> bool:
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_an_interrupt_out_of_taking_the_guard_leaves_it_free(
    make_layer: MakeLayer, work: Work
) -> None:
    """As a ``with`` of Python 3.14 may be interrupted: after the taking, before its block."""
    layer, other = make_layer(), make_layer()
    work(layer)
    for segment in layer._site._segments():
        guard = RaisesOnceHeld()
        segment.guard = guard
        try:
            work(layer)
        except Interrupt:
            pass
        else:
            assert guard.is_armed  # it does nothing with this segment
            guard.is_armed = False
        assert not guard._is_owned()
        assert_all_is_free(layer, other)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_an_interrupt_out_of_taking_the_lock_leaves_it_free(
    make_layer: MakeLayer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that has taken it raises."""
    layer, other = make_layer(), make_layer()
    work(layer)
    armed = [True]

    def raises_once_held(fd: int, operation: int) -> None:
        fcntl.flock(fd, operation)
        if operation != fcntl.LOCK_UN and armed:
            armed.clear()
            raise Interrupt

    for module in (segment_module, queues_fast):
        monkeypatch.setattr(module, "_flock", raises_once_held)
    with pytest.raises(Interrupt):
        work(layer)
    assert_all_is_free(layer, other)
