"""Every system call that can fail, failing: the layer says so clearly, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .refusal import can_refuse
from .test_world import ORDINARY_USER

pytestmark = pytest.mark.skipif(
    not can_refuse(), reason="needs x86-64 and a kernel whose seccomp asks a supervisor"
)

_ROOT = Path(__file__).parents[2]
# Each with what the manual pages say, and what seccomp profiles of containers answer.
FAILURES = {
    "accept": ("EMFILE", "ECONNABORTED", "ENFILE", "ENOMEM"),
    "bind": ("EACCES", "ENOSPC", "ENOMEM"),
    "connect": ("EAGAIN", "ECONNREFUSED", "EACCES", "EPERM"),
    "eventfd": ("EMFILE", "ENOSYS", "ENFILE", "EPERM", "ENOMEM"),
    "fallocate": ("ENOSPC", "EINTR", "EFBIG", "ENOMEM"),
    "fcntl_dup": ("EMFILE",),
    "fcntl_lock": ("ENOLCK", "EINTR", "EACCES"),
    "flock": ("ENOLCK", "EINTR", "ENOMEM"),
    "ftruncate": ("ENOSPC", "EFBIG", "EPERM"),
    "inotify_add_watch": ("ENOSPC", "ENOMEM", "EACCES"),
    "inotify_init": ("EMFILE", "ENFILE", "ENOSYS"),
    "madvise": ("EINVAL", "ENOMEM", "EPERM"),
    "mkdir": ("ENOSPC", "EACCES", "ENOMEM"),
    "mmap": ("ENOMEM", "EACCES", "ENFILE"),
    "open": ("EMFILE", "ENFILE", "ENOMEM", "EACCES"),
    "pipe": ("EMFILE", "ENFILE"),
    "recvmsg": ("ENOMEM", "ECONNRESET"),
    "sched_yield": ("EPERM",),
    "sendmsg": ("ETOOMANYREFS", "ENOBUFS", "EPIPE"),
    "socket": ("EMFILE", "ENFILE", "ENOBUFS"),
}


def try_all(prefix: str, kind: str, limit: int, *failures: str) -> None:
    """Let each call of a kind fail, and fail with what was wrong after it."""
    command = [sys.executable, "-m", f"{__package__}.scenario", prefix, kind, str(ORDINARY_USER)]
    done = subprocess.run([*command, str(limit), *failures], cwd=_ROOT, capture_output=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr.decode()
    assert lines[-1][0] == "over", done.stderr.decode()
    shown = "\n".join(f"{which}: {problem}" for which, problem in lines[:8])
    assert not lines[:-1], f"{len(lines) - 1} problems of {lines[-1][1]} calls:\n{shown}"
    assert not done.stderr, done.stderr.decode()


@pytest.mark.parametrize("kind", FAILURES)
def test_a_call_that_fails_is_a_clear_error_and_no_more(prefix: str, kind: str) -> None:
    """The likeliest failure of each call: an IPCError or none, and all works afterwards."""
    try_all(prefix, kind, 25, FAILURES[kind][0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", FAILURES)
def test_every_failure_of_every_call_is_a_clear_error_and_no_more(prefix: str, kind: str) -> None:
    """The same for whatever else the kernel may answer."""
    try_all(prefix, kind, 10_000, *FAILURES[kind])
