"""Running the core's coroutines without an event loop.

An operation that does not suspend is driven by one step of its coroutine (0.3 µs; a trip
through an event loop costs 40). In ``pause`` it sleeps. Operations nest: what a log handler, a
callback or a signal handler calls is driven inside of what waits, and leaves that as it was.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

__all__ = ["call_out", "drive", "driving", "pause"]

R = TypeVar("R")

Sleep = Callable[[float], object]


def _call(function: Callable[..., object], *args: Any) -> None:
    function(*args)


class _Driver(threading.local):
    """Of this thread: whether something steps through a coroutine itself, how it sleeps and calls.

    What is assigned here is put back by who assigned it.
    """

    is_driving = False
    sleep: Sleep = staticmethod(time.sleep)
    call_out: Callable[..., None] = staticmethod(_call)


driving = _Driver()


def drive(operation: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that suspends nowhere but in ``pause``: one step, no event loop."""
    before = driving.is_driving
    try:
        driving.is_driving = True
        operation.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    finally:
        driving.is_driving = before
    operation.close()
    raise AssertionError("an operation of the core suspended in the blocking face")


async def pause(seconds: float) -> None:
    """Let others run: suspend on asyncio's event loop, sleep when driven or where there is none."""
    if driving.is_driving or asyncio._get_running_loop() is None:
        driving.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def call_out(function: Callable[..., object], *args: Any) -> None:
    """Call what is not ours: it may start a process, which inherits the signals held back."""
    driving.call_out(function, *args)


_logger = logging.getLogger("asgi_ipc")
_handlers = _logger.callHandlers
_logger.callHandlers = partial(call_out, _handlers)  # type: ignore[method-assign]
