"""What does a process cost that waits for messages which do not come?

All of them wait at the same time, each in a process of its own: they do nothing, after all.
"""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack
from typing import Any, Final

from benchmarks import peers
from benchmarks.field import LAYERS, Field, solo
from benchmarks.harness import Bench, Contender, Goal, Sample, Unit, contender
from benchmarks.layers import CONNECT_S, OURS, Solo
from benchmarks.processes import Worker, WorkerSpec, worker

_IDLE_S: Final = 10.0
_WAITING: Final = 100
_WAKEUPS: Final = Unit(f"in {_IDLE_S:g} s", is_rate=False)
_CPU: Final = Unit("ms", is_rate=False, per_second=1e3)
_NOTHING: Final = "an event loop alone"
_CPU_GOAL: Final = Goal(0.3)
_WAKEUPS_GOAL: Final = Goal(0)


# --- jobs -----------------------------------------------------------------------------------


async def idle(subject: Solo | object, receives: int, seconds: float) -> tuple[int, float]:
    """How often the process woke up while that many receives waited, and its CPU seconds."""
    layer: Any = getattr(subject, "layer", None)
    names = [await layer.new_channel() for _ in range(receives)] if layer else []
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(layer.receive(name)))
        if len(tasks) == 1:
            await asyncio.sleep(CONNECT_S)  # see Members.join
    await asyncio.sleep(2)  # until all have subscribed
    woken, cpu_s = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, time.process_time()
    await asyncio.sleep(seconds)
    woken = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - woken - 1  # for this sleep
    cpu_s = time.process_time() - cpu_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return woken, cpu_s


# --- in the runner --------------------------------------------------------------------------


async def run(bench: Bench, field: Field) -> None:
    measured: dict[str, tuple[int, float]] = {}
    rows: list[Contender] = []
    async with AsyncExitStack() as stack:
        for kind in (*LAYERS, peers.IN_MEMORY, OURS):

            async def wait(started: Worker, kind: str = kind) -> Sample:
                measured[kind] = await started.call(idle, _WAITING, _IDLE_S)
                return Sample(0.0, [0.0])

            rows.append(await field.contender(stack, kind, solo, wait))

        async def wait_alone(started: Worker) -> Sample:
            measured[_NOTHING] = await started.call(idle, 0, _IDLE_S)
            return Sample(0.0, [0.0])

        rows.append(await contender(stack, _NOTHING, worker(WorkerSpec(object)), wait_alone))
        bench.progress(f"waiting for {_IDLE_S + 2:g} s")
        await asyncio.gather(*(_attempt(row) for row in rows))
    title = f"{_WAITING} receives waiting, {_IDLE_S:g} s"
    for what, unit, goal in (
        ("wakeups", _WAKEUPS, _WAKEUPS_GOAL),
        ("CPU time", _CPU, _CPU_GOAL),
    ):
        shown = []
        for row in rows:
            goals = (goal,) if row.name == OURS else ()
            shown.append(Contender(row.name, row.run, goals, row.is_peer, row.trouble))
            if row.name in measured:
                woken, cpu_s = measured[row.name]
                value = float(woken) if unit is _WAKEUPS else cpu_s
                shown[-1].samples.append(Sample(value, [value]))
        bench.report(f"{title}, {what}", unit, shown)


async def _attempt(row: Contender) -> None:
    if row.run is None:
        return
    try:
        await row.run()
    except Exception as error:
        row.trouble = f"{type(error).__name__}: {error}"
