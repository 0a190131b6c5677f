"""What all commands share: options before and after, exit codes, locks, missing sites."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import asgi_ipc
from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._shm import layout as L

from .conftest import COMMAND

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

slow = pytest.mark.slow
ON_A_SITE = [
    "stats",
    "channels",
    "groups",
    "processes",
    "peek jobs",
    "send jobs {}",
    "receive jobs",
    "group-send chat {}",
    "flush --yes",
    "unlink",
    "check",
    "repair",
]


def test_the_prefix_may_stand_anywhere(make_layer: MakeLayer, run: Run, prefix: str) -> None:
    """After the command, before it, or in the environment: the nearest one counts."""
    make_layer()
    assert prefix in run("stats").out
    assert f'"prefix": "{prefix}"' in run("--json", "stats").out
    done = subprocess.run(
        [*COMMAND, "--prefix", "test-no-such", "stats", "-p", prefix], capture_output=True
    )
    assert done.returncode == 0
    done = subprocess.run(
        [*COMMAND, "--prefix", prefix, "stats"],
        capture_output=True,
        env={**os.environ, "ASGI_IPC_PREFIX": "test-no-such"},
    )
    assert done.returncode == 0


@pytest.mark.parametrize("command", ON_A_SITE)
def test_a_site_that_is_not_there_is_never_created(command: str, read: Read, prefix: str) -> None:
    """Code 3, and no segment afterwards."""
    error = read(*command.split(), code=3)["error"]
    assert error["code"] == "no_site" and error["exit_code"] == 3
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def test_wrong_usage_is_code_2(make_layer: MakeLayer, run: Run) -> None:
    """Names, messages and options that cannot be."""
    make_layer()
    assert "nonsense" in run("send", "jobs", "nonsense", code=2).err
    assert "%" in run("peek", "100%", code=2).err
    run("channels", "--sort", "colour", code=2)
    assert "not valid" in run("stats", "--prefix", "a/b", code=2).err
    run("no-such-command", code=2)


def test_the_version_is_the_packages(run: Run) -> None:
    """``--version`` needs no site."""
    assert run("--version").out == f"asgi-ipc {asgi_ipc.__version__}\n"


@pytest.mark.parametrize("which", ["messages", pytest.param("groups", marks=slow)])
def test_a_stopped_holder_is_reported_and_not_waited_for(
    which: str,
    make_layer: MakeLayer,
    stopped_holder: Callable[[str], Child],
    read: Read,
    run: Run,
) -> None:
    """Whoever needs the lock says which process has it and for how long; it goes on after."""
    make_layer()
    holder = stopped_holder(which)
    error = read("stats", "--patience", "1000", code=4)["error"]
    assert error["code"] == "locked"
    assert error["holder"]["pid"] == holder.pid
    assert error["holder"]["is_stopped"] and error["holder"]["state"] == "T"
    # The scheduler's clock, as old as its last tick: that it grows is tested with the doctor.
    assert error["holder"]["idle_s"] is None or error["holder"]["idle_s"] >= 0
    message = run("send", "jobs", "{}", "--patience", "1000", code=4).err
    assert f"kill -CONT {holder.pid}" in message and f"-{which}" in message
    run("check", code=4)
    run("repair", code=4)
    assert holder.pid in [one["pid"] for one in read("unlink", code=8)["error"]["processes"]]
    holder.signal(18)  # SIGCONT
    holder.expect("let go")
    holder.end()
    read("stats")


def test_a_busy_lock_is_given_up_after_some_patience(
    make_layer: MakeLayer, start: Callable[..., Child], run: Run
) -> None:
    """A holder that is not stopped may let go any moment: it is waited for, as long as asked."""
    make_layer()
    busy = start(
        """
layer = IPCChannelLayer(PREFIX, **SIZES)
layer.core._site.messages.segment.transact(lambda: (say("holding"), sys.stdin.readline()))
"""
    )
    busy.expect("holding")
    assert "more than 0.05 s" in run("stats", "--patience", "0.05", code=4).err
    busy.tell()
    busy.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace")
def test_a_holder_in_another_pid_namespace(
    make_layer: MakeLayer, stopped_holder: Callable[[str], Child], prefix: str
) -> None:
    """Who it is cannot be told there; the command ends all the same."""
    make_layer()
    stopped_holder("messages")
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    done = subprocess.run(
        [*unshare, *COMMAND, "stats", "-p", prefix, "--patience", "0.1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert "unknown process" in done.stderr


def test_segments_that_cannot_be_read_are_code_5(make_layer: MakeLayer, run: Run) -> None:
    """Another layout version, or bytes that are no segment, with what to do about it."""
    layer = make_layer()
    words = layer._site.messages.segment.words
    words[L.VERSION_WORD] += 1
    assert "layout version" in run("stats", code=5).err
    words[L.VERSION_WORD] -= 1
    words[L.MAGIC_WORD] += 1
    assert "not a segment" in run("stats", code=5).err
    words[L.MAGIC_WORD] -= 1
    run("stats")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_users_site_is_code_5(make_layer: MakeLayer, prefix: str) -> None:
    """Somebody who may not read the segments is told whose they are."""
    make_layer()
    script = (
        "import os, sys\n"
        "from asgi_ipc.__main__ import main\n"
        f"sys.argv = ['asgi-ipc', 'stats', '-p', {prefix!r}]\n"
        "try:\n"
        "    main()\n"  # imports what that user may not be able to
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 5, done
    assert "belongs to another user" in done.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    """Not a traceback, but the name of the extra; code 9."""
    script = "import sys; sys.modules['typer'] = None\nfrom asgi_ipc.__main__ import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 9
    assert "pip install 'asgi_ipc[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "shell",
    ["bash", pytest.param("zsh", marks=slow), pytest.param("fish", marks=slow)],
)
def test_completion_knows_the_commands(shell: str) -> None:
    """The script for a shell can be printed, and completing ``st`` offers ``stats``."""
    done = subprocess.run(
        [*COMMAND, "--show-completion", shell],
        capture_output=True,
        text=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert "_ASGI_IPC_COMPLETE" in done.stdout
    environment = {
        "_ASGI_IPC_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "asgi-ipc st",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "asgi-ipc st",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert "stats" in done.stdout
