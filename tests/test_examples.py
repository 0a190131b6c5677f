"""The examples, run as their README says."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def start(name: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments], stdout=subprocess.PIPE, text=True
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{process.args!r} ended without saying {text!r}")


def stop(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    return output


def test_async_echo_runs_between_two_processes(prefix: str) -> None:
    """The client gets every echo and Ctrl-C stops the server cleanly."""
    server = start("echo_async.py", "server", "--prefix", prefix)
    read_until(server, "waiting")
    client = start("echo_async.py", "client", "--prefix", prefix, "--count", "50")
    output, _ = client.communicate(timeout=30)
    assert client.returncode == 0
    assert "50 echoes" in output
    assert "stopped after 50 echoes" in stop(server)


def test_demo_runs_by_itself_and_leaves_nothing(prefix: str) -> None:
    """The demo starts a server, echoes and removes its segments."""
    demo = start("echo_async.py", "demo", "--prefix", prefix, "--count", "20")
    output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 0
    assert "20 echoes" in output


def test_sync_echo_runs_between_two_processes(prefix: str) -> None:
    """The same over the blocking face."""
    server = start("echo_sync.py", "server", "--prefix", prefix)
    read_until(server, "waiting")
    client = start("echo_sync.py", "client", "--prefix", prefix, "--count", "50")
    output, _ = client.communicate(timeout=30)
    assert client.returncode == 0
    assert "50 echoes" in output
    assert "stopped after 50 echoes" in stop(server)


def test_broadcast_reaches_every_listener(prefix: str) -> None:
    """Two listeners in two processes hear what a third one says."""
    listeners = [
        start("broadcast.py", "--prefix", prefix, "listen", "--name", name)
        for name in ("ann", "bob")
    ]
    for listener in listeners:
        read_until(listener, "listening")
    speaker = start("broadcast.py", "--prefix", prefix, "say", "dinner")
    output, _ = speaker.communicate(timeout=30)
    assert "to 2 listeners" in output
    for listener in listeners:
        read_until(listener, "heard 'dinner'")
        assert "stopped" in stop(listener)
