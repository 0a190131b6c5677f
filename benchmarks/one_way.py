"""How many small messages a second go from one process to another?

The producer sends as fast as it can and backs off for a millisecond when the channel is full;
the consumer receives one after the other and checks number and length of each.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from benchmarks import ours
from benchmarks.floor import floor
from benchmarks.harness import PER_SECOND, Bench, Goal, Sample, contender
from benchmarks.links import Pair

_MESSAGES: Final = 30_000
# With type, number and msgpack's own bytes: messages of 100 bytes.
_DATA_BYTES: Final = 69
_CHUNK: Final = 100
_CAPACITY: Final = 10_000
_GOAL: Final = Goal(ratio=0.3)


async def run(bench: Bench) -> None:
    async def stream(pair: Pair) -> Sample:
        return await pair.stream(_MESSAGES, _DATA_BYTES, _CHUNK)

    async with AsyncExitStack() as stack:
        await bench.compare(
            "one producer, one consumer, 100 B",
            PER_SECOND,
            [
                await contender(stack, "floor", floor(), stream),
                await contender(
                    stack,
                    "process-specific",
                    ours.link(specific=True, capacity=_CAPACITY),
                    stream,
                    _GOAL,
                ),
                await contender(stack, "normal", ours.link(capacity=_CAPACITY), stream, _GOAL),
            ],
            yardstick="floor",
        )
