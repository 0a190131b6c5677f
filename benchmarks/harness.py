"""What all questions share: workers, samples, alternating repetitions, cases.

A *case* compares *contenders* under one title, one of them perhaps the *yardstick*. Every
repetition runs each contender once, in turn, and a ratio is taken between two runs of the same
repetition: it holds on a noisy machine, where the absolute figures do not.

A contender is a coroutine function that returns a `Sample`. What it measures happens in one or
more `Worker`s, each an interpreter of its own that waits for commands between repetitions and
uses no processor meanwhile. Every run counts what arrived; what was lost, doubled or out of
order is shown beside the figure.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

Message = dict[str, Any]
_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")

ROOT: Final = Path(__file__).resolve().parent.parent
# A job ends by itself well within this, so that what it counted until then can be reported.
JOB_S: Final = 20.0
_ANSWER_S: Final = 60.0
_CLOSE_S: Final = 10.0
# The spread of a run crosses a pipe as one line of JSON.
_LINE_BYTES: Final = 64 * 2**20


# --- samples --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """How a figure is shown. All are measured as seconds per operation."""

    name: str
    is_rate: bool
    per_second: float = 1.0

    def shown(self, seconds: float) -> float:
        """The figure in this unit for that many seconds per operation."""
        return 1 / seconds if self.is_rate else seconds * self.per_second

    def ratio(self, seconds: float, yardstick_seconds: float) -> float:
        """How many times the yardstick's figure, in this unit: above 1 is more /s, or more µs."""
        if self.is_rate:
            return yardstick_seconds / seconds
        return seconds / yardstick_seconds


MICROSECONDS: Final = Unit("µs", is_rate=False, per_second=1e6)
MILLISECONDS: Final = Unit("ms", is_rate=False, per_second=1e3)
PER_SECOND: Final = Unit("/s", is_rate=True)


@dataclass(frozen=True)
class Goal:
    """A figure or a ratio to reach: a least value for rates, a greatest value for times."""

    figure: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Faults:
    """What a receiver found wrong with the messages of one run."""

    lost: int = 0
    doubled: int = 0
    reordered: int = 0

    def __add__(self, other: Faults) -> Faults:
        return Faults(
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.reordered + other.reordered,
        )


