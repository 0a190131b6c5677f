"""Processes that do not outlive their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .processes import Process


@pytest.fixture
def run() -> Iterator[Callable[..., Process]]:
    """Start Python processes; those the test has not stopped are killed."""
    running: list[Process] = []

    def start(*command: str, **options: Any) -> Process:
        running.append(Process(*command, **options))
        return running[-1]

    yield start
    for process in running:
        process.kill()
