"""``bench``, ``doctor`` and ``serve``: measuring, examining, serving."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc._cli.app import COMMANDS
from asgi_ipc._cli.bench import histogram
from asgi_ipc._cli.options import size_in_bytes

from .conftest import COMMAND
from .screens import Screen
from .test_looking import RECEIVER

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]


def bench_sites() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("asgi-ipc-bench-")}


def test_bench_measures_and_leaves_nothing(run: Run, read: Read) -> None:
    """Round trips and throughput of the layer and of the floor; its own site is gone after."""
    before = bench_sites()
    document = read("bench", "--seconds", "1")
    for spread in document["round_trip_us"].values():
        assert spread["count"] > 0
        assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"]
    assert all(rate > 0 for rate in document["messages_per_second"].values())
    text = run("bench", "--seconds", "0.5").out
    for word in ("p50", "floor", "ordinary channel", "process-specific", "#####", "/s"):
        assert word in text
    assert bench_sites() <= before


def test_the_plot_counts_every_round_trip() -> None:
    """Bins reach over everything, and each value is in one of them."""
    trips = {"floor": [50.0, 60.0, 70.0, 71.0], "ordinary channel": [90.0] * 99 + [5000.0]}
    edges, counts = histogram(trips)
    assert edges == sorted(edges) and edges[0] <= 50
    assert {name: sum(found) for name, found in counts.items()} == {
        "floor": 4,
        "ordinary channel": 100,
    }
    assert len(counts["floor"]) == len(edges) - 1


def test_doctor_examines_a_site(make_layer: MakeLayer, read: Read, run: Run) -> None:
    """Findings with remedies; the exit code says whether all is well."""
    make_layer()
    sizes = ("--message-memory", str(8 << 20), "--group-memory", str(4 << 20))
    done = run("doctor", "--json", *sizes, code=None)
    document = done.document("doctor")
    assert done.code == (0 if document["worst"] == "ok" else 1)
    found = {one["code"]: one for one in document["findings"]}
    assert found["lock"]["severity"] == "ok"
    assert found["processes"]["severity"] == "ok"
    text = run("doctor", *sizes, code=done.code).out
    assert found["processes"]["what"] in text
    assert "prefix" in run("doctor", "--prefix", "a/b", code=2).err.lower()


def test_doctor_says_what_is_wrong_and_the_remedy(
    make_layer: MakeLayer, start: Callable[..., Child], run: Run
) -> None:
    """A dead loop's slot, and a size that is not the site's: codes, remedies, code 1."""
    make_layer()
    child = start(RECEIVER)
    child.line()
    child.kill()
    other = ("--quiet", "--message-memory", "4MiB")
    document = run("doctor", "--json", *other, code=1).document("doctor")
    found = {one["code"]: one for one in document["findings"]}
    assert found["dead-slots"]["remedy"] and found["segment-size"]["remedy"]
    assert all(one["severity"] != "ok" for one in document["findings"])
    text = run("doctor", *other, code=1).out
    assert found["dead-slots"]["what"] in text
    assert text.rstrip().endswith("the gravest first, above")
    assert f"asked for are {4 << 20}" in text
    assert all(line in text for line in found["dead-slots"]["remedy"].splitlines())


def test_sites_of_the_machine(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read, run: Run, prefix: str
) -> None:
    """Who owns each, who uses it, what it takes; one that nobody uses is stale."""
    layer = make_layer()
    child = start(RECEIVER)
    child.line()

    def mine() -> Any:
        return next(one for one in read("sites")["sites"] if one["prefix"] == prefix)

    site = mine()
    assert site["pids"] == sorted([os.getpid(), child.pid])
    assert site["state"] == "alive" and site["doors"] and site["backed_bytes"] and site["created"]
    assert re.search(rf"(?m)^{prefix} +\w+ +2 .* alive", run("sites").out)
    child.kill()
    layer.close_now()
    del layer
    gc.collect()
    assert mine()["state"] == ("stale" if not mine()["pids"] else "alive")


def test_a_wrong_prefix_says_which_sites_there_are(
    make_layer: MakeLayer, read: Read, run: Run, prefix: str
) -> None:
    """Whatever the command; the doctor does not call it well."""
    make_layer()
    other = f"{prefix}-mistyped"
    for command in ("stats", "processes", "peek jobs", "unlink", "repair", "flush --yes"):
        words = [*command.split(), "-p", other]
        error = run(*words, "--json", code=3).document("error")["error"]
        assert prefix in error["sites"] and other not in error["sites"]
        assert "asgi-ipc sites" in error["message"]
    assert f"there is no site '{other}'" in run("doctor", "-p", other, code=1).out
    (first, *_) = run("doctor", "-p", other, "--json", code=1).document("doctor")["findings"]
    assert first["code"] == "site-missing" and prefix in first["numbers"]["prefixes"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4194304", 4 << 20), ("4MiB", 4 << 20), ("4 mib", 4 << 20), ("64m", 64 << 20),
     ("1.5G", 3 << 29), ("2MB", 2_000_000), ("7KiB", 7168), ("9b", 9)],
)  # fmt: skip
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    """As in Docker, systemd and Kubernetes."""
    assert size_in_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "0", "0.1", "-1", "MiB", "4XB", "1e3", "four", "1 2", "nan"])
def test_what_is_no_size_is_a_usage_error(text: str, run: Run) -> None:
    """With an example of one."""
    assert "--message-memory" in run("doctor", f"--message-memory={text}", code=2).err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_fits_the_window(command: str) -> None:
    """No line is cut in its middle: each but a paragraph's last is as full as it can be."""
    screen = Screen([*COMMAND, command, "--help"], {}, columns=80, lines=120)
    try:
        assert screen.end() == 0
        lines = [line.strip() for line in screen.text().partition("─ ")[0].splitlines()]
    finally:
        screen.close()
    described = "\n".join(lines).partition("Usage:")[2].partition("\n")[2]
    for line, following in itertools.pairwise(described.splitlines()):
        if line and following:
            assert len(line) + 1 + len(following.split()[0]) > 78, (line, following)


