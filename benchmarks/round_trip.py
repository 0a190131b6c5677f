"""How long does a message to a blocked process and its answer take?

Both processes sleep in their event loops' selectors until they are rung: what is measured is
the whole path, `send`, ring, wake, `receive`, twice.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from benchmarks import ours
from benchmarks.floor import floor
from benchmarks.harness import MICROSECONDS, Bench, Goal, Sample, contender
from benchmarks.links import Pair

_ROUND_TRIPS: Final = 1_000
_GOAL: Final = Goal(ratio=1.4)


async def run(bench: Bench) -> None:
    async def round_trips(pair: Pair) -> Sample:
        return await pair.round_trips(_ROUND_TRIPS)

    async with AsyncExitStack() as stack:
        await bench.compare(
            "round trip of a small message, both blocked",
            MICROSECONDS,
            [
                await contender(stack, "floor", floor(), round_trips),
                await contender(stack, "normal", ours.link(), round_trips, _GOAL),
                await contender(
                    stack, "process-specific", ours.link(specific=True), round_trips, _GOAL
                ),
            ],
            yardstick="floor",
        )
