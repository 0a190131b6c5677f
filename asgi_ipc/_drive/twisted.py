"""Receiving on Twisted's reactor: the bell's descriptor as a reader, no thread, no poll.

``ReactorLoop`` gives a reactor the few methods that a port needs of an event loop; Twisted itself
runs the core's coroutine. The reactor is imported when it is first used, never earlier: importing
it installs it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import deferLater
from twisted.python import threadable
from zope.interface import implementer

__all__ = ["ReactorLoop", "as_deferred", "reactor_loop"]

R = TypeVar("R")

_threadable: Any = threadable  # untyped


@implementer(IReadDescriptor)
class _Reader:
    """A descriptor that the reactor watches for us."""

    def __init__(self, fd: int, callback: Callable[..., object]) -> None:
        self._fd = fd
        self._callback = callback

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:  # noqa: N802 - Twisted's name
        self._callback()

    def connectionLost(self, reason: object) -> None:  # noqa: N802 - Twisted's name
        """Let go without a word: the port closes the descriptor."""

    def logPrefix(self) -> str:  # noqa: N802 - Twisted's name
        return "asgi_ipc"


class _Timer:
    """A delayed call with the one method we use of ``asyncio.TimerHandle``."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def cancel(self) -> None:
        if self._call.active():
            self._call.cancel()


class _Future:
    """Something to wait for; it carries no value. Who waits goes on in a call of its own."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._deferred: Deferred[None] = Deferred()
        self._is_done = False

    def done(self) -> bool:
        return self._is_done or self.cancelled()

    def cancelled(self) -> bool:
        return bool(self._deferred.called) and not self._is_done

    def set_result(self, _: None) -> None:
        self._is_done = True
        self._reactor.callLater(0, self._wake)

    def _wake(self) -> None:
        if not self._deferred.called:
            self._deferred.callback(None)

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._deferred.__await__()


class ReactorLoop:
    """A reactor seen as an event loop."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._readers: dict[int, _Reader] = {}
        self._is_closed = False
        self._on_close: list[Callable[[], None]] = []
        reactor.addSystemEventTrigger("after", "shutdown", self._close)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have something called when the reactor has stopped."""
        self._on_close.append(callback)

    def _close(self) -> None:
        for callback in self._on_close:
            callback()
        self._is_closed = True
        self._readers.clear()

    def add_reader(self, fd: Any, callback: Callable[..., object], /) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        reader = self._readers[number] = _Reader(number, callback)
        self._reactor.addReader(reader)

    def remove_reader(self, fd: Any, /) -> object:
        reader = self._readers.pop(fd if isinstance(fd, int) else fd.fileno(), None)
        if reader is not None:
            self._reactor.removeReader(reader)
        return reader is not None

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object:
        return self._reactor.callLater(0, callback, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> object:
        if self._is_closed:
            raise RuntimeError("the reactor has stopped")
        return self._reactor.callFromThread(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> _Timer:
        return _Timer(self._reactor.callLater(delay, callback, *args))

    def create_future(self) -> Any:
        return _Future(self._reactor)

    def is_closed(self) -> bool:
        return self._is_closed

    def is_running(self) -> bool:
        return bool(self._reactor.running)

    def runs_here(self) -> bool:
        """Whether this is the reactor's thread."""
        return bool(self._reactor.running) and bool(_threadable.isInIOThread())

    async def pause(self, seconds: float) -> None:
        """Let the reactor run for a while."""
        await deferLater(self._reactor, seconds)


_loops: weakref.WeakKeyDictionary[Any, ReactorLoop] = weakref.WeakKeyDictionary()


def reactor_loop() -> ReactorLoop:
    """Return the installed reactor as a loop, the same one every time."""
    from twisted.internet import reactor

    loop = _loops.get(reactor)
    if loop is None:
        loop = _loops[reactor] = ReactorLoop(reactor)
    return loop


def as_deferred(loop: ReactorLoop, operation: Coroutine[Any, Any, R]) -> Deferred[R]:
    """Run a coroutine on the reactor; cancelling the Deferred cancels it.

    The Deferred never has fired already when it is returned, and whenever it waits the reactor gets
    its turn: a stream of messages cannot starve it.
    """

    async def run() -> R:
        try:
            await loop.pause(0.0)
        except BaseException:
            operation.close()  # cancelled before it began
            raise
        return await operation

    return ensureDeferred(run())
