"""The private loop of a thread that blocks: ``poll`` on a port's descriptors, and no more.

It is what a port needs of an event loop, in one or two descriptors, where asyncio's has three.
What becomes readable while it stands still is answered when the thread blocks again.
Signals wait while it works and are served where
it waits: so what a handler raises comes out of there alone, and no message is in hand then.
The coroutine is then closed, which runs its ``finally`` clauses. That is for a process of one
thread: the kernel gives a signal to any thread that does not hold it back, and Python then runs
the handler on the main thread, wherever that is. What it raises loses the message in hand at most.
"""

from __future__ import annotations

# As `signal`, without 60 enum members made of each result (10 to 80 µs a call).
import _signal  # type: ignore[import-not-found]
import heapq
import itertools
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from .._process.own import here, this_process
from .._wake.bell import PipeBell, new_bell, ring
from .._wake.blocking import driving
from ..exceptions import IPCError
from .signals import HELD, SignalMask, runs_handlers

__all__ = ["PollLoop", "PrivateLoops"]

R = TypeVar("R")

# Where signals write while a thread of this process waits: process by descriptor. A child that is
# forked meanwhile finds its parent's there.
_alarms: dict[int, int] = {}


class _Future:
    """Something to wait for; it carries no value."""

    def __init__(self) -> None:
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def cancelled(self) -> bool:
        return False

    def set_result(self, _: None) -> None:
        self._is_done = True

    def __await__(self) -> Generator[_Future, None, None]:
        while not self._is_done:
            yield self


class _Timer:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None
        self.args = ()


def _begin_to_hear(fd: int) -> int | None:
    """Have each signal write a byte there; return what to put back, ``None`` if nothing was done.

    Whatever is said against it: what is lost is a signal in the moment before the system call.
    """
    try:
        before: int = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except (OSError, ValueError):
        return None  # EBADF: somebody has closed it just now
    owner = _alarms.pop(before, None)
    if before == fd:
        before = -1  # a handler raised before it was put back
    elif owner == here[0]:
        _alarms[before] = owner  # a handler has been called while this thread waits, and waits too
    elif owner is not None:
        before = -1  # the parent's
    elif before != -1:
        _put_back(before)  # an event loop of this thread has its own
        return None
    _alarms[fd] = here[0]
    return before


def _put_back(fd: int) -> None:
    try:
        signal.set_wakeup_fd(fd)
    except (OSError, ValueError):
        signal.set_wakeup_fd(-1)  # it was closed meanwhile


