"""How many bytes of memory do a waiting message of 100 bytes and a membership take?

Ours: what a large number of them adds to the file in shared memory, by the blocks that the
kernel has given it. The original: the length of the pickle in its shared memory. Redis: what its
server says that it uses. All with everything that belongs to them, names included.
"""

from __future__ import annotations

import importlib
import os
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from benchmarks import ours, peers
from benchmarks.field import Field, solo
from benchmarks.harness import Bench, Goal, Sample, Unit, contender
from benchmarks.layers import DATA_BYTES, OURS, Solo
from benchmarks.original import bytes_used, original_solo
from benchmarks.processes import Worker

_BYTES: Final = Unit("B", is_rate=False)
_COUNT: Final = 200_000
_PER_CHANNEL: Final = 1_000
_REDIS_COUNT: Final = 2_000
_ORIGINAL_COUNT: Final = 300
_MEMORY_BYTES: Final = 512 * 2**20
# A message of 100 bytes, and 96 to keep it.
_MESSAGE_GOAL: Final = Goal(196)
_MEMBERSHIP_GOAL: Final = Goal(200)


# --- jobs -----------------------------------------------------------------------------------


async def grow(layer: Any, what: str, count: int) -> int:
    """The bytes that so many more messages or memberships add to the segment."""
    path = f"/dev/shm/{layer.prefix}-{what}"
    await _fill(layer, what, "first", _PER_CHANNEL)
    before = os.stat(path).st_blocks * 512
    await _fill(layer, what, "measured", count)
    return os.stat(path).st_blocks * 512 - before


async def grow_redis(subject: Solo, what: str, count: int) -> int:
    """The same, of the server's memory."""
    layer = subject.layer
    client = importlib.import_module("redis").Redis.from_url(layer.hosts[0]["address"])
    await _fill(layer, what, "first", 10)
    before = client.info("memory")["used_memory"]
    await _fill(layer, what, "measured", count)
    grown: int = client.info("memory")["used_memory"] - before
    client.close()
    return grown


async def _fill(layer: Any, what: str, name: str, count: int) -> None:
    if what == "groups":
        for _ in range(count):
            await layer.group_add(f"bench.{name}", await layer.new_channel())
        return
    for n in range(count):
        message = {"type": "bench.item", "n": n, "data": bytes(DATA_BYTES)}
        await layer.send(f"bench.{name}.{n // _PER_CHANNEL}", message)


# --- in the runner --------------------------------------------------------------------------


async def _ours(started: Worker, what: str) -> Sample:
    per_item = await started.call(grow, what, _COUNT) / _COUNT
    return Sample(per_item, [per_item])


async def _redis(started: Worker, what: str) -> Sample:
    per_item = await started.call(grow_redis, what, _REDIS_COUNT) / _REDIS_COUNT
    return Sample(per_item, [per_item])


async def _original(started: Worker, what: str) -> Sample:
    few, many = _ORIGINAL_COUNT // 3, _ORIGINAL_COUNT
    used = [await started.call(bytes_used, what, count, DATA_BYTES) for count in (few, many)]
    # The first of them is still there when the second call adds its own.
    per_item = (used[1] - used[0]) / many
    return Sample(per_item, [per_item])


async def run(bench: Bench, field: Field) -> None:
    for what, title, goal in (
        ("messages", "memory for one waiting message of 100 B", _MESSAGE_GOAL),
        ("groups", "memory for one membership", _MEMBERSHIP_GOAL),
    ):
        async with AsyncExitStack() as stack:
            bench.progress(title)
            options = {"message_memory": _MEMORY_BYTES, "group_memory": _MEMORY_BYTES}
            rows = [
                await contender(
                    stack,
                    OURS,
                    ours.solo(capacity=_PER_CHANNEL, **options),
                    partial(_ours, what=what),
                    goal,
                ),
                await field.contender(stack, peers.CORE, solo, partial(_redis, what=what)),
                await contender(
                    stack, peers.ORIGINAL, original_solo(10_000), partial(_original, what=what)
                ),
            ]
            for row in rows:
                if row.run is not None:
                    try:
                        row.samples.append(await row.run())
                    except Exception as error:
                        row.trouble = f"{type(error).__name__}: {error}"
            bench.report(title, _BYTES, rows)
