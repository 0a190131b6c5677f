"""All that can connect two processes, as contenders of the questions about two processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

from benchmarks import ours, peers, raw
from benchmarks.field import LAYERS, Field, link
from benchmarks.floor import floor
from benchmarks.harness import Contender, Goal, Sample, contender
from benchmarks.iceoryx import iceoryx
from benchmarks.links import Pair
from benchmarks.original import original_link

Run = Callable[[Pair], Awaitable[Sample]]

FLOOR: Final = "floor"
BATCHES: Final = "floor, in batches"
NORMAL: Final = "asgi_ipc, normal"
SPECIFIC: Final = "asgi_ipc, process-specific"

_RAW: Final[dict[str, Callable[[], AbstractAsyncContextManager[Pair]]]] = {
    "asyncio unix stream, msgpack": raw.unix_stream,
    peers.ZMQ: raw.zmq_ipc,
    "multiprocessing.Queue, blocking": raw.mp_queue,
    f"{peers.FIFO}, blocking": raw.faster_fifo,
    f"{peers.ICEORYX}, blocking": iceoryx,
}


async def floor_and_ours(
    stack: AsyncExitStack,
    run: Run,
    goals: dict[str, tuple[Goal, ...]],
    *,
    capacity: int,
    area_bytes: int,
) -> list[Contender]:
    """The two floors, and both kinds of channels of ours."""
    offered: dict[str, AbstractAsyncContextManager[Pair]] = {
        FLOOR: floor(area_bytes),
        BATCHES: floor(area_bytes, in_batches=True),
        NORMAL: ours.link(capacity=capacity),
        SPECIFIC: ours.link(specific=True, capacity=capacity),
    }
    return [
        await contender(stack, name, resource, run, *goals.get(name, ()))
        for name, resource in offered.items()
    ]


class Others:
    """The others, opened once for several cases."""

    def __init__(self, opened: list[tuple[Contender, list[Pair]]]) -> None:
        self._opened = opened

    def contenders(self, run: Run) -> list[Contender]:
        """New contenders for one more case."""
        return [
            Contender(
                one.name,
                (lambda pair=pairs[0]: run(pair)) if pairs else None,  # type: ignore[misc]
                is_peer=one.is_peer,
                trouble=one.trouble,
            )
            for one, pairs in self._opened
        ]


async def others(stack: AsyncExitStack, field: Field) -> Others:
    """The peers, the package before this one, and the raw ones."""
    opened: list[tuple[Contender, list[Pair]]] = []

    async def note(make: Callable[[Run], Awaitable[Contender]]) -> None:
        pairs: list[Pair] = []

        async def keep(pair: Pair) -> Sample:
            pairs.append(pair)
            return Sample(0.0, [0.0])

        one = await make(keep)
        if one.run is not None:
            await one.run()
        opened.append((one, pairs))

    for kind in LAYERS:
        await note(lambda run, kind=kind: field.contender(stack, kind, link, run))  # type: ignore[misc]
    await note(lambda run: contender(stack, peers.ORIGINAL, original_link(), run, is_peer=True))
    for name, make in _RAW.items():
        reason = field.missing(name.removesuffix(", blocking"))
        if reason:
            opened.append((Contender(name, None, trouble=reason), []))
        else:
            await note(lambda run, name=name, make=make: contender(stack, name, make(), run))  # type: ignore[misc]
    return Others(opened)
