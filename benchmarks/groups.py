"""What do groups cost: `group_send` to members of two processes, and `group_add`?

One process sends; two others own half of the members each, every one with a coroutine that waits
in `receive`. The next send comes when every member has the one before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from benchmarks import peers
from benchmarks.field import LAYERS, Field, Options, members, solo
from benchmarks.harness import (
    BEST_PEER,
    MICROSECONDS,
    MILLISECONDS,
    PER_SECOND,
    Bench,
    Contender,
    Faults,
    Goal,
    Message,
    Sample,
)
from benchmarks.layers import DATA_BYTES, OURS, Arrivals, Members, Solo
from benchmarks.processes import Worker

_SIZES: Final = (10, 100, 1_000, 10_000)
# With these a send to ten thousand members takes many seconds.
_SMALLER: Final = {peers.POSTGRES: 1_000, peers.LITE: 100}
_RUN_S: Final = 0.4
_MOST_SENDS: Final = 30
_ADDS: Final = {OURS: 5_000, peers.IN_MEMORY: 5_000, peers.NATS: 5_000}
_FEW_ADDS: Final = 300
_CALL_GOALS: Final = {10_000: (Goal(100),), 1_000: (Goal(200),)}
_LAST_GOALS: Final = {10_000: (Goal(0.5, BEST_PEER),)}
_ADD_GOAL: Final = Goal(60_000)


# --- jobs -----------------------------------------------------------------------------------


async def send_to_group(sender: Solo, group: str, n: int) -> tuple[int, int]:
    """When the call began and when it returned, in ns."""
    message: Message = {"type": "bench.group", "n": n, "data": bytes(DATA_BYTES)}
    began_ns = time.perf_counter_ns()
    await sender.layer.group_send(group, message)
    return began_ns, time.perf_counter_ns()


async def add_and_discard(solo: Solo, count: int) -> list[int]:
    """The times of adding that many channels to a group, in ns; discarding is not timed."""
    layer = solo.layer
    names = [await layer.new_channel() for _ in range(count)]
    spread_ns, clock = [], time.perf_counter_ns
    for name in names:
        began_ns = clock()
        await layer.group_add("bench.added", name)
        spread_ns.append(clock() - began_ns)
    for name in names:
        await layer.group_discard("bench.added", name)
    return spread_ns


# --- in the runner --------------------------------------------------------------------------


class Room:
    """A worker that sends, and two that own half of the members each."""

    def __init__(self, sender: Worker, owners: list[Worker]) -> None:
        self._sender = sender
        self._owners = owners
        self._n = 0
        self._doubled = [0] * len(owners)
        # Of the group sends that `fan_out` timed, how long the calls alone took.
        self.calls: dict[int, list[Sample]] = {}

    async def join(self, sizes: list[int]) -> None:
        """Make the members of all groups; not measured."""
        halves = {_group(size): size // 2 for size in sizes}
        await asyncio.gather(*(owner.call(Members.join, halves) for owner in self._owners))

    async def fan_out(self, size: int) -> Sample:
        """The median time of group sends until the last member has it; notes that of the calls."""
        spread: list[float] = []
        calls: list[float] = []
        faults = Faults()
        began = time.monotonic()
        while len(spread) < _MOST_SENDS and (not spread or time.monotonic() - began < _RUN_S):
            self._n += 1
            waits = [
                asyncio.create_task(owner.call(Members.arrivals, self._n, size // 2))
                for owner in self._owners
            ]
            try:
                sending = self._sender.call(send_to_group, _group(size), self._n)
                began_ns, ended_ns = await sending
            finally:  # if it failed too: a worker does one thing at a time
                await asyncio.wait(waits)
            arrivals: list[Arrivals] = [wait.result() for wait in waits]
            spread.append((max(one["last_ns"] for one in arrivals) - began_ns) / 1e9)
            calls.append((ended_ns - began_ns) / 1e9)
            lost = size - sum(one["count"] for one in arrivals)
            doubled = sum(one["doubled"] for one in arrivals) - sum(self._doubled)
            faults += Faults(lost, doubled)
            self._doubled = [one["doubled"] for one in arrivals]
            if lost:
                break
        self.calls.setdefault(size, []).append(Sample.of_median(calls))
        return Sample.of_median(spread, faults)


def _group(size: int) -> str:
    return f"bench.{size}"


def _sizes(kind: str) -> list[int]:
    return [size for size in _SIZES if size <= _SMALLER.get(kind, size)]


@asynccontextmanager
async def _room(options: Options) -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        workers = [solo(options), members(options), members(options)]
        sender, *owners = [await stack.enter_async_context(one) for one in workers]
        room = Room(sender, owners)
        await room.join(_sizes(options["kind"]))
        yield room


class _Rooms:
    """A room for each layer, or the reason why there is none."""

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self._trouble: dict[str, str] = {}

    async def open(self, bench: Bench, field: Field, stack: AsyncExitStack) -> None:
        for kind in (*LAYERS, OURS):
            bench.progress(f"making the members of {kind}")

            async def keep(room: Room, kind: str = kind) -> Sample:
                self._rooms[kind] = room
                return Sample(0.0, [0.0])

            trial = await field.contender(stack, kind, _room, keep)
            if trial.run is not None:
                await trial.run()
            self._trouble[kind] = trial.trouble

    def rows(self, size: int) -> list[Contender]:
        """A row for each layer: until the last member has it."""
        made = []
        for kind, trouble in self._trouble.items():
            if size not in _sizes(kind):
                trouble = f"left out: {size:,} members take it many seconds"
            room = self._rooms.get(kind)
            made.append(
                Contender(
                    kind,
                    None if trouble or room is None else partial(room.fan_out, size),
                    _LAST_GOALS.get(size, ()) if kind == OURS else (),
                    is_peer=kind != OURS,
                    trouble=trouble,
                    point=(kind, size),
                )
            )
        return made

    def calls(self, size: int, rows: list[Contender]) -> list[Contender]:
        """The same rows: the calls alone, without the run that warmed up."""
        made = []
        for row in rows:
            goals = _CALL_GOALS.get(size, ()) if row.name == OURS else ()
            made.append(Contender(row.name, row.run, goals, row.is_peer, row.trouble))
            if row.name in self._rooms:
                made[-1].samples += self._rooms[row.name].calls.get(size, [])[1:]
        return made


async def _add(started: Worker, count: int) -> Sample:
    return Sample.of_mean([ns / 1e9 for ns in await started.call(add_and_discard, count)])


async def run(bench: Bench, field: Field) -> None:
    async with AsyncExitStack() as stack:
        rows = []
        for kind in (*LAYERS, peers.IN_MEMORY, OURS):
            add = partial(_add, count=_ADDS.get(kind, _FEW_ADDS))
            goals = (_ADD_GOAL,) if kind == OURS else ()
            rows.append(await field.contender(stack, kind, solo, add, *goals))
        await bench.compare("group_add", PER_SECOND, rows)
    async with AsyncExitStack() as stack:
        rooms = _Rooms()
        await rooms.open(bench, field, stack)
        for size in _SIZES:
            title = f"group_send to {size:,} members in two processes"
            rows = rooms.rows(size)
            await bench.compare(f"{title}, until the last has it", MILLISECONDS, rows)
            bench.report(f"{title}, the call", MICROSECONDS, rooms.calls(size, rows))
