"""How many messages a second go from one process to another, small ones and large ones?

The producer sends as fast as it can and backs off for a millisecond when the channel is full;
the consumer receives one after the other and checks number and length of each.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from benchmarks import peers
from benchmarks.everybody import FLOOR, NORMAL, SPECIFIC, Others, floor_and_ours, others
from benchmarks.field import CAPACITY, Field
from benchmarks.floor import MESSAGES_AREA_BYTES
from benchmarks.harness import BEST_PEER, PER_SECOND, Bench, Goal, Sample
from benchmarks.layers import DATA_BYTES
from benchmarks.links import Pair

_RUN_S: Final = 0.3
# A size as people say it -> bytes of data.
_SIZES: Final = {
    "100 B": DATA_BYTES,
    "1 KB": 1_000,
    "10 KB": 10_000,
    "64 KB": 65_536,
    "1 MB": 1_000_000,
}
_TO_FLOOR: Final = Goal(0.8, FLOOR)
_GOALS: Final[dict[str, dict[str, tuple[Goal, ...]]]] = {
    "100 B": {SPECIFIC: (Goal(0.6, FLOOR), Goal(3, BEST_PEER), Goal(80, peers.CORE))},
    "64 KB": {SPECIFIC: (_TO_FLOOR,), NORMAL: (_TO_FLOOR,)},
    "1 MB": {SPECIFIC: (_TO_FLOOR,), NORMAL: (_TO_FLOOR,)},
}
# Under way at most: enough that a producer's back-off of a millisecond does not leave the consumer
# without work, and about the same bytes for all.
_UNDER_WAY_BYTES: Final = 16 * 2**20
_THEIR_BYTES: Final = 100 * 10**6
_MOST: Final = 100_000


async def run(bench: Bench, field: Field) -> None:
    async with AsyncExitStack() as stack:
        bench.progress("connecting")
        opened = await others(stack, field)
        for size, data_bytes in _SIZES.items():
            await _size(bench, opened, size, data_bytes)


async def _size(bench: Bench, opened: Others, size: str, data_bytes: int) -> None:
    under_way = min(CAPACITY, _UNDER_WAY_BYTES // (data_bytes + 64))
    area_bytes = MESSAGES_AREA_BYTES if size == "100 B" else _UNDER_WAY_BYTES

    async def stream(pair: Pair) -> Sample:
        return await pair.stream(data_bytes, _RUN_S, _MOST)

    async def stream_within_capacity(pair: Pair) -> Sample:
        # Several of the others drop what is beyond their capacity, and nobody hears of it.
        return await pair.stream(data_bytes, _RUN_S, min(CAPACITY, _THEIR_BYTES // data_bytes))

    async with AsyncExitStack() as stack:
        everybody = [
            *await floor_and_ours(
                stack, stream, _GOALS.get(size, {}), capacity=under_way, area_bytes=area_bytes
            ),
            *opened.contenders(stream_within_capacity),
        ]
        for one in everybody:
            one.point = (one.name, data_bytes)
        await bench.compare(f"one producer, one consumer, {size}", PER_SECOND, everybody, FLOOR)