WORKER = """
layer = IPCChannelLayer(PREFIX, block_timeout=600.0, **SIZES)  # until the server is up, and asked
say("ready")
name, message = layer.receive(["http.request"], block=True)
layer.send(message["reply_channel"], {
    "status": 200, "headers": [[b"content-type", b"text/plain"]], "content": b"from a worker",
})
say("answered")
"""


@pytest.mark.parametrize("where", ["port", pytest.param("unix socket", marks=pytest.mark.slow)])
def test_serve_answers_through_workers(
    where: str, prefix: str, start: Callable[..., Child], tmp_path: Any
) -> None:
    """``serve`` is an HTTP server whose requests are answered by workers of the site."""
    path = str(tmp_path / "http.sock")
    options = ["--uds", path] if where == "unix socket" else ["--port", "0"]
    layer = IPCChannelLayer(prefix, message_memory=8 << 20, group_memory=4 << 20)
    worker = start(WORKER)
    worker.expect("ready")
    server = subprocess.Popen(
        [*COMMAND, "serve", "-p", prefix, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ASGI_IPC_MESSAGE_MEMORY": str(8 << 20),
            "ASGI_IPC_GROUP_MEMORY": str(4 << 20),
        },
    )
    try:
        assert server.stderr is not None
        line = ""
        while "running on" not in line:
            line = server.stderr.readline()
            assert line, server.wait()
        with connect(path if where == "unix socket" else line) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"from a worker")
        server.send_signal(signal.SIGTERM)
        threading.Thread(target=server.stderr.read).start()  # so that it can say goodbye
        assert server.wait(30) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        server.kill()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()
    layer.close()


def connect(where: str) -> socket.socket:
    """Connect to a unix socket's path, or to the port in uvicorn's line."""
    if where.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(where)
        return client
    port = int(where.partition("http://127.0.0.1:")[2].split()[0])
    return socket.create_connection(("127.0.0.1", port), 30)


def test_serve_needs_uvicorn(run: Run) -> None:
    """A wrong setting in the environment, or of the command line, is a usage error."""
    assert "port" in run("serve", "--port", "70000", code=2).err
