"""The Channels 4 backend beside channels_redis (core and pubsub) and the in-memory layer.

    python -m benchmarks.channels4 [--repetitions 3] [--json FILE]

The peers are installed into an environment of their own; the Redis server (Debian's
``redis-server``) is started here, on a unix socket. A peer that is missing is reported. Exit status
1 if something of ours was lost, doubled or reordered, or failed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import ours, peers, report
from benchmarks.groups import Arrivals, Members, send_to_group
from benchmarks.harness import (
    MICROSECONDS,
    MILLISECONDS,
    PER_SECOND,
    ROOT,
    Bench,
    Contender,
    Faults,
    Goal,
    Message,
    Sample,
    Unit,
    Worker,
    WorkerSpec,
    contender,
    worker,
)
from benchmarks.links import Pair, pair

_OURS: Final = "asgi_ipc"
_CORE: Final = "channels_redis core"
_PUBSUB: Final = "channels_redis pubsub"
_MEMORY: Final = "in-memory"
_ROUND_TRIPS: Final = 300
_MESSAGES: Final = {_OURS: 20_000, _CORE: 1_000, _PUBSUB: 4_000}
_DATA_BYTES: Final = 69
_ADDS: Final = 2_000
_SIZES: Final = (1_000, 10_000)
_SENDS: Final = {1_000: 20, 10_000: 3}
_IDLE_S: Final = 5.0
_WAITING: Final = 100
_WAKEUPS: Final = Unit(f"in {_IDLE_S:g} s", is_rate=False)


class LayerLink:
    """One end of a connection by a process-specific channel of any layer."""

    def __init__(self, **options: Any) -> None:
        self._layer = peers.layer(**options)

    @property
    def full(self) -> type[Exception]:
        """What a full channel raises."""
        error: type[Exception] = importlib.import_module("channels.exceptions").ChannelFull
        return error

    async def open(self) -> str:
        """Make the channel to receive from."""
        channel: str = await self._layer.new_channel()
        self.receive: Callable[[], Awaitable[Message]] = partial(self._layer.receive, channel)
        return channel

    def connect(self, address: str) -> None:
        """Send to that channel from now on."""
        self.send: Callable[[Message], Awaitable[None]] = partial(self._layer.send, address)


class LayerMembers(Members):
    """A process full of members, of any layer."""

    make_layer = staticmethod(peers.layer)

    async def close(self) -> None:
        """All members leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# --- jobs, run in a worker ------------------------------------------------------------------


async def add(layer: Any, count: int) -> list[int]:
    """The times of adding that many channels to a group, in ns."""
    names = [await layer.new_channel() for _ in range(count)]
    spread_ns, clock = [], time.perf_counter_ns
    for name in names:
        began_ns = clock()
        await layer.group_add("bench.added", name)
        spread_ns.append(clock() - began_ns)
    for name in names:
        await layer.group_discard("bench.added", name)
    return spread_ns


async def idle(layer: Any, receives: int, seconds: float) -> int:
    """How often the process woke up while that many receives waited."""
    names = [await layer.new_channel() for _ in range(receives)]
    tasks = [asyncio.create_task(layer.receive(name)) for name in names]
    await asyncio.sleep(1)  # until all have connected and subscribed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    await asyncio.sleep(seconds)
    woken = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before - 1  # for this sleep
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return woken


async def call_only(layer: Any, size: int, sends: int) -> list[int]:
    """The times of group sends to that many members in the same process, in ns."""
    for _ in range(size):
        await layer.group_add("bench.call", await layer.new_channel())
    spread_ns = []
    for n in range(sends):
        began_ns, ended_ns = await send_to_group(layer, "bench.call", n)
        spread_ns.append(ended_ns - began_ns)
    return spread_ns


# --- in the runner --------------------------------------------------------------------------


