"""An event loop that runs one callback at a time, and worlds of such loops.

With it a test decides between which two callbacks something happens: a message is sent, a
task is cancelled, the lock is taken by somebody else. Trying every place is trying every
interleaving that one thread can produce.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import itertools
import os
import selectors
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.names import home_of

R = TypeVar("R")
Action = Callable[[], object]
Received = tuple[str, int]

STEP_LIMIT = 2000
SOON_S = 0.1  # timers due within it are run at once; the safety look is not


class SteppingLoop(asyncio.SelectorEventLoop):
    """A loop whose owner calls ``step``."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _clock_resolution: float
    _selector: selectors.BaseSelector
    _process_events: Callable[[list[Any]], None]
    _skipped_s = 0.0

    def time(self) -> float:
        """Return the time, without that which nobody has waited for."""
        return super().time() + self._skipped_s

    def step(self) -> bool:
        """Run the next callback; False if there is none and none is due soon."""
        asyncio._set_running_loop(self)
        try:
            self._collect(0)
            if not self._ready:
                due_s = self._next_timer_s()
                if due_s is None or due_s > SOON_S:
                    return False
                self._skipped_s += due_s
                self._collect(0)
            if self._ready:
                handle = self._ready.popleft()
                if not handle._cancelled:
                    handle._run()
            return True
        finally:
            asyncio._set_running_loop(None)

    def _collect(self, timeout_s: float) -> None:
        self._process_events(self._selector.select(timeout_s))
        end = self.time() + self._clock_resolution
        while self._scheduled and self._scheduled[0]._when < end:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)

    def _next_timer_s(self) -> float | None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        return max(0.0, self._scheduled[0]._when - self.time()) if self._scheduled else None

    def settle(self) -> int:
        """Run until nothing is left to run; return how many steps it took."""
        for steps in range(STEP_LIMIT):
            if not self.step():
                return steps
        raise AssertionError("the loop never comes to rest")


def drive(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run what does not suspend, outside of any loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    coroutine.close()
    raise AssertionError("it suspended")


async def _receive_named(layer: AsyncIPCChannelLayer, channel: str) -> tuple[str, dict[str, Any]]:
    return channel, await layer.receive(channel)


class World:
    """Loops and layers of one prefix, what was sent, and who waits for what."""

    def __init__(
        self,
        make_layer: Callable[..., AsyncIPCChannelLayer],
        loop_count: int,
        *,
        by_name: bool = False,
    ) -> None:
        """Make them.

        Args:
            by_name: who waits for one full name does so with ``receive``.
        """
        self._by_name = by_name
        self.loops = [SteppingLoop() for _ in range(loop_count)]
        self.layers = [make_layer() for _ in range(loop_count)]
        self.outside = make_layer()
        self.waiting: list[tuple[int, tuple[str, ...], asyncio.Task[Any]]] = []
        self.sent: Counter[Received] = Counter()
        self.faults: list[dict[str, Any]] = []
        self._number = 0
        self._lock_fd: int | None = None
        for loop in self.loops:
            loop.set_exception_handler(lambda _, context: self.faults.append(context))

    def wait(self, where: int, *channels: str) -> asyncio.Task[Any]:
        """Start a receive on a loop and let it come to rest."""
        task = self.begin_to_wait(where, *channels)
        self.settle()
        return task

    def begin_to_wait(self, where: int, *channels: str) -> asyncio.Task[Any]:
        """Start a receive on a loop, in its next step."""
        layer = self.layers[where]
        task: asyncio.Task[Any]
        if self._by_name and len(channels) == 1 and channels[0][-1] != "!":
            task = self.loops[where].create_task(_receive_named(layer, channels[0]))
        else:
            task = self.loops[where].create_task(layer.receive_async(channels))
        self.waiting.append((where, channels, task))
        return task

    def send(self, channel: str, layer: AsyncIPCChannelLayer | None = None) -> None:
        """Send the next number."""
        self._number += 1
        self.sent[channel, self._number] += 1
        drive((layer or self.outside).send(channel, {"n": self._number}))

    def send_from_loop(self, where: int, channel: str) -> None:
        """Send the next number in a callback of a loop."""
        self.loops[where].call_soon(self.send, channel, self.layers[where])

    def lock(self) -> None:
        """Let somebody else hold the lock."""
        path = f"/dev/shm/{self.outside.prefix}-messages"
        self._lock_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Let it go."""
        assert self._lock_fd is not None
        os.close(self._lock_fd)
        self._lock_fd = None

    def settle(self) -> int:
        """Run all loops until they rest."""
        total = 0
        while steps := sum(loop.settle() for loop in self.loops):
            total += steps
        return total

    def run(self, actions: list[Action], places: tuple[int, ...]) -> None:
        """Do each action before the step of its place; then settle."""
        turn = itertools.cycle(self.loops)
        for step in range(places[-1] + 1):
            for action, place in zip(actions, places, strict=True):
                if place == step:
                    action()
            any(next(turn).step() for _ in self.loops)
        self.settle()

    def problem(self) -> str | None:
        """Say what is wrong: a message lost or doubled, or somebody asleep beside one."""
        received: Counter[Received] = Counter()
        asleep = []
        for where, channels, task in self.waiting:
            if not task.done():
                asleep.append((where, channels))
            elif not task.cancelled():
                name, message = task.result()
                received[name, message["n"]] += 1
        for _, _, task in self.waiting:
            task.cancel()
        self.settle()
        self.waiting.clear()
        left: Counter[Received] = Counter()
        for layer in [*self.layers, self.outside]:
            names = {name for name, _ in self.sent}
            for channel in names | {home_of(name) for name in names}:
                while True:
                    name, message = drive(layer.receive_async([channel], block=False))
                    if message is None:
                        break
                    assert name is not None
                    left[name, message["n"]] += 1
        sent, self.sent = self.sent, Counter()
        if self.faults:
            return f"a callback failed: {self.faults}"
        if received + left != sent:
            return f"sent {dict(sent)}, received {dict(received)}, left {dict(left)}"
        for where, channels in asleep:
            for name, _ in left:
                if name in channels or home_of(name) in channels:
                    return f"on loop {where} a receive of {channels} sleeps beside {dict(left)}"
        return None

    def close(self) -> None:
        """Close loops and layers."""
        for loop, layer in zip(self.loops, self.layers, strict=True):
            loop.settle()
            layer.close_now()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def places(action_count: int, steps: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to place actions, in their order, before one of so many steps."""
    return itertools.combinations_with_replacement(range(steps), action_count)
