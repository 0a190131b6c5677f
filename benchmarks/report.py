"""What a run leaves: a Markdown table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Case, Contender, Goal, Unit


def machine() -> str:
    """One line on where the figures come from."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f} at the start, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{' '.join(platform.libc_ver())}"
    )


def _processor() -> str:
    """What the processor calls itself, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# Observations below which a percentile says nothing.
_ENOUGH: Final = 50
_LEGEND: Final = (
    "Medians over the repetitions. p99: what 99 % of the single observations kept to, at most "
    "for times, at least for rates. Ratios: the figure over that of the first row with none, in "
    "the same repetition. Two workers that talk to each other have a processor each."
)


def markdown(machine_line: str, command: str, cases: Sequence[Case]) -> str:
    """The table, one row per contender."""
    return "\n".join((machine_line + "  ", f"`{command}`", "", *_rows(cases), "", _LEGEND))


def _rows(cases: Sequence[Case]) -> Iterator[str]:
    yield "| case | | median | p99 | ratio | lost / doubled / reordered |"
    yield "|---|---|--:|--:|--:|---|"
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
        is_spread = sum(len(sample.spread) for sample in contender.samples) >= _ENOUGH
        yield _figure(case.unit, contender.p99_seconds()) if is_spread else ""
        yield f"{ratio:.2f}x" if ratio is not None else ""
    else:
        yield from ("-", "-", "")
    counts = f"{faults.lost} / {faults.doubled} / {faults.reordered}"
    shown = counts if contender.samples else ""
    if contender.trouble:
        trouble = contender.trouble.replace("|", "/").replace("\n", " ")
        shown = f"{shown} **{trouble}**".strip()
    yield shown


def _figure(unit: Unit, seconds: float) -> str:
    return f"{_number(unit.shown(seconds))} {unit.name}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def goals(cases: Sequence[Case]) -> str:
    """What this project wants to reach, for those who work on it: a row per goal."""
    rows = ["| case | | goal | reached |", "|---|---|---|---|"]
    for case in cases:
        for contender in case.contenders:
            for goal in contender.goals:
                cells = (case.title, contender.name, *_goal(case, contender, goal))
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _goal(case: Case, contender: Contender, goal: Goal) -> tuple[str, str]:
    """A limit of the figure, or of its ratio to another; and what was reached."""
    sign = "≥" if case.unit.is_rate else "≤"
    unit = f"x {goal.against}" if goal.against else f" {case.unit.name}"
    wanted = (
        f"{sign} {goal.limit:,.3g}{unit}" if goal.limit < 1000 else f"{sign} {goal.limit:,g}{unit}"
    )
    reached = case.reached(contender, goal)
    if reached is None:
        return wanted, "no figure"
    value, is_met = reached
    return wanted, f"{_number(value)}{'' if is_met else ', **missed**'}"


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
    shown = case.unit.shown
    return {
        "name": contender.name,
        "median": shown(contender.seconds()) if contender.samples else None,
        "p99": shown(contender.p99_seconds()) if contender.samples else None,
        "repetitions": [shown(sample.seconds) for sample in contender.samples],
        "ratio": case.ratio(contender),
        "point": contender.point,
        "goals": [_goal_json(case, contender, goal) for goal in contender.goals],
        "lost": contender.faults.lost,
        "doubled": contender.faults.doubled,
        "reordered": contender.faults.reordered,
        "trouble": contender.trouble or None,
    }


def _goal_json(case: Case, contender: Contender, goal: Goal) -> dict[str, Any]:
    value, is_met = case.reached(contender, goal) or (None, None)
    return {"limit": goal.limit, "against": goal.against or None, "value": value, "met": is_met}
