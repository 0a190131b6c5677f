"""How fast is `send` and `receive` within one process?

Coroutine calls in one running loop, a message of 1 KB; Channels' in-memory layer copies it
within the process, ours through shared memory.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from benchmarks import ours
from benchmarks.harness import (
    PER_SECOND,
    Bench,
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

_PAIRS: Final = 5_000
_DATA_BYTES: Final = 1_000
_GOAL: Final = Goal(ratio=1.0)


async def exchange(layer: Any, how: str, count: int) -> tuple[list[int], int]:
    """`count` times send and receive; the times in ns, and how many messages were wrong."""
    send, receive, clock = layer.send, layer.receive, time.perf_counter_ns
    channel: Any = "bench.exchange"
    if how == "process-specific":
        channel = await layer.new_channel("bench")
    channels: Any = channel
    if how == "receive_async":
        receive, channels = layer.receive_async, [channel]
    message: Message = {"type": "bench.message", "n": 0, "data": bytes(_DATA_BYTES)}
    spread_ns = []
    wrong = 0
    for n in range(count):
        message["n"] = n
        began_ns = clock()
        await send(channel, message)
        came = await receive(channels)
        spread_ns.append(clock() - began_ns)
        if how == "receive_async":
            came = came[1]
        if came != message:
            wrong += 1
    return spread_ns, wrong


def _run(how: str) -> Callable[[Worker], Awaitable[Sample]]:
    async def run(started: Worker) -> Sample:
        spread_ns, wrong = await started.call(exchange, how, _PAIRS)
        return Sample.of_mean([ns / 1e9 for ns in spread_ns], Faults(lost=wrong))

    return run


async def run(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        await bench.compare(
            "send + receive in one process, 1 KB",
            PER_SECOND,
            [
                await contender(
                    stack, "in-memory", worker(WorkerSpec(in_memory_layer)), _run("normal")
                ),
                await contender(stack, "normal", ours.solo(), _run("normal"), _GOAL),
                await contender(
                    stack, "process-specific", ours.solo(), _run("process-specific"), _GOAL
                ),
                await contender(
                    stack, "normal, receive_async", ours.solo(), _run("receive_async"), _GOAL
                ),
            ],
            yardstick="in-memory",
        )
