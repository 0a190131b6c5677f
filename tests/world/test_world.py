"""A random site of real processes keeps every promise, whatever is done to it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .journal import read_facts
from .judge import judge
from .plan import make_plan

ORDINARY_USER = 65534
_WEAKREF = re.compile(
    r"\AException ignored in: <function Weak[^\n]*\n(  .*\n)*[^\n]*Interrupted\s*\Z"
)
_ROOT = Path(__file__).parents[2]


def play(prefix: str, folder: Path, seconds: float, user: int, descriptors: int) -> None:
    """Play a plan and fail with everything that does not add up, and the seed."""
    seed = int(os.environ.get("WORLD_SEED") or random.SystemRandom().randrange(2**32))
    print(f"WORLD_SEED={seed}")
    plan = make_plan(seed, prefix, seconds, user, descriptors)
    plan.save(folder / "plan.json")
    command = [sys.executable, "-m", f"{__package__}.site", str(folder / "plan.json"), str(folder)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\n(WORLD_SEED={seed})"
    problems = judge(read_facts(folder))
    for path in sorted(folder.glob("*.errors")):
        said = path.read_text()
        # An event loop of asyncio's that finds no descriptor cannot even be thrown away in silence,
        # nor can what a handler raises within Python's own weak references.
        if said and "_ssock" not in said and not _WEAKREF.search(said):
            problems.append(f"{path.stem} said: {said[-2000:]}")
    shown = "\n".join(problems[:40])
    assert not problems, f"{len(problems)} problems (WORLD_SEED={seed}, {folder}):\n{shown}"


def test_an_ordinary_users_site_keeps_every_promise(prefix: str, tmp_path: Path) -> None:
    """Kills, stops, forks, closes, handlers that raise: each message is accounted for."""
    play(prefix, tmp_path, 12, ORDINARY_USER, 1024)


def test_a_site_of_few_descriptors_keeps_every_promise(prefix: str, tmp_path: Path) -> None:
    """The same with 64 descriptors for each process."""
    play(prefix, tmp_path, 12, ORDINARY_USER, 64)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_roots_site_keeps_every_promise(prefix: str, tmp_path: Path) -> None:
    """Root, to whom some limits do not apply, gets the same."""
    play(prefix, tmp_path, 6, 0, 1024)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("descriptors", [64, 1024])
def test_a_site_keeps_every_promise_for_long(prefix: str, tmp_path: Path, descriptors: int) -> None:
    """Five minutes of each, in plans of one minute."""
    for part in range(5):
        folder = tmp_path / str(part)
        folder.mkdir()
        play(f"{prefix}-{part}", folder, 60, ORDINARY_USER, descriptors)
