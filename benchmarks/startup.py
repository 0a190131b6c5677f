"""What does it cost to start: to import asgi_ipc, and to attach to segments that exist?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgi_ipc.aio import AsyncIPCChannelLayer
from benchmarks import ours
from benchmarks.field import Field
from benchmarks.harness import MILLISECONDS, Bench, Contender, Goal, Sample
from benchmarks.processes import ROOT, WorkerSpec, worker

_IMPORT_GOAL: Final = Goal(60)
_ATTACH_GOAL: Final = Goal(3)


def _interpreter_s(code: str, cache: str) -> float:
    """How long an interpreter takes from start to exit, with compiled modules under `cache`."""
    # Whether this run, or an earlier one as somebody else, could write the bytecode into the
    # tree must not matter: the run that warms up fills a cache of our own.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - began


def _imports(module: str, cache: str) -> Callable[[], Awaitable[Sample]]:
    """The time of an import beyond that of an interpreter which imports nothing."""

    async def run() -> Sample:
        bare_s = _interpreter_s("pass", cache)
        seconds = _interpreter_s(f"import {module}", cache) - bare_s
        return Sample(seconds, [seconds])

    return run


async def attach(_: object, options: dict[str, Any]) -> int:
    """From construction to the first answer of a layer, in ns, in a process that had none."""
    began_ns = time.perf_counter_ns()
    layer = AsyncIPCChannelLayer(**options)
    await layer.receive_async(["bench.nobody"], block=False)
    ended_ns = time.perf_counter_ns()
    await layer.close()
    return ended_ns - began_ns


async def run(bench: Bench, _field: Field) -> None:
    with tempfile.TemporaryDirectory() as cache:
        await bench.compare(
            "import, beyond a bare interpreter",
            MILLISECONDS,
            [
                Contender("asyncio", _imports("asyncio", cache)),
                Contender("asgi_ipc", _imports("asgi_ipc", cache), (_IMPORT_GOAL,)),
                Contender("asgi_ipc.aio", _imports("asgi_ipc.aio", cache)),
            ],
            repetitions=2 * bench.repetitions,
        )
    async with (
        ours.segments() as shared,
        worker(WorkerSpec(object)) as creator,
    ):
        await creator.call(attach, shared)

        async def attaches() -> Sample:
            async with worker(WorkerSpec(object)) as newcomer:
                seconds = await newcomer.call(attach, shared) / 1e9
            return Sample(seconds, [seconds])

        await bench.compare(
            "attach to existing segments, up to the first answer",
            MILLISECONDS,
            [Contender("asgi_ipc.aio", attaches, (_ATTACH_GOAL,))],
        )
