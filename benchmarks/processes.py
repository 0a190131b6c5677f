"""Workers as the runner sees them: started interpreters that are given one job at a time.

What runs inside of them is `worker.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

_P = ParamSpec("_P")
_R = TypeVar("_R")

ROOT: Final = Path(__file__).resolve().parent.parent
LOG: Final = ROOT / ".stack" / "benchmarks.log"
_ANSWER_S: Final = 60.0
_CLOSE_S: Final = 10.0
# The spread of a run crosses a pipe as one line of JSON.
_LINE_BYTES: Final = 64 * 2**20


class WorkerFailed(Exception):
    """A worker raised, died, or did not answer in time."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker: what makes its subject there, and the descriptors it inherits.

    `factory` is importable by name; it is called with `options` inside the running loop.
    `python` is an interpreter whose own packages come before those of this checkout.
    """

    factory: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    python: str = ""


class Worker:
    """A started interpreter that runs one job at a time on the subject it made."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(
        self,
        job: Callable[Concatenate[Any, _P], Awaitable[_R]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Run `await job(subject, *args, **kwargs)` in the worker; everything crosses as JSON.

        Raises:
            WorkerFailed: the job raised, or there was no answer; the worker is then gone.
        """
        request = json.dumps({"job": reference(job), "args": args, "kwargs": kwargs})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError as error:
            raise WorkerFailed("the worker is gone") from error
        return cast(_R, await self.answer(job.__qualname__))

    async def answer(self, what: str) -> Any:
        """The next answer of the worker."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_ANSWER_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            self._process.kill()
            raise WorkerFailed(f"{what}: no answer within {_ANSWER_S:.0f} s") from None
        if not line:
            raise WorkerFailed(f"{what}: the worker died, status {await self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{what}: {answer['error']}")
        return answer["value"]

    def pin(self, index: int) -> None:
        """Keep the worker on one processor, another one for another index if there is one."""
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self._process.pid, {processors[index % len(processors)]})

    async def close(self) -> None:
        """End the worker: the end of its input asks it to, a signal follows if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def worker(spec: WorkerSpec) -> AsyncIterator[Worker]:
    """A worker for as long as the block lasts."""
    if spec.python:
        code = (
            f"import sys; sys.path.append({str(ROOT)!r}); import benchmarks.worker as w; w.main()"
        )
        program: tuple[str, ...] = (spec.python, "-P", "-c", code)
    else:
        program = (sys.executable, "-m", "benchmarks.worker")
    log_fd = _log_fd()
    try:
        process = await asyncio.create_subprocess_exec(
            *(*program, reference(spec.factory), json.dumps(spec.options)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            pass_fds=spec.fds,
            cwd=ROOT,
            limit=_LINE_BYTES,
            # A Ctrl-C at the terminal is for the runner; it then ends its workers in order.
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
    started = Worker(process)
    try:
        await started.answer(reference(spec.factory))
        yield started
    finally:
        await started.close()


def _log_fd() -> int:
    """Where workers complain: some peers do so at length."""
    LOG.parent.mkdir(exist_ok=True)
    return os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def reference(named: Callable[..., Any]) -> str:
    """`module:qualified.name`, by which a worker imports it."""
    return f"{named.__module__}:{named.__qualname__}"