@dataclass(frozen=True)
class Sample:
    """One run of one contender.

    `seconds` is the run's own figure, per operation; `spread` the single observations behind
    it, for the percentiles.
    """

    seconds: float
    spread: Sequence[float]
    faults: Faults = Faults()

    @classmethod
    def of_mean(cls, spread: Sequence[float], faults: Faults = Faults()) -> Sample:
        """A run whose figure is the mean of its observations: rates."""
        return cls(statistics.fmean(spread), spread, faults)

    @classmethod
    def of_median(cls, spread: Sequence[float], faults: Faults = Faults()) -> Sample:
        """A run whose figure is the median of its observations: latencies."""
        return cls(statistics.median(spread), spread, faults)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` of all values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def account(first: int, count: int, surprises: Sequence[tuple[int, int]], end: int) -> Faults:
    """What went wrong in a stream of the numbers `first` to `first + count - 1`.

    `surprises` are (number that came, number expected) where the two differed; the receiver
    always expects the successor of the largest number seen, `end` when it stopped.
    """
    missing = set(range(end, first + count))
    doubled = reordered = 0
    for came, expected in surprises:
        if came > expected:
            missing.update(range(expected, came))
        elif came in missing:
            missing.remove(came)
            reordered += 1
        else:
            doubled += 1
    return Faults(len(missing), doubled, reordered)


# --- workers --------------------------------------------------------------------------------


class WorkerFailed(Exception):
    """A worker raised, died, or did not answer in time."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker: what makes its subject there, and the descriptors it inherits.

    `factory` is importable by name; it is called with `options` inside the running loop.
    """

    factory: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    fds: tuple[int, ...] = ()


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
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.worker", reference(spec.factory), json.dumps(spec.options)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=spec.fds,
        cwd=ROOT,
        limit=_LINE_BYTES,
        # A Ctrl-C at the terminal is for the runner; it then ends its workers in order.
        start_new_session=True,
    )
    started = Worker(process)
    try:
        await started.answer(reference(spec.factory))
        yield started
    finally:
        await started.close()


def reference(named: Callable[..., Any]) -> str:
    """`module:qualified.name`, by which a worker imports it."""
    return f"{named.__module__}:{named.__qualname__}"


# --- cases ----------------------------------------------------------------------------------


@dataclass
class Contender:
    """One row of a case.

    `run` is None when it cannot run here; `trouble` then says why, as it does after a failure.
    """

    name: str
    run: Callable[[], Awaitable[Sample]] | None
    goal: Goal | None = None
    trouble: str = ""
    samples: list[Sample] = field(default_factory=list)
    faults: Faults = Faults()

    def seconds(self) -> float:
        """The median of the runs' own figures."""
        return statistics.median(sample.seconds for sample in self.samples)

    def p99_seconds(self) -> float:
        """What 99 % of the single observations of all runs stayed below."""
        return percentile((one for sample in self.samples for one in sample.spread), 99)


async def contender(
    stack: AsyncExitStack,
    name: str,
    resource: AbstractAsyncContextManager[_T],
    run: Callable[[_T], Awaitable[Sample]],
    goal: Goal | None = None,
) -> Contender:
    """A contender that needs `resource`, entered on `stack`; one with `trouble` if it fails."""
    try:
        opened = await stack.enter_async_context(resource)
    except Exception as error:
        return Contender(name, None, goal, trouble=f"{type(error).__name__}: {error}")
    return Contender(name, lambda: run(opened), goal)


@dataclass
class Case:
    """Contenders that did the same thing in the same repetitions."""

    question: str
    title: str
    unit: Unit
    contenders: Sequence[Contender]
    yardstick: str | None

    def ratio(self, contender: Contender) -> float | None:
        """The median, over the repetitions, of this contender's ratio to the yardstick."""
        for other in self.contenders:
            if other.name == self.yardstick and other is not contender:
                pairs = zip(contender.samples, other.samples, strict=False)
                ratios = [self.unit.ratio(mine.seconds, its.seconds) for mine, its in pairs]
                return statistics.median(ratios) if ratios else None
        return None

    def met(self, contender: Contender) -> bool | None:
        """Whether the contender's goal is reached; None if it has none, or no figure."""
        goal = contender.goal
        if goal is None or not contender.samples:
            return None
        if goal.figure is not None:
            value, limit = self.unit.shown(contender.seconds()), goal.figure
        else:
            ratio = self.ratio(contender)
            if ratio is None or goal.ratio is None:
                return None
            value, limit = ratio, goal.ratio
        return value >= limit if self.unit.is_rate else value <= limit


class Bench:
    """One run of the benchmarks: how often, what is finished, what is going on."""

    def __init__(self, repetitions: int, progress: Callable[[str, str], None]) -> None:
        self.repetitions = repetitions
        self.cases: list[Case] = []
        self.question = ""
        self._progress = progress

    def progress(self, what: str, detail: str = "") -> None:
        """Show what is going on now; `detail` changes many times a minute."""
        self._progress(f"{self.question}: {what}", detail)

    async def compare(
        self,
        title: str,
        unit: Unit,
        contenders: Sequence[Contender],
        yardstick: str | None = None,
        repetitions: int | None = None,
    ) -> Case:
        """Run all contenders in turn, `repetitions` times after one run that warms up.

        The order rotates, so that no contender always runs behind the same other one. One that
        fails keeps the samples it has and is not run again.
        """
        case = Case(self.question, title, unit, contenders, yardstick)
        total = self.repetitions if repetitions is None else repetitions
        for repetition in range(total + 1):
            turn = repetition % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                if contender.run is None or contender.trouble:
                    continue
                what = f"{repetition}/{total}" if repetition else "warming up"
                self.progress(title, f"{contender.name}, {what}")
                try:
                    sample = await contender.run()
                except Exception as error:
                    contender.trouble = f"{type(error).__name__}: {error}"
                    continue
                contender.faults += sample.faults
                if repetition:
                    contender.samples.append(sample)
        self.cases.append(case)
        return case
