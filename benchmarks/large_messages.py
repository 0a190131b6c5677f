"""How many messages of 1 MB a second go from one process to another?"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from benchmarks import ours
from benchmarks.floor import floor
from benchmarks.harness import PER_SECOND, Bench, Goal, Sample, contender
from benchmarks.links import Pair

_MESSAGES: Final = 300
_DATA_BYTES: Final = 10**6
_CHUNK: Final = 10
# Messages under way: at a millisecond each, enough that a producer's back-off of one does not
# leave the consumer without work, and the same for both.
_CAPACITY: Final = 15
_AREA_BYTES: Final = 16 * 2**20
_GOAL: Final = Goal(ratio=0.6)


async def run(bench: Bench) -> None:
    async def stream(pair: Pair) -> Sample:
        return await pair.stream(_MESSAGES, _DATA_BYTES, _CHUNK)

    async with AsyncExitStack() as stack:
        await bench.compare(
            "one producer, one consumer, 1 MB",
            PER_SECOND,
            [
                await contender(stack, "floor", floor(_AREA_BYTES), stream),
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
