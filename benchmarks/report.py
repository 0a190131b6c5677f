"""What a run leaves: a Markdown table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from benchmarks.harness import Case, Contender, Unit


def machine() -> str:
    """One line on where the figures come from."""
    return (
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{' '.join(platform.libc_ver())}"
    )


_LEGEND: Final = (
    "Medians over the repetitions. p99: what 99 % of the single observations kept to, at most "
    "for times, at least for rates. Ratios: the figure over the yardstick's of the same "
    "repetition. Two workers that talk to each other have a processor each."
)


def markdown(machine_line: str, command: str, cases: Sequence[Case]) -> str:
    """The table, one row per contender."""
    return "\n".join((machine_line + "  ", f"`{command}`", "", *_rows(cases), "", _LEGEND))


def _rows(cases: Sequence[Case]) -> Iterator[str]:
    yield "| case | | median | p99 | ratio | goal | | lost / doubled / reordered |"
    yield "|---|---|--:|--:|--:|--:|---|---|"
    for case in cases:
        title = case.title
        for contender in case.contenders:
            yield f"| {title} | {contender.name} | " + " | ".join(_cells(case, contender)) + " |"
            title = ""


def _cells(case: Case, contender: Contender) -> Iterator[str]:
    ratio = case.ratio(contender)
    faults = contender.faults
    if contender.samples:
        yield _figure(case.unit, contender.seconds())
        yield _figure(case.unit, contender.p99_seconds())
        yield f"{ratio:.2f}x" if ratio is not None else ""
    else:
        yield from ("-", "-", "")
    yield _goal(case.unit, contender)
    yield {None: "", True: "reached", False: "**missed**"}[case.met(contender)]
    counts = f"{faults.lost} / {faults.doubled} / {faults.reordered}"
    shown = counts if contender.samples else ""
    if contender.trouble:
        trouble = contender.trouble.replace("|", "/").replace("\n", " ")
        shown = f"{shown} **{trouble}**".strip()
    yield shown


def _figure(unit: Unit, seconds: float) -> str:
    value = unit.shown(seconds)
    return f"{value:,.0f} {unit.name}" if value >= 100 else f"{value:.3g} {unit.name}"


def _goal(unit: Unit, contender: Contender) -> str:
    goal = contender.goal
    if goal is None:
        return ""
    sign = "≥" if unit.is_rate else "≤"
    if goal.figure is not None:
        return f"{sign} {goal.figure:,g} {unit.name}"
    return f"{sign} {goal.ratio:g}x"


def as_json(machine_line: str, command: str, cases: Sequence[Case]) -> dict[str, Any]:
    """The same, and each repetition's own figure, in the case's unit."""
    return {
        "machine": machine_line,
        "python": sys.version,
        "command": command,
        "cases": [
            {
                "question": case.question,
                "title": case.title,
                "unit": case.unit.name,
                "yardstick": case.yardstick,
                "contenders": [_contender_json(case, one) for one in case.contenders],
            }
            for case in cases
        ],
    }


def _contender_json(case: Case, contender: Contender) -> dict[str, Any]:
    shown, goal = case.unit.shown, contender.goal
    return {
        "name": contender.name,
        "median": shown(contender.seconds()) if contender.samples else None,
        "p99": shown(contender.p99_seconds()) if contender.samples else None,
        "repetitions": [shown(sample.seconds) for sample in contender.samples],
        "ratio": case.ratio(contender),
        "goal_figure": goal.figure if goal else None,
        "goal_ratio": goal.ratio if goal else None,
        "goal_met": case.met(contender),
        "lost": contender.faults.lost,
        "doubled": contender.faults.doubled,
        "reordered": contender.faults.reordered,
        "trouble": contender.trouble or None,
    }
