"""How fast is `send` and `receive` within one process?

Coroutine calls in one running loop, a message of 1 KB; Channels' in-memory layer copies it
within the process, ours through shared memory.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from benchmarks import ours, peers
from benchmarks.field import Field
from benchmarks.harness import PER_SECOND, Bench, Faults, Goal, Message, Sample, contender
from benchmarks.layers import Solo
from benchmarks.processes import Worker, WorkerSpec, worker

_PAIRS: Final = 5_000
_DATA_BYTES: Final = 1_000
_IN_MEMORY: Final = {"kind": peers.IN_MEMORY}
_GOAL: Final = Goal(1.5, peers.IN_MEMORY)


async def exchange(subject: Any, how: str, count: int) -> tuple[list[int], int]:
    """`count` times send and receive; the times in ns, and how many messages were wrong."""
    layer = getattr(subject, "layer", subject)
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


async def run(bench: Bench, _field: Field) -> None:
    async with AsyncExitStack() as stack:
        await bench.compare(
            "send + receive in one process, 1 KB",
            PER_SECOND,
            [
                await contender(
                    stack, peers.IN_MEMORY, worker(WorkerSpec(Solo, _IN_MEMORY)), _run("normal")
                ),
                await contender(stack, "asgi_ipc, normal", ours.solo(), _run("normal"), _GOAL),
                await contender(
                    stack,
                    "asgi_ipc, process-specific",
                    ours.solo(),
                    _run("process-specific"),
                    _GOAL,
                ),
                await contender(
                    stack,
                    "asgi_ipc, normal, receive_async",
                    ours.solo(),
                    _run("receive_async"),
                    _GOAL,
                ),
            ],
            yardstick=peers.IN_MEMORY,
        )
