"""What all questions share: samples, alternating repetitions, cases, goals.

A *case* compares *contenders* under one title, one of them perhaps the *yardstick*. Every
repetition runs each contender once, in turn, and a ratio is taken between two runs of the same
repetition: it holds on a noisy machine, where the absolute figures do not.

A contender is ours, a peer (another channel layer), or something raw: a yardstick that is no
channel layer. It is a coroutine function that returns a `Sample`. What it measures happens in one
or more `Worker`s, each an interpreter of its own that waits for commands between repetitions and
uses no processor meanwhile. Every run counts what arrived; what was lost, doubled or out of
order is shown beside the figure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

Message = dict[str, Any]
_T = TypeVar("_T")

# A job ends by itself well within this, so that what it counted until then can be reported.
JOB_S: Final = 20.0
_RUNS_WITH_LOSSES: Final = 2


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
    """A limit: a least value for rates, a greatest one for everything else.

    Of the figure itself, or of its ratio to a contender's: one by name, or the best peer.
    """

    limit: float
    against: str = ""


BEST_PEER: Final = "best peer"


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


# --- cases ----------------------------------------------------------------------------------


@dataclass
class Contender:
    """One row of a case.

    `run` is None when it cannot run here; `trouble` then says why, as it does after a failure.
    `point` is its place in the plot of the question: a series, and how far to the right.
    """

    name: str
    run: Callable[[], Awaitable[Sample]] | None
    goals: tuple[Goal, ...] = ()
    is_peer: bool = False
    trouble: str = ""
    point: tuple[str, float] | None = None
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
    *goals: Goal,
    is_peer: bool = False,
) -> Contender:
    """A contender that needs `resource`, entered on `stack`; one with `trouble` if it fails."""
    try:
        opened = await stack.enter_async_context(resource)
    except Exception as error:
        return Contender(name, None, goals, is_peer, trouble=f"{type(error).__name__}: {error}")
    return Contender(name, lambda: run(opened), goals, is_peer)


@dataclass
class Case:
    """Contenders that did the same thing in the same repetitions."""

    question: str
    title: str
    unit: Unit
    contenders: Sequence[Contender]
    yardstick: str | None

    def ratio(self, contender: Contender, against: str = "") -> float | None:
        """The median, over the repetitions, of this contender's ratio to another's figure.

        To the yardstick's, if no other is named.
        """
        other = self._named(against or self.yardstick)
        if other is None or other is contender:
            return None
        pairs = zip(contender.samples, other.samples, strict=False)
        ratios = [self.unit.ratio(mine.seconds, its.seconds) for mine, its in pairs]
        return statistics.median(ratios) if ratios else None

    def _named(self, name: str | None) -> Contender | None:
        if name == BEST_PEER:
            measured = [one for one in self.contenders if one.is_peer and one.samples]
            return min(measured, key=Contender.seconds, default=None)
        return next((one for one in self.contenders if one.name == name), None)

    def reached(self, contender: Contender, goal: Goal) -> tuple[float, bool] | None:
        """What a goal is compared with, and whether it is met; None where there is no figure."""
        value = None
        if goal.against:
            value = self.ratio(contender, goal.against)
        elif contender.samples:
            value = self.unit.shown(contender.seconds())
        if value is None:
            return None
        return value, value >= goal.limit if self.unit.is_rate else value <= goal.limit


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
        fails keeps the samples it has and is not run again; nor is, after its second run, one
        that loses messages, since each of its runs waits for them.
        """
        case = Case(self.question, title, unit, contenders, yardstick)
        self.cases.append(case)
        total = self.repetitions if repetitions is None else repetitions
        for repetition in range(total + 1):
            turn = repetition % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                if contender.run is None or contender.trouble:
                    continue
                if contender.faults.lost and len(contender.samples) >= _RUNS_WITH_LOSSES:
                    continue
                what = f"{repetition}/{total}" if repetition else "warming up"
                self.progress(title, f"{contender.name}, {what}")
                if not await _run(contender, is_measured=repetition > 0) and not repetition:
                    contender.trouble = ""  # some need a while until both ends are connected
                    await _run(contender, is_measured=False)
        return case

    def report(self, title: str, unit: Unit, contenders: Sequence[Contender]) -> Case:
        """Show contenders that were measured at the same time, without turns."""
        self.cases.append(Case(self.question, title, unit, contenders, None))
        return self.cases[-1]


async def _run(contender: Contender, *, is_measured: bool) -> bool:
    """Run it once; False if it failed."""
    assert contender.run is not None
    try:
        sample = await contender.run()
    except Exception as error:
        contender.trouble = f"{type(error).__name__}: {error}"
        return False
    contender.faults += sample.faults
    if is_measured:
        contender.samples.append(sample)
    return True
