"""For all tests of the metrics."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def before_all_tests() -> None:
    """Let the collection after each test pass over what was imported, most of its time."""
    gc.collect()
    gc.freeze()
