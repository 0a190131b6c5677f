"""Running the core's coroutines without an event loop, and on one of our own.

An operation that does not suspend is driven by one step of its coroutine (0.3 µs; a trip
through an event loop costs 40). What has to wait for a message runs on a private loop of
the calling thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["PrivateLoops", "drive", "pause"]

R = TypeVar("R")


class _Driver(threading.local):
    is_driving = False


_driver = _Driver()


def drive(operation: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that suspends nowhere but in ``pause``: one step, no event loop."""
    _driver.is_driving = True
    try:
        operation.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    finally:
        _driver.is_driving = False
    operation.close()
    raise AssertionError("an operation of the core suspended in the blocking face")


async def pause(seconds: float) -> None:
    """Let others run: sleep when driven by ``drive``, suspend on an event loop."""
    if _driver.is_driving:
        time.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


class _Loop(asyncio.SelectorEventLoop):
    """A loop that a forked child leaves alone.

    The child shares the parent's epoll instance: closing the loop there, or letting it be
    finalised, would take the parent's own descriptors out of it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        super().__init__()

    def close(self) -> None:
        if os.getpid() == self.pid:
            super().close()

    def __del__(self) -> None:
        if os.getpid() == self.pid:
            super().__del__()


class _PrivateLoop:
    """An event loop for one thread's blocking receives; it goes with the thread."""

    def __init__(self) -> None:
        self._loop = _Loop()
        self._broken = False

    def is_usable(self) -> bool:
        return not self._broken and not self._loop.is_closed() and self._loop.pid == os.getpid()

    def run(self, receive: Coroutine[Any, Any, R]) -> R:
        # Somebody may block a thread whose own event loop is running (the original allowed
        # it): asyncio refuses to nest loops, unless it does not see the outer one.
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        task = self._loop.create_task(receive)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            # A signal handler raised in the middle of the loop: leave nothing of it.
            self._broken = True
            try:
                task.cancel()
                self._run_what_is_due()
                if not task.done():
                    self._loop.run_until_complete(asyncio.wait([task]))
            finally:
                self.close()
            raise
        finally:
            asyncio._set_running_loop(outer)

    def _run_what_is_due(self) -> None:
        """Run the callbacks the interrupted loop still has, a stop of its own among them."""
        for _ in range(2):
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def close(self) -> None:
        if self._loop.is_closed() or self._loop.is_running():
            return
        if self._loop.pid == os.getpid():
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def __del__(self) -> None:
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            self.close()
        finally:
            asyncio._set_running_loop(outer)


class PrivateLoops:
    """The private loops of one layer, one for each thread that has blocked."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def run(self, receive: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end; what a signal handler raises comes out of here."""
        private: _PrivateLoop | None = getattr(self._threads, "loop", None)
        if private is None or not private.is_usable():
            private = self._threads.loop = _PrivateLoop()
        return private.run(receive)

    def close(self) -> None:
        """Close the loops that are not running."""
        self._threads = threading.local()
