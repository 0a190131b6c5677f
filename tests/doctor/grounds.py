"""Machines made for the patient: a /dev/shm, a /run, a file of the kernel of a test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_ipc._operator.doctor import Finding, examine

from ..conftest import PATIENCE_S

SIZES: dict[str, Any] = {"message_memory": 8 << 20, "group_memory": 4 << 20}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")

EXAMINE = """
import json
from asgi_ipc._operator.doctor import examine
def show(**options):
    for one in examine(PREFIX, **{**SIZES, "watch": 30.0, **options}):
        say(json.dumps(one.as_dict()))
    say("end")
"""


def ground(*commands: str) -> tuple[str, ...]:
    """Return the words that start a program where these commands have changed what is mounted."""
    script = " && ".join([*commands, 'exec "$@"'])
    return ("unshare", "-m", "sh", "-c", script, "sh")


def shm(options: str) -> str:
    """Return the command that mounts a /dev/shm of its own."""
    return f"mount -t tmpfs -o {options} tmpfs /dev/shm"


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ground(shm("size=1m")), "true"], capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(
    not _can_mount(), reason="a /dev/shm of its own needs unshare and the right to mount"
)


def heard(child: Any) -> list[Finding]:
    """Return what a child that calls ``show()`` has found."""
    found = []
    while (line := child.line()) != "end":
        assert line, f"the child has ended: {child.lines}"
        found.append(Finding(**json.loads(line)))
    return found


def of(findings: Sequence[Finding], code: str) -> Finding:
    """Return the first finding with a code; the test fails when there is none."""
    for one in findings:
        if one.code == code:
            return one
    raise AssertionError(f"no {code} among {[(one.code, one.severity) for one in findings]}")


def trouble(findings: Sequence[Finding]) -> list[str]:
    """Return the codes of what is not in order, but for what else the tests' user runs."""
    return [one.code for one in findings if one.severity != "ok" and one.code != "inotify"]


def look(prefix: str, **options: Any) -> list[Finding]:
    """Examine a test's site, which has the sizes of ``make_layer``; wait for its busy locks."""
    return examine(prefix, **{**SIZES, "watch": PATIENCE_S, **options})


def commands(finding: Finding) -> list[str]:
    """Return the commands of a remedy."""
    return [line[2:] for line in finding.remedy.splitlines() if line.startswith("$ ")]


def cure(finding: Finding, *, only: str = "") -> None:
    """Do what a remedy says (only what contains a word): its commands must be right."""
    wanted = [command for command in commands(finding) if only in command]
    assert wanted, f"{finding.code} has no command with {only!r}: {finding.remedy}"
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    for command in wanted:
        subprocess.run(["sh", "-euc", command], check=True, env={**os.environ, "PATH": path})
