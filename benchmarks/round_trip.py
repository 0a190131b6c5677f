"""How long does a message to a waiting process and its answer take?

What is measured is the whole path, `send`, ring, wake, `receive`, twice. By default ours look
again for a moment before they sleep; *asleep* are those that may not (`spin_rounds=0`), whose
processes sleep in their event loops' selectors until they are rung, as all the others do.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from benchmarks import ours
from benchmarks.everybody import FLOOR, NORMAL, SPECIFIC, floor_and_ours, others
from benchmarks.field import Field
from benchmarks.floor import MESSAGES_AREA_BYTES
from benchmarks.harness import BEST_PEER, MICROSECONDS, Bench, Goal, Sample, contender
from benchmarks.links import Pair

_RUN_S: Final = 0.25
_MOST: Final = 1_000
_TO_FLOOR: Final = Goal(1.2, FLOOR)
_GOALS: Final = {NORMAL: (_TO_FLOOR,), SPECIFIC: (_TO_FLOOR, Goal(0.45, BEST_PEER))}


async def run(bench: Bench, field: Field) -> None:
    async def round_trips(pair: Pair) -> Sample:
        return await pair.round_trips(_RUN_S, _MOST)

    async with AsyncExitStack() as stack:
        bench.progress("connecting")
        everybody = [
            *await floor_and_ours(
                stack, round_trips, _GOALS, capacity=100, area_bytes=MESSAGES_AREA_BYTES
            ),
            *[
                await contender(
                    stack,
                    f"{name}, asleep",
                    ours.link(specific=name == SPECIFIC, capacity=100, spin_rounds=0),
                    round_trips,
                    *goals,
                )
                for name, goals in _GOALS.items()
            ],
            *(await others(stack, field)).contenders(round_trips),
        ]
        await bench.compare(
            "round trip of a small message, both waiting", MICROSECONDS, everybody, FLOOR
        )
