"""How many messages a second go through one normal channel, two producers to two consumers?

Each message is for whichever consumer takes it. All numbers that arrive are compared with all
that were sent, for each producer. How a layer divides them among the consumers is its business, so
that these know only together when all have come: each notes its count in shared memory.
"""

from __future__ import annotations

import asyncio
import importlib
import mmap
import queue
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any, Final, TypedDict

from benchmarks import peers, raw
from benchmarks.field import Field, Options
from benchmarks.harness import (
    JOB_S,
    PER_SECOND,
    Bench,
    Contender,
    Faults,
    Goal,
    Message,
    Sample,
    contender,
)
from benchmarks.layers import DATA_BYTES, OURS, close, make
from benchmarks.links import QUIET_S
from benchmarks.processes import Worker, WorkerFailed, WorkerSpec, worker

_CHANNEL: Final = "bench.shared"
_RUN_S: Final = 0.4
_MOST: Final = 8_000  # below every capacity: some drop what is beyond it
_FIRST: Final = 100
_LOOK_S: Final = 0.01
_SETTLE_S: Final = 0.15  # until all consumers have subscribed, where one has to
_FIRST_SETTLE_S: Final = 1.0  # until they have connected, too
_QUEUE: Final = "multiprocessing.Queue, blocking"
_KINDS: Final = (peers.CORE, peers.NATS, peers.POSTGRES, peers.LITE, OURS)
# Where mp.Queue makes 116,000, ours is to make 80,000.
_GOAL: Final = Goal(80 / 116, _QUEUE)


class SharedLayer:
    """A process that sends to the channel or receives from it."""

    def __init__(self, **options: Any) -> None:
        self._layer = make(**options)
        self.full: type[Exception] = importlib.import_module("channels.exceptions").ChannelFull

    async def send(self, message: Message) -> None:
        """Send; raises `full`."""
        await self._layer.send(_CHANNEL, message)

    async def receive(self) -> Message | None:
        """Wait for a message."""
        message: Message = await self._layer.receive(_CHANNEL)
        return message

    async def close(self) -> None:
        """Close the layer."""
        await close(self._layer)


class SharedQueue(raw.QueueLink):
    """The same with one queue."""

    def __init__(self, dumped: str) -> None:
        self.out = self.into = raw.load_queue(dumped)

    async def receive(self) -> Message | None:  # type: ignore[override]
        """Block for a message, but not for long."""
        try:
            message: Message = self.into.get(True, 2 * _LOOK_S)
        except queue.Empty:
            return None
        return message


class Taken(TypedDict):
    """What one consumer took: numbers in its order for each producer, and when the last came."""

    numbers: list[list[int]]
    ended_ns: int


# --- jobs -----------------------------------------------------------------------------------


async def produce(shared: Any, producer: int, first: int, count: int) -> int:
    """Send that many; returns when the first was begun, in ns."""
    send, full = shared.send, shared.full
    message: Message = {"type": "bench.item", "from": producer, "n": 0, "data": bytes(DATA_BYTES)}
    began_ns = time.perf_counter_ns()
    async with asyncio.timeout(JOB_S):
        for n in range(first, first + count):
            message["n"] = n
            while True:
                try:
                    await send(message)
                    break
                except full:
                    await asyncio.sleep(0.001)
    return began_ns


async def consume(shared: Any, path: str, consumer: int, total: int) -> Taken:
    """Take what comes, until both consumers have all of it or nothing comes any more."""
    taken = Taken(numbers=[[], []], ended_ns=time.perf_counter_ns())
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 16) as memory:
        counts = memoryview(memory).cast("Q")
        taking = asyncio.create_task(_take(shared, taken))
        loop = asyncio.get_running_loop()
        seen, progress_s = -1, loop.time()
        while not taking.done():
            await asyncio.sleep(_LOOK_S)
            counts[consumer] = sum(map(len, taken["numbers"]))
            together = counts[0] + counts[1]
            if together != seen:
                seen, progress_s = together, loop.time()
            # Not at once, or what came twice would pass for what is still to come.
            elif loop.time() - progress_s > (_SETTLE_S if together >= total else QUIET_S):
                taking.cancel()
                await asyncio.wait([taking])
        counts.release()
    if not taking.cancelled():
        taking.result()  # it failed
    return taken