class PollLoop:
    """An event loop for one thread; it goes with the thread."""

    _is_closed = True  # until it is made: nothing is to be given back

    def __init__(self) -> None:
        """Make it.

        Raises:
            IPCError: ``select.poll`` was taken away.
            SegmentError: there is no descriptor left to ring it with.
        """
        if not hasattr(select, "poll"):
            raise IPCError(
                "select.poll is not there (eventlet.monkey_patch() removes it), so no thread can "
                "block on a channel: receive without waiting (block=False, timeout=0), on an "
                "asyncio event loop, or patch with eventlet.monkey_patch(select=False)"
            )
        self.process = this_process()
        self._thread = threading.get_ident()
        self._poll = select.poll()
        self._readers: dict[int, Callable[..., object]] = {}
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._due: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._on_close: list[Callable[[], None]] = []
        self._is_running = False
        self._mask = SignalMask()
        self._is_main = runs_handlers()
        self._is_closed = False
        self._set_alarm()

    def _set_alarm(self) -> None:
        # Rung by other threads and by signals, which write one byte: no eventfd takes that.
        self._alarm = PipeBell() if self._is_main else new_bell()
        self.add_reader(self._alarm.read_fd, self._alarm.drain)

    def _begin_anew(self) -> None:
        """Somebody has closed every descriptor: what was watched means other files by now."""
        self._readers.clear()
        self._poll = select.poll()
        self._alarm.close()
        self._set_alarm()

    # -- what a port asks for ------------------------------------------------------------

    def add_reader(self, fd: Any, callback: Callable[..., object], /) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        self._readers[number] = callback
        self._poll.register(number, select.POLLIN)

    def remove_reader(self, fd: Any, /) -> object:
        number = fd if isinstance(fd, int) else fd.fileno()
        try:
            self._poll.unregister(number)
        except (KeyError, ValueError):
            pass  # a signal handler raised before it was registered, or after it was not any more
        return self._readers.pop(number, None)

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object:
        self._due.append((callback, args))
        return None

    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> object:
        if self._is_closed:
            raise RuntimeError("the loop is closed")
        self._due.append((callback, args))
        ring(self._alarm.ring_fd)
        return None

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> _Timer:
        timer = _Timer(callback, args)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), timer))
        return timer

    def create_future(self) -> Any:
        return _Future()

    def is_closed(self) -> bool:
        return self._is_closed

    def is_running(self) -> bool:
        return self._is_running

    def can_run(self) -> bool:
        """Whether it may run on this thread: it is this process's, and does not yet."""
        return not (self._is_closed or self._is_running or self.process != here[0])

    def runs_here(self) -> bool:
        """Whether it runs on this very thread."""
        return self._is_running and self._thread == threading.get_ident()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have something called when the loop is closed."""
        self._on_close.append(callback)

    # -- running -------------------------------------------------------------------------

    def run(self, operation: Coroutine[Any, Any, R], mask: SignalMask) -> R:
        """Run a coroutine to its end; what a signal handler raises comes out of here.

        Args:
            mask: what is held back meanwhile, but for where this waits.
        """
        before = driving.is_driving, driving.sleep, driving.call_out
        try:
            try:
                self._is_running = True
                self._mask = mask
                driving.is_driving = True
                driving.sleep, driving.call_out = self._sleep, self._call_out
                while True:
                    self._run_until_done(operation.send(None))
            except StopIteration as finished:
                result: R = finished.value
                return result
            finally:
                operation.close()
        finally:
            self._is_running = False
            driving.is_driving, driving.sleep, driving.call_out = before

    def _run_until_done(self, waits_for: _Future) -> None:
        while not waits_for.done():
            self._run_once()

    def _call_out(self, function: Callable[..., object], *args: Any) -> None:
        """Call what is not ours: signals are served meanwhile, and a child inherits no mask."""
        if not self._mask.is_held:  # by a handler, or in here already
            function(*args)
            return
        self._mask.serve()
        try:
            function(*args)
        finally:
            self._mask.hold()

    def _sleep(self, seconds: float) -> None:
        """Wait for a busy lock: signals are served meanwhile."""
        self._call_out(time.sleep, seconds)

    def _wait(self, wait_ms: float | None) -> list[tuple[int, int]]:
        if not self._is_main:
            return self._poll.poll(wait_ms)
        # Python runs handlers between bytecodes. A signal that came after the last one and
        # before the system call would wait with it; a byte at the alarm ends the poll.
        fd = self._alarm.ring_fd
        before = None
        try:
            before = _begin_to_hear(fd)
            self._mask.serve()
            return self._poll.poll(wait_ms)
        finally:
            try:
                self._mask.is_held = True
                _signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
            finally:
                if before is not None:
                    _alarms.pop(fd, None)
                    _put_back(before)

    def _run_once(self) -> None:
        now = time.monotonic()
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].callback is None):
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._due.append((timer.callback, timer.args))
        if not self._due:
            if self._alarm.is_lost():
                self._begin_anew()
            wait_ms = None
            if self._timers:
                wait_ms = max(0.0, self._timers[0][0] - now) * 1000 + 1
            for fd, _ in self._wait(wait_ms):
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
        while self._due:
            callback, args = self._due.popleft()
            callback(*args)

    def close(self) -> None:
        """Give everything back; in a forked child, only what is the child's."""
        if self._is_closed or self._is_running:
            return
        mask = SignalMask()
        try:
            mask.hold()
            if self.process == here[0]:
                self._call_back()
            if hasattr(self, "_alarm"):
                self._alarm.close()
            self._is_closed = True
        finally:
            _signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def _call_back(self) -> None:
        while self._on_close:
            self._on_close[-1]()
            self._on_close.pop()

    def __del__(self) -> None:
        try:
            self.close()
        finally:
            self.close()  # does nothing, unless a signal handler cut that short


class PrivateLoops:
    """The private loops of one layer, one for each thread that has blocked."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def run(self, make_operation: Callable[[PollLoop], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine, made for this thread's loop, to its end."""
        mask = SignalMask()
        try:
            mask.hold()
            loop: PollLoop | None = getattr(self._threads, "loop", None)
            if loop is None or not loop.can_run():
                loop = self._threads.loop = PollLoop()
            return loop.run(make_operation(loop), mask)
        finally:
            _signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def close(self) -> None:
        """Let go of the loops; those that are running end with their thread."""
        self._threads = threading.local()