class Room:
    """A worker that sends, and two that own half of the members each."""

    def __init__(self, sender: Worker, owners: list[Worker]) -> None:
        self._sender = sender
        self._owners = owners
        self._n = 0
        self._doubled = [0] * len(owners)

    async def join(self) -> None:
        """Make the members of both groups."""
        halves = {f"bench.{size}": size // 2 for size in _SIZES}
        await asyncio.gather(*(owner.call(LayerMembers.join, halves) for owner in self._owners))

    async def fan_out(self, size: int, *, until_last: bool) -> Sample:
        """The median time of group sends: of the call, or until the last member has it."""
        spread, faults = [], Faults()
        for _ in range(_SENDS[size]):
            self._n += 1
            waits = [
                asyncio.create_task(owner.call(LayerMembers.arrivals, self._n, size // 2))
                for owner in self._owners
            ]
            began_ns, ended_ns = await self._sender.call(send_to_group, f"bench.{size}", self._n)
            arrivals: list[Arrivals] = await asyncio.gather(*waits)
            last_ns = max(one["last_ns"] for one in arrivals) if until_last else ended_ns
            spread.append((last_ns - began_ns) / 1e9)
            lost = size - sum(one["count"] for one in arrivals)
            doubled = sum(one["doubled"] for one in arrivals)
            faults += Faults(lost, doubled - sum(self._doubled))
            self._doubled = [one["doubled"] for one in arrivals]
        return Sample.of_median(spread, faults)


@asynccontextmanager
async def _link(options: dict[str, Any]) -> AsyncIterator[Pair]:
    spec = WorkerSpec(LayerLink, options)
    async with pair(spec, spec) as connected:
        yield connected


@asynccontextmanager
async def _room(options: dict[str, Any]) -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        specs = [WorkerSpec(peers.layer, options), *[WorkerSpec(LayerMembers, options)] * 2]
        sender, *owners = [await stack.enter_async_context(worker(spec)) for spec in specs]
        room = Room(sender, owners)
        await room.join()
        yield room


async def _add(started: Worker) -> Sample:
    return Sample.of_mean([ns / 1e9 for ns in await started.call(add, _ADDS)])


async def _call(started: Worker, size: int) -> Sample:
    spread_ns = await started.call(call_only, size, _SENDS[size])
    return Sample.of_median([ns / 1e9 for ns in spread_ns])


async def _idle(started: Worker) -> Sample:
    woken = await started.call(idle, _WAITING, _IDLE_S)
    return Sample(woken, [woken])


class _Layers:
    """Who takes part, and with what options."""

    def __init__(self, shared: dict[str, Any], redis_url: str, trouble: str) -> None:
        hosts = {"hosts": [redis_url], "capacity": 10_000}
        self.options = {
            _CORE: {"kind": _CORE, **hosts},
            _PUBSUB: {"kind": _PUBSUB, **hosts},
            _OURS: {"kind": _OURS, "capacity": 10_000, **shared},
            _MEMORY: {"kind": _MEMORY, "capacity": 10_000},
        }
        self._trouble = trouble

    async def contender(
        self,
        stack: AsyncExitStack,
        kind: str,
        make: Callable[[dict[str, Any]], Any],
        run: Callable[[Any], Awaitable[Sample]],
        goal: Goal | None = None,
        name: str = "",
    ) -> Contender:
        """One row; one with trouble if its peer is missing."""
        if self._trouble and kind in (_CORE, _PUBSUB):
            return Contender(name or kind, None, goal, trouble=self._trouble)
        return await contender(stack, name or kind, make(self.options[kind]), run, goal)


def _solo(options: dict[str, Any]) -> Any:
    return worker(WorkerSpec(peers.layer, options))


async def _pairs(bench: Bench, layers: _Layers) -> None:
    async with AsyncExitStack() as stack:
        await bench.compare(
            "round trip between two processes",
            MICROSECONDS,
            [
                await layers.contender(
                    stack,
                    kind,
                    _link,
                    lambda link: link.round_trips(_ROUND_TRIPS),
                    Goal(ratio=0.45) if kind == _OURS else None,
                )
                for kind in (_CORE, _PUBSUB, _OURS)
            ],
            yardstick=_PUBSUB,
        )
        await bench.compare(
            "one way, 100 B",
            PER_SECOND,
            [
                await layers.contender(
                    stack,
                    kind,
                    _link,
                    partial(Pair.stream, count=count, data_bytes=_DATA_BYTES, chunk=100),
                    Goal(ratio=80) if kind == _OURS else None,
                )
                for kind, count in _MESSAGES.items()
            ],
            yardstick=_CORE,
        )


async def _groups(bench: Bench, layers: _Layers) -> None:
    async with AsyncExitStack() as stack:
        rooms: list[tuple[str, Room | None, str]] = []
        for kind in (_CORE, _PUBSUB, _OURS):
            bench.progress(f"making the members of {kind}")
            made: list[Room] = []
            trial = await layers.contender(stack, kind, _room, partial(_keep, made))
            if trial.run is not None:
                await trial.run()
            rooms.append((kind, made[0] if made else None, trial.trouble))

        def rows(size: int, until_last: bool, goal: Goal) -> list[Contender]:
            return [
                Contender(
                    kind,
                    partial(room.fan_out, size, until_last=until_last) if room else None,
                    goal if kind == _OURS else None,
                    trouble=trouble,
                )
                for kind, room, trouble in rooms
            ]

        for size in _SIZES:
            title = f"group_send to {size:,} members in two processes"
            await bench.compare(
                f"{title}, the call", MICROSECONDS, rows(size, False, Goal(figure=200))
            )
            await bench.compare(
                f"{title}, until the last has it",
                MILLISECONDS,
                rows(size, True, Goal(ratio=0.6)),
                yardstick=_PUBSUB,
            )


async def _keep(made: list[Room], room: Room) -> Sample:
    made.append(room)
    return Sample(0.0, [0.0])


async def _alone(bench: Bench, layers: _Layers) -> None:
    kinds = (_CORE, _PUBSUB, _MEMORY, _OURS)
    async with AsyncExitStack() as stack:
        goal = Goal(figure=40_000)
        await bench.compare(
            "group_add",
            PER_SECOND,
            [
                await layers.contender(stack, kind, _solo, _add, goal if kind == _OURS else None)
                for kind in kinds
            ],
        )
        await bench.compare(
            "group_send to 1,000 members in the same process, the call",
            MICROSECONDS,
            [
                await layers.contender(stack, kind, _solo, partial(_call, size=1_000))
                for kind in (_MEMORY, _OURS)
            ],
            repetitions=1,
        )
        await bench.compare(
            f"wakeups of an idle process, {_WAITING} receives waiting",
            _WAKEUPS,
            [
                await layers.contender(
                    stack, kind, _solo, _idle, Goal(figure=2) if kind == _OURS else None
                )
                for kind in kinds
            ],
            repetitions=1,
        )


async def _measure(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        url, trouble = "", ""
        try:
            url = await stack.enter_async_context(peers.redis_server())
        except (FileNotFoundError, RuntimeError) as error:
            trouble = str(error)
        shared = await stack.enter_async_context(ours.segments())
        layers = _Layers(shared, url, trouble)
        for bench.question in ("pairs", "alone", "groups"):
            part = {"pairs": _pairs, "alone": _alone, "groups": _groups}[bench.question]
            await part(bench, layers)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.channels4", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="of each (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.here:
        interpreter = str(peers.ensure())
        os.chdir(ROOT)
        os.execv(interpreter, [interpreter, "-m", "benchmarks.channels4", "--here", *sys.argv[1:]])

    def progress(what: str, _detail: str) -> None:
        if what != shown[0]:
            shown[0] = what
            print(what, file=sys.stderr, flush=True)

    shown = [""]
    bench = Bench(arguments.repetitions, progress)
    machine = report.machine()
    asyncio.run(_measure(bench))
    command = f"python -m benchmarks.channels4 --repetitions {arguments.repetitions}"
    print(report.markdown(machine, command, bench.cases))
    if arguments.json:
        figures = report.as_json(machine, command, bench.cases)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    mine = [row for case in bench.cases for row in case.contenders if row.name == _OURS]
    return int(any(row.trouble or row.faults != Faults() for row in mine))


if __name__ == "__main__":
    # Workers import jobs by the name of their module, which must not be __main__.
    from benchmarks import channels4

    sys.exit(channels4.main())
