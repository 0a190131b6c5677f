"""Does `send` slow down when much is waiting elsewhere, or when there are many channels?

Ours against ours: an empty layer, one with 100,000 messages parked in a hundred other channels,
one with 10,000 channels of one message each.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from benchmarks import ours
from benchmarks.harness import (
    MICROSECONDS,
    Bench,
    Faults,
    Goal,
    Message,
    Sample,
    Worker,
    contender,
)

_SENDS: Final = 5_000
# Sent in a row before the channel is emptied again, which is not measured.
_ROW: Final = 100
_DATA_BYTES: Final = 69
_CAPACITY: Final = 2_000
_MEMORY_BYTES: Final = 256 * 2**20
_GOAL: Final = Goal(ratio=1.25)


async def park(layer: Any, channels: int, messages: int) -> None:
    """Put `messages` into each of `channels` channels that nobody reads."""
    message: Message = {"type": "bench.parked", "data": bytes(_DATA_BYTES)}
    for channel in range(channels):
        for _ in range(messages):
            await layer.send(f"bench.parked.{channel}", message)


async def send_and_empty(layer: Any, count: int) -> tuple[list[int], int]:
    """The times of `count` sends in ns, and how many messages came back wrong."""
    channel, clock = "bench.measured", time.perf_counter_ns
    message: Message = {"type": "bench.item", "n": 0, "data": bytes(_DATA_BYTES)}
    spread_ns = []
    wrong = 0
    for row in range(0, count, _ROW):
        for n in range(row, row + _ROW):
            message["n"] = n
            began_ns = clock()
            await layer.send(channel, message)
            spread_ns.append(clock() - began_ns)
        for n in range(row, row + _ROW):
            _, came = await layer.receive_async([channel], block=False)
            if came is None or came["n"] != n:
                wrong += 1
    return spread_ns, wrong


@asynccontextmanager
async def _layer(channels: int = 0, messages: int = 0) -> AsyncIterator[Worker]:
    async with ours.solo(capacity=_CAPACITY, message_memory=_MEMORY_BYTES, expiry=3600) as started:
        await started.call(park, channels, messages)
        yield started


async def _run(started: Worker) -> Sample:
    spread_ns, wrong = await started.call(send_and_empty, _SENDS)
    return Sample.of_mean([ns / 1e9 for ns in spread_ns], Faults(lost=wrong))


async def run(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        bench.progress("parking messages")
        await bench.compare(
            "send, 100 B, beside a backlog",
            MICROSECONDS,
            [
                await contender(stack, "empty", _layer(), _run),
                await contender(stack, "100,000 messages", _layer(100, 1_000), _run, _GOAL),
                await contender(stack, "10,000 channels", _layer(10_000, 1), _run, _GOAL),
            ],
            yardstick="empty",
        )