async def _take(shared: Any, taken: Taken) -> None:
    receive, clock, numbers = shared.receive, time.perf_counter_ns, taken["numbers"]
    while True:
        message = await receive()
        if message is None:
            await asyncio.sleep(0)
            continue
        taken["ended_ns"] = clock()
        numbers[message["from"]].append(message["n"])


# --- in the runner --------------------------------------------------------------------------


class Crossing:
    """Two producers and two consumers."""

    def __init__(self, workers: list[Worker]) -> None:
        self._producers, self._consumers = workers[:2], workers[2:]
        self._n = 0
        self._latest_s = 0.0

    async def stream(self) -> Sample:
        """The mean time per message, from first `send` to last `receive`."""
        each = min(_MOST, int(_RUN_S / self._latest_s)) // 2 if self._latest_s else _FIRST
        each = max(each, 5)
        first, self._n = self._n, self._n + each
        with tempfile.NamedTemporaryFile() as counts:
            counts.write(bytes(16))
            counts.flush()
            taking = asyncio.gather(
                *(
                    one.call(consume, counts.name, n, 2 * each)
                    for n, one in enumerate(self._consumers)
                )
            )
            await asyncio.sleep(_SETTLE_S if self._latest_s else _FIRST_SETTLE_S)
            producing = (one.call(produce, n, first, each) for n, one in enumerate(self._producers))
            began_ns = min(await asyncio.gather(*producing))
            taken = await taking
        faults = _faults(taken, range(first, first + each))
        if faults.lost == 2 * each:
            raise WorkerFailed(f"none of {2 * each} messages came")
        ended_ns = max(one["ended_ns"] for one in taken)
        self._latest_s = (ended_ns - began_ns) / 1e9 / (2 * each - faults.lost)
        return Sample(self._latest_s, [self._latest_s], faults)


def _faults(taken: list[Taken], sent: range) -> Faults:
    faults = Faults()
    for producer in range(2):
        counts: Counter[int] = Counter()
        reordered = 0
        for one in taken:
            numbers = one["numbers"][producer]
            counts.update(numbers)
            reordered += sum(b < a for a, b in pairwise(numbers))
        strangers = sum(count for n, count in counts.items() if n not in sent)
        doubled = sum(count - 1 for n, count in counts.items() if n in sent)
        lost = sum(n not in counts for n in sent)
        faults += Faults(lost, doubled + strangers, reordered)
    return faults


@asynccontextmanager
async def _crossing(spec: WorkerSpec) -> AsyncIterator[Crossing]:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(spec)) for _ in range(4)]
        yield Crossing(workers)


def _layer(options: Options) -> AbstractAsyncContextManager[Crossing]:
    return _crossing(WorkerSpec(SharedLayer, options))


@asynccontextmanager
async def _queue(make_queue: Callable[[], Any]) -> AsyncIterator[Crossing]:
    made = make_queue()
    dumped, fds = raw.dump_queue(made)
    async with _crossing(WorkerSpec(SharedQueue, {"dumped": dumped}, tuple(fds))) as crossing:
        yield crossing


async def run(bench: Bench, field: Field) -> None:
    async with AsyncExitStack() as stack:
        bench.progress("connecting")
        everybody: list[Contender] = [
            await contender(stack, _QUEUE, _queue(raw.new_mp_queue), Crossing.stream)
        ]
        fifo = f"{peers.FIFO}, blocking"
        if reason := field.missing(peers.FIFO):
            everybody.append(Contender(fifo, None, trouble=reason))
        else:
            queue = _queue(raw.new_fifo)
            everybody.append(await contender(stack, fifo, queue, Crossing.stream))
        for kind in _KINDS:
            goals = (_GOAL,) if kind == OURS else ()
            one = await field.contender(stack, kind, _layer, Crossing.stream, *goals)
            everybody.append(one)
        await bench.compare(
            "two producers, two consumers, one normal channel, 100 B",
            PER_SECOND,
            everybody,
            _QUEUE,
        )
