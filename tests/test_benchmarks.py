"""What the benchmarks count and conclude; a small real run of them, with what may be missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages, report
from benchmarks.harness import (
    BEST_PEER,
    MICROSECONDS,
    PER_SECOND,
    Case,
    Contender,
    Faults,
    Goal,
    Sample,
    account,
    percentile,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("surprises", "end", "faults"),
    [
        ([], 14, Faults()),
        ([], 12, Faults(lost=2)),
        ([(12, 11)], 14, Faults(lost=1)),
        ([(12, 11), (11, 13)], 14, Faults(reordered=1)),
        ([(11, 12)], 14, Faults(doubled=1)),
        ([(9, 10)], 14, Faults(doubled=1)),
    ],
)
def test_what_did_not_come_as_sent_is_counted(
    surprises: list[tuple[int, int]], end: int, faults: Faults
) -> None:
    """Of the numbers 10 to 13: missing ones, ones seen before, ones out of turn."""
    assert account(10, 4, surprises, end) == faults


def test_a_percentile_is_one_of_the_values() -> None:
    """The smallest that so many per cent do not exceed."""
    assert percentile([5, 1, 3], 99) == 5
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7], 50) == 7


def _contender(name: str, seconds: list[float], *goals: Goal, **options: Any) -> Contender:
    made = Contender(name, None, goals, **options)
    made.samples += [Sample(value, [value]) for value in seconds]
    return made


def test_ratios_are_taken_within_a_repetition() -> None:
    """The median of the ratios, not the ratio of the medians."""
    ours = _contender("ours", [1.0, 20.0, 3.0])
    floor = _contender("floor", [1.0, 10.0, 1.0])
    assert Case("q", "t", MICROSECONDS, [ours, floor], "floor").ratio(ours) == 2.0
    assert Case("q", "t", PER_SECOND, [ours, floor], "floor").ratio(ours) == 0.5
    assert Case("q", "t", PER_SECOND, [ours, floor], "floor").ratio(floor) is None


def test_goals_are_least_rates_and_greatest_times() -> None:
    """Against a figure, a contender by name, or the best of the peers."""
    goals = (Goal(100), Goal(2, "floor"), Goal(1.5, BEST_PEER), Goal(1, "nobody"))
    ours = _contender("ours", [0.02], *goals)
    others = [
        _contender("floor", [0.04]),
        _contender("slow", [0.5], is_peer=True),
        _contender("fast", [0.08], is_peer=True),
        Contender("absent", None, is_peer=True, trouble="not here"),
    ]
    rates = Case("q", "t", PER_SECOND, [ours, *others], "floor")
    assert [rates.reached(ours, goal) for goal in goals] == [
        (50.0, False),
        (2.0, True),
        (4.0, True),
        None,
    ]
    times = Case("q", "t", MICROSECONDS, [ours, *others], "floor")
    assert [times.reached(ours, goal) for goal in goals] == [
        (20_000.0, False),
        (0.5, True),
        (0.25, True),
        None,
    ]


def test_the_table_says_what_is_missing_and_what_was_missed() -> None:
    """In the row of who is missing, and in a table of the goals alone."""
    ours = _contender("ours", [0.02], Goal(100))
    ours.faults = Faults(lost=1)
    absent = Contender("absent", None, trouble="no server:\n'apt-get install' | it")
    case = Case("q", "title", PER_SECOND, [ours, absent], None)
    table = report.markdown("a machine", "a command", [case])
    assert "| title | ours | 50 /s |  |  | 1 / 0 / 0 |" in table
    assert "|  | absent | - | - |  | **no server: 'apt-get install' / it** |" in table
    assert "missed" not in table
    assert "| title | ours | ≥ 100 /s | 50, **missed** |" in report.goals([case])


def test_the_page_begins_with_what_the_figures_say() -> None:
    """The parts that are generated are there; goals come last, out of the readers' way."""
    page = pages.PAGE.read_text()
    answer = pages.answer(json.loads(pages.FIGURES.read_text()))
    assert pages.put(page, "answer", answer) == page
    assert page.index(answer) < page.index("## All figures") < page.index("### Goals")
    users, _, contributors = page.partition("## For contributors")
    assert "missed" not in users
    assert "missed" in contributors
    first = re.findall(r"[\d,]+ µs", answer)
    assert len(first) == 3
    assert all(figure in (ROOT / "README.md").read_text() for figure in first)
    with pytest.raises(ValueError, match="must have the lines"):
        pages.put(page, "nothing", "")


def _run(tmp_path: Path, *questions: str, **environment: str) -> dict[str, dict[str, Any]]:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", *questions),
            *("--repetitions", "1", "--json", str(figures)),
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    cases = json.loads(figures.read_text())["cases"]
    return {case["title"]: {one["name"]: one for one in case["contenders"]} for case in cases}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the first run of a machine makes the environment of the peers
def test_a_small_run(tmp_path: Path) -> None:
    """Every row has a figure or a reason; nothing of ours is lost."""
    cases = _run(tmp_path, "round_trip", "shared_channel", "in_process", "memory", "startup")
    for rows in cases.values():
        for name, row in rows.items():
            assert (row["median"] is None) == (row["trouble"] is not None), row
            if name.startswith("asgi_ipc") and name != "asgi_ipc 1.4.2":
                assert (row["lost"], row["doubled"], row["reordered"]) == (0, 0, 0)
                assert row["median"] > 0
    assert len(cases) == 7


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_missing_server_is_reported(tmp_path: Path) -> None:
    """With the remedy, in every row that needs it; the others are measured."""
    cases = _run(tmp_path, "round_trip", PATH=str(tmp_path))
    (rows,) = cases.values()
    for name in ("channels_redis core", "channels_redis pubsub"):
        assert rows[name]["median"] is None
        assert "apt-get install redis-server" in rows[name]["trouble"]
    assert rows["asgi_ipc, normal"]["median"] > 0
