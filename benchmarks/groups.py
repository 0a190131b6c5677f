"""What do groups cost: `group_send` to many members of one process, and `group_add`?

One process sends; another owns the members, all under one home, each with a coroutine that
waits in `receive`. The next send comes when every member has the one before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypedDict

from asgi_ipc.aio import AsyncIPCChannelLayer
from benchmarks import ours
from benchmarks.harness import (
    JOB_S,
    MICROSECONDS,
    MILLISECONDS,
    PER_SECOND,
    Bench,
    Contender,
    Faults,
    Goal,
    Message,
    Sample,
    Worker,
    WorkerSpec,
    contender,
    worker,
)
from benchmarks.in_memory import in_memory_layer

_SIZES: Final = (1_000, 10_000)
_DELIVERIES_PER_RUN: Final = 30_000
_ADDS: Final = 5_000
_DATA_BYTES: Final = 69
_CALL_GOAL: Final = Goal(figure=200)
_ADD_GOAL: Final = Goal(figure=40_000)


class Arrivals(TypedDict):
    """What all members together saw of one message."""

    count: int
    doubled: int
    last_ns: int


class Members:
    """The process that owns the members."""

    def __init__(self, **options: Any) -> None:
        self._layer = self.make_layer(**options)
        self._tasks: list[asyncio.Task[None]] = []
        self._count: Counter[int] = Counter()
        self._doubled: Counter[int] = Counter()
        self._last_ns = 0
        self._awaited = (0, 0)
        self._complete = asyncio.Event()

    @staticmethod
    def make_layer(**options: Any) -> Any:
        """The layer whose members they are."""
        return AsyncIPCChannelLayer(**options)

    async def join(self, groups: dict[str, int]) -> None:
        """As many channels as the largest group has members; the first of them are in all."""
        names = [await self._layer.new_channel("bench") for _ in range(max(groups.values()))]
        for group, size in groups.items():
            for name in names[:size]:
                await self._layer.group_add(group, name)
        self._tasks = [asyncio.create_task(self._listen(name)) for name in names]

    async def _listen(self, name: str) -> None:
        """One member."""
        newest = -1
        while True:
            message = await self._layer.receive(name)
            n = message["n"]
            if n <= newest:
                self._doubled[n] += 1
                continue
            newest = n
            self._count[n] += 1
            self._last_ns = time.perf_counter_ns()
            if self._awaited == (n, self._count[n]):
                self._complete.set()

    async def arrivals(self, n: int, members: int) -> Arrivals:
        """Wait until that many members have message `n`, or for too long."""
        self._awaited = (n, members)
        self._complete.clear()
        if self._count[n] < members:
            with suppress(TimeoutError):  # what did not come is counted as lost
                await asyncio.wait_for(self._complete.wait(), JOB_S)
        return Arrivals(
            count=self._count.pop(n), doubled=self._doubled.total(), last_ns=self._last_ns
        )

    async def close(self) -> None:
        """All members leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._layer.close()


async def send_to_group(layer: Any, group: str, n: int) -> tuple[int, int]:
    """When the call began and when it returned, in ns."""
    message: Message = {"type": "bench.group", "n": n, "data": bytes(_DATA_BYTES)}
    began_ns = time.perf_counter_ns()
    await layer.group_send(group, message)
    return began_ns, time.perf_counter_ns()


async def add_and_discard(layer: Any, adds: int) -> list[int]:
    """The times of adding that many channels to a new group, in ns; discarding is not timed."""
    names = [await layer.new_channel("bench") for _ in range(adds)]
    spread_ns, clock = [], time.perf_counter_ns
    for name in names:
        began_ns = clock()
        await layer.group_add("bench.added", name)
        spread_ns.append(clock() - began_ns)
    for name in names:
        await layer.group_discard("bench.added", name)
    return spread_ns


class Room:
    """A worker that sends and a worker full of members, seen from the runner."""

    def __init__(self, sender: Worker, owner: Worker) -> None:
        self._sender = sender
        self._owner = owner
        self._n = 0
        self._doubled = 0

    async def join(self) -> None:
        """Make the members of all groups; not measured."""
        await self._owner.call(Members.join, {_group(size): size for size in _SIZES})

    async def fan_out(self, size: int, *, until_last: bool) -> Sample:
        """The median time of `group_send`s: of the call, or until the last member has it."""
        spread = []
        faults = Faults()
        for _ in range(_DELIVERIES_PER_RUN // size):
            self._n += 1
            began_ns, ended_ns = await self._sender.call(send_to_group, _group(size), self._n)
            arrivals = await self._owner.call(Members.arrivals, self._n, size)
            spread.append(((arrivals["last_ns"] if until_last else ended_ns) - began_ns) / 1e9)
            faults += Faults(size - arrivals["count"], arrivals["doubled"] - self._doubled)
            self._doubled = arrivals["doubled"]
        return Sample.of_median(spread, faults)


def _group(size: int) -> str:
    return f"bench.{size}"


@asynccontextmanager
async def _room() -> AsyncIterator[Room]:
    async with (
        ours.segments() as shared,
        worker(WorkerSpec(AsyncIPCChannelLayer, shared)) as sender,
        worker(WorkerSpec(Members, shared)) as owner,
    ):
        sender.pin(0)
        owner.pin(1)
        room = Room(sender, owner)
        await room.join()
        yield room


async def _adds(started: Worker) -> Sample:
    spread_ns = await started.call(add_and_discard, _ADDS)
    return Sample.of_mean([ns / 1e9 for ns in spread_ns])


async def run(bench: Bench) -> None:
    bench.progress("making the members")
    async with _room() as room:
        await bench.compare(
            "group_send to members of one home, the call",
            MICROSECONDS,
            [
                Contender(
                    f"{size:,} members", partial(room.fan_out, size, until_last=False), _CALL_GOAL
                )
                for size in _SIZES
            ],
        )
        await bench.compare(
            "group_send to members of one home, until the last has it",
            MILLISECONDS,
            [
                Contender(f"{size:,} members", partial(room.fan_out, size, until_last=True))
                for size in _SIZES
            ],
            repetitions=2,
        )
    async with AsyncExitStack() as stack:
        await bench.compare(
            "group_add",
            PER_SECOND,
            [
                await contender(stack, "in-memory", worker(WorkerSpec(in_memory_layer)), _adds),
                await contender(stack, "asgi_ipc", ours.solo(), _adds, _ADD_GOAL),
            ],
            yardstick="in-memory",
        )
