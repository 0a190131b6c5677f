"""Two processes and a message each way: what a contender offers, and the jobs on it.

Every message carries its number under "n", counted on over all runs of a link, so that one
left over from an earlier run shows as doubled and a missing one as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Final, Protocol, TypedDict

from benchmarks.harness import JOB_S, Faults, Message, Sample, account
from benchmarks.processes import Worker, WorkerFailed, WorkerSpec, worker

# What a producer does about a full channel. asyncio's selector sleeps no less than this; the
# links are deep enough that the consumer still has work when the producer wakes.
_BACK_OFF_S: Final = 0.001
# What does not come for this long does not come.
QUIET_S: Final = 4.0
# The first run of a pair is this long; the others take as long as a run should.
_FIRST_COUNT: Final = 100
_FEWEST: Final = 5


class Link(Protocol):
    """One end of a connection between two processes."""

    @property
    def full(self) -> type[Exception]:
        """What `send` raises when the other end is too far behind."""

    async def open(self) -> str:
        """Get ready to receive; returns what the other end must `connect` to."""

    def connect(self, address: str) -> None:
        """Send to this address from now on."""

    def send(self, message: Message, /) -> Awaitable[None]:
        """Send; raises `full`."""

    def receive(self) -> Awaitable[Message]:
        """Wait for the next message."""


class Received(TypedDict):
    """What a receiving job saw, with the times of CLOCK_MONOTONIC, one for all processes."""

    ended_ns: int
    spread_ns: list[float]
    surprises: list[tuple[int, int]]
    end: int


# --- jobs, run in a worker ------------------------------------------------------------------


async def open_link(link: Link) -> str:
    return await link.open()


async def connect_link(link: Link, address: str) -> None:
    link.connect(address)


async def ping(link: Link, first: int, count: int) -> Received:
    """Send, wait for the answer, time both together; `count` times."""
    send, receive, clock = link.send, link.receive, time.perf_counter_ns
    message: Message = {"type": "bench.ping", "n": 0}
    spread_ns: list[float] = []
    surprises = []
    loop = asyncio.get_running_loop()
    ended_ns, expected = clock(), first
    try:
        async with asyncio.timeout(QUIET_S) as quiet:
            for n in range(first, first + count):
                message["n"] = n
                began_ns = clock()
                await send(message)
                answer = await receive()
                ended_ns = clock()
                spread_ns.append(ended_ns - began_ns)
                quiet.reschedule(loop.time() + QUIET_S)
                if answer["n"] != n:
                    surprises.append((answer["n"], n))
                expected = n + 1
    except TimeoutError:
        pass  # what did not come is counted as lost
    return Received(ended_ns=ended_ns, spread_ns=spread_ns, surprises=surprises, end=expected)


async def pong(link: Link, count: int) -> None:
    """Send back what comes; `count` times."""
    send, receive, loop = link.send, link.receive, asyncio.get_running_loop()
    try:
        async with asyncio.timeout(QUIET_S) as quiet:
            for _ in range(count):
                await send(await receive())
                quiet.reschedule(loop.time() + QUIET_S)
    except TimeoutError:
        pass  # `ping` counts it


async def produce(link: Link, first: int, count: int, data_bytes: int) -> int:
    """Send `count` messages as fast as they go; returns when the first was begun, in ns."""
    send, full = link.send, link.full
    message: Message = {"type": "bench.item", "n": 0, "data": bytes(data_bytes)}
    began_ns = time.perf_counter_ns()
    try:
        async with asyncio.timeout(JOB_S):
            for n in range(first, first + count):
                message["n"] = n
                while True:
                    try:
                        await send(message)
                    except full:
                        await asyncio.sleep(_BACK_OFF_S)
                    else:
                        break
    except TimeoutError:
        pass  # `consume` counts it
    return began_ns


async def consume(link: Link, first: int, count: int, data_bytes: int, chunk: int) -> Received:
    """Receive `count` messages, checking each; observe the time of every `chunk` of them.

    Ends when nothing has come for a while: what is missing then is lost.
    """
    receive, clock, loop = link.receive, time.perf_counter_ns, asyncio.get_running_loop()
    surprises = []
    chunk_ends_ns: list[int] = []
    ended_ns, expected, end = clock(), first, first + count
    chunk_end = first + chunk
    try:
        async with asyncio.timeout(QUIET_S) as quiet:
            while expected < end:
                message = await receive()
                n = message["n"]
                if n != expected or len(message["data"]) != data_bytes:
                    surprises.append((n, expected))
                if n >= expected:
                    expected = n + 1
                    if expected >= chunk_end:
                        chunk_ends_ns.append(clock())
                        chunk_end += chunk
                        quiet.reschedule(loop.time() + QUIET_S)
            ended_ns = clock()
    except TimeoutError:
        ended_ns = chunk_ends_ns[-1] if chunk_ends_ns else clock()
    spread_ns = [(after - before) / chunk for before, after in pairwise(chunk_ends_ns)]
    return Received(ended_ns=ended_ns, spread_ns=spread_ns, surprises=surprises, end=expected)


# --- in the runner --------------------------------------------------------------------------


class Pair:
    """Two workers at the two ends of a link."""

    def __init__(self, first: Worker, second: Worker) -> None:
        self._first = first
        self._second = second
        self._n = 0
        self._latest_s: dict[str, float] = {}

    async def connect(self) -> None:
        """Tell each end what the other is called."""
        for one, other in ((self._first, self._second), (self._second, self._first)):
            await other.call(connect_link, await one.call(open_link))

    def _count(self, what: str, at_first: int, run_s: float, most: int) -> int:
        """How many messages to send now, so that a run takes so long."""
        if what not in self._latest_s:
            return min(most, at_first)
        return max(_FEWEST, min(most, int(run_s / self._latest_s[what])))

    async def round_trips(self, run_s: float, most: int) -> Sample:
        """The median time of a round trip, of at most `most` in a row that take about `run_s`."""
        count = self._count("round trip", _FEWEST, run_s, most)
        first, self._n = self._n, self._n + count
        _, received = await asyncio.gather(
            self._second.call(pong, count), self._first.call(ping, first, count)
        )
        if not received["spread_ns"]:
            raise WorkerFailed(f"none of {count} messages came back")
        spread = [ns / 1e9 for ns in received["spread_ns"]]
        sample = Sample.of_median(spread, _faults(received, first, count))
        self._latest_s["round trip"] = sample.seconds
        return sample

    async def stream(self, data_bytes: int, run_s: float, most: int) -> Sample:
        """The mean time per message of a stream, from first `send` to last `receive`."""
        what = f"stream of {data_bytes}"
        count = self._count(what, _FIRST_COUNT, run_s, most)
        first, self._n = self._n, self._n + count
        chunk = max(1, min(100, count // 10))
        received, began_ns = await asyncio.gather(
            self._second.call(consume, first, count, data_bytes, chunk),
            self._first.call(produce, first, count, data_bytes),
        )
        faults = _faults(received, first, count)
        if faults.lost == count:
            raise WorkerFailed(f"none of {count} messages came")
        seconds = (received["ended_ns"] - began_ns) / 1e9 / (count - faults.lost)
        self._latest_s[what] = seconds
        spread = [ns / 1e9 for ns in received["spread_ns"]] or [seconds]
        return Sample(seconds, spread, faults)


@asynccontextmanager
async def pair(first: WorkerSpec, second: WorkerSpec) -> AsyncIterator[Pair]:
    """Two connected workers for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(spec)) for spec in (first, second)]
        # Left to the scheduler, two processes that take turns end up now on one processor, now on
        # two, with round trips of 28 and 115 µs for the floor: no ratio survives that.
        for index, started in enumerate(workers):
            started.pin(index)
        connected = Pair(*workers)
        await connected.connect()
        yield connected


def _faults(received: Received, first: int, count: int) -> Faults:
    return account(first, count, [(a, b) for a, b in received["surprises"]], received["end"])
