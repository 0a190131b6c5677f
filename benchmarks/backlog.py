"""Does `send` slow down when much is waiting elsewhere, or when there are many channels?

A message is sent to one channel while others hold messages that nobody reads.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from benchmarks import ours, peers
from benchmarks.field import Field, Options, solo
from benchmarks.harness import (
    MICROSECONDS,
    Bench,
    Contender,
    Faults,
    Goal,
    Message,
    Sample,
    contender,
)
from benchmarks.layers import DATA_BYTES, Solo
from benchmarks.original import original_solo, send_and_receive
from benchmarks.original import park as park_original
from benchmarks.processes import Worker, WorkerSpec, worker

_SENDS: Final = 5_000
# Sent in a row before the channel is emptied again, which is not measured.
_ROW: Final = 100
_CAPACITY: Final = 2_000
_MEMORY_BYTES: Final = 256 * 2**20
_EMPTY: Final = "asgi_ipc, nothing"
_GOAL: Final = Goal(1.1, _EMPTY)
_BACKLOGS: Final = (1_000, 10_000, 100_000)
# The peers are shown as far as filling them takes seconds, not minutes.
_REDIS_BACKLOGS: Final = (0, 1_000)
_ORIGINAL_BACKLOGS: Final = (0, 1_000, 10_000)
_PEER_SENDS: Final = {peers.CORE: 300, peers.ORIGINAL: 10}


# --- jobs -----------------------------------------------------------------------------------


async def park(layer: Any, channels: int, messages: int) -> None:
    """Put `messages` into each of `channels` channels that nobody reads."""
    message: Message = {"type": "bench.parked", "data": bytes(DATA_BYTES)}
    for channel in range(channels):
        for _ in range(messages):
            await layer.send(f"bench.parked.{channel}", message)


async def send_and_empty(layer: Any, count: int) -> tuple[list[int], int]:
    """The times of `count` sends in ns, and how many messages came back wrong."""
    channel, clock = "bench.measured", time.perf_counter_ns
    message: Message = {"type": "bench.item", "n": 0, "data": bytes(DATA_BYTES)}
    spread_ns = []
    wrong = 0
    for row in range(0, count, _ROW):
        end = min(count, row + _ROW)
        for n in range(row, end):
            message["n"] = n
            began_ns = clock()
            await layer.send(channel, message)
            spread_ns.append(clock() - began_ns)
        for n in range(row, end):
            if (await layer.receive(channel))["n"] != n:
                wrong += 1
    return spread_ns, wrong


async def park_in(solo: Solo, channels: int, messages: int) -> None:
    await park(solo.layer, channels, messages)


async def send_in(solo: Solo, count: int) -> tuple[list[int], int]:
    return await send_and_empty(solo.layer, count)


# --- in the runner --------------------------------------------------------------------------


@asynccontextmanager
async def _ours(channels: int, messages: int) -> AsyncIterator[Worker]:
    async with ours.solo(capacity=_CAPACITY, message_memory=_MEMORY_BYTES, expiry=3600) as started:
        await started.call(park, channels, messages)
        yield started


@asynccontextmanager
async def _in_memory(messages: int) -> AsyncIterator[Worker]:
    options = {"kind": peers.IN_MEMORY, "capacity": _CAPACITY}
    async with worker(WorkerSpec(Solo, options)) as started:
        await started.call(park_in, messages // 1_000, 1_000)
        yield started


@asynccontextmanager
async def _redis(options: Options, messages: int) -> AsyncIterator[Worker]:
    prefix = f"bench{messages}"  # one server for both, so each has names of its own
    async with solo({**options, "prefix": prefix, "expiry": 3600}) as started:
        await started.call(park_in, 1, messages)
        yield started


@asynccontextmanager
async def _original(messages: int) -> AsyncIterator[Worker]:
    async with original_solo() as started:
        await started.call(park_original, messages, DATA_BYTES)
        yield started


async def _send(started: Worker) -> Sample:
    spread_ns, wrong = await started.call(send_and_empty, _SENDS)
    return Sample.of_mean([ns / 1e9 for ns in spread_ns], Faults(lost=wrong))


async def _send_in(started: Worker, count: int = _SENDS) -> Sample:
    spread_ns, wrong = await started.call(send_in, count)
    return Sample.of_mean([ns / 1e9 for ns in spread_ns], Faults(lost=wrong))


async def _send_original(started: Worker) -> Sample:
    count = _PEER_SENDS[peers.ORIGINAL]
    spread_ns = await started.call(send_and_receive, count, DATA_BYTES)
    return Sample.of_mean([ns / 1e9 for ns in spread_ns])


async def _our_rows(stack: AsyncExitStack) -> list[Contender]:
    rows = [await contender(stack, _EMPTY, _ours(0, 0), _send)]
    for messages in _BACKLOGS:
        resource = _ours(messages // 1_000, 1_000)
        goals = (_GOAL,) if messages == max(_BACKLOGS) else ()
        name = f"asgi_ipc, {messages:,} messages"
        rows.append(await contender(stack, name, resource, _send, *goals))
    for row, messages in zip(rows, (0, *_BACKLOGS), strict=True):
        row.point = ("asgi_ipc", messages)
    name = "asgi_ipc, 10,000 channels"
    return [*rows, await contender(stack, name, _ours(10_000, 1), _send, _GOAL)]


async def _other_rows(stack: AsyncExitStack, field: Field) -> list[Contender]:
    rows = []
    for messages in (0, *_BACKLOGS):
        name = f"{peers.IN_MEMORY}, {messages:,} messages"
        rows.append(await contender(stack, name, _in_memory(messages), _send_in))
        rows[-1].point = (peers.IN_MEMORY, messages)
    for messages in _REDIS_BACKLOGS:
        resource = partial(_redis, messages=messages)
        run = partial(_send_in, count=_PEER_SENDS[peers.CORE])
        row = await field.contender(stack, peers.CORE, resource, run)
        row.name, row.point = f"{peers.CORE}, {messages:,} messages", (peers.CORE, messages)
        rows.append(row)
    for messages in _ORIGINAL_BACKLOGS:
        name = f"{peers.ORIGINAL}, {messages:,} messages"
        rows.append(await contender(stack, name, _original(messages), _send_original))
        rows[-1].point = (peers.ORIGINAL, messages)
    return rows


async def run(bench: Bench, field: Field) -> None:
    async with AsyncExitStack() as stack:
        bench.progress("parking messages")
        rows = [*await _our_rows(stack), *await _other_rows(stack, field)]
        await bench.compare("send, 100 B, beside a backlog", MICROSECONDS, rows, _EMPTY)
