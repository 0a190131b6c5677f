"""Worlds to explore, and one line in pytest's summary about how much was tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .explorer import Explorer, Report
from .killing import Ledger
from .world import World

_tried: Counter[str] = Counter()


@pytest.fixture
def make_explorer(
    prefix: str, record_property: Callable[[str, object], None]
) -> Iterator[Callable[..., Explorer]]:
    """Make one explorer of a world of its own; what it tried is written down."""
    ledger = Ledger()
    made: list[Explorer] = []
    names: list[str] = []

    def make(
        *, doubles: int = 0, enough: int = 20, counted_as: str = "crash points", **options: Any
    ) -> Explorer:
        assert not made, "one world a test"
        names.append(counted_as)
        explorer = Explorer(
            World(prefix, ledger, **options), Report(enough=enough), doubles=doubles
        )
        made.append(explorer)
        return explorer

    yield make
    for explorer in made:
        report = explorer.report
        explorer.world.close()
        for name, points in ((names[0], report.points), ("double ones", report.double_points)):
            if points:
                record_property(name, points.total())
                _tried[name] += points.total()
    ledger.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many kills there were."""
    if _tried:
        text = ", ".join(f"{count} {what}" for what, count in _tried.items())
        terminalreporter.write_line(f"killed at every store: {text}")
