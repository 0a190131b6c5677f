"""The beginning and the end of a server process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import Child

from .processes import COMMANDS, PATIENCE_S, ROOT, Server, eventually

StartServer = Callable[..., Server]
Workers = Callable[[], Child]

MODULE = "asgi_ipc/interface/"  # in a traceback

# Its `Server.wait_closed` waits for them from Python 3.12 on, whatever the application is.
hypercorn_does_not_end = pytest.mark.xfail(
    sys.version_info >= (3, 12) and version("hypercorn") == "0.18.0",
    reason="hypercorn 0.18 does not end on SIGTERM while a connection is open, from 3.12 on",
    raises=subprocess.TimeoutExpired,
)


def listens(server: Server) -> bool:
    """Whether a server takes connections."""
    try:
        socket.create_connection(("127.0.0.1", server.port), PATIENCE_S).close()
    except OSError:
        return False
    return True


def test_importing_attaches_nothing(prefix: str) -> None:
    """Neither shared memory nor a server library is touched before the first event."""
    code = "import asgi_ipc.interface as i, sys; print(i.application, 'uvicorn' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ASGI_IPC_PREFIX": prefix},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.endswith("False\n")
    assert not Path(f"/dev/shm/{prefix}-messages").exists()


@pytest.mark.parametrize(
    ("kind", "arguments"), [("uvicorn", ()), ("hypercorn", ("--graceful-timeout", "60"))]
)
def test_a_server_that_is_told_to_end_lets_an_answer_finish(
    start_server: StartServer, workers: Workers, kind: str, arguments: tuple[str, ...]
) -> None:
    """It ends by itself when it is done."""
    workers()
    server, other = start_server(kind, *arguments), start_server()
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(server.client.get("/hold")))
    waiting.start()
    eventually(lambda: server.state()["open_requests"], "a request in flight")
    server.process.send_signal(signal.SIGTERM)
    if kind == "uvicorn":  # hypercorn listens to its end
        eventually(lambda: not listens(server), "the end of listening")
    assert eventually(lambda: other.client.get("/release").json(), "the request at a worker") == 1
    waiting.join()
    assert [answer.text for answer in answers] == ["held"]
    assert server.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
    assert MODULE not in server.log(), server.log()


@pytest.mark.parametrize(
    ("kind", "arguments", "options"),
    [
        ("serve", (), {"shutdown_timeout": 1}),
        ("uvicorn", ("--timeout-graceful-shutdown", "1"), {}),
        pytest.param(
            "hypercorn",
            ("--graceful-timeout", "1"),
            {"shutdown_timeout": 1},
            marks=hypercorn_does_not_end,
        ),
        ("daphne", (), {}),
    ],
)
def test_a_server_that_is_told_to_end_waits_only_so_long(
    start_server: StartServer,
    workers: Workers,
    kind: str,
    arguments: tuple[str, ...],
    options: dict[str, object],
) -> None:
    """For an answer that does not come, and for a client that does not send its body."""
    workers()
    server, other = start_server(kind, *arguments, **options), start_server()
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address) as asking, socket.create_connection(address) as sending:
        sending.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        asking.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: other.client.get("/release").json(), "the request at a worker")
        asking.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


def test_a_server_that_is_told_to_end_closes_its_websockets(
    start_server: StartServer, workers: Workers
) -> None:
    """With uvicorn's 1012, and the workers are told."""
    workers()
    server, other = start_server(), start_server()
    with connect(f"{server.ws_url}/echo") as client:
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    other.wait_for_event("websocket.disconnect", path="/echo")
    server.process.wait(PATIENCE_S)
    assert MODULE not in server.log(), server.log()


def test_an_answer_that_takes_too_long_is_cancelled(
    start_server: StartServer, workers: Workers
) -> None:
    """The ASGI server's patience ends; the workers are told, and the process ends."""
    workers()
    server = start_server("uvicorn", "--timeout-graceful-shutdown", "1")
    other = start_server()

    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(server.client.get("/never")))
    waiting.start()
    eventually(lambda: server.state()["open_requests"], "a request in flight")
    server.process.send_signal(signal.SIGTERM)
    other.wait_for_event("http.disconnect", path="/never")
    server.process.wait(PATIENCE_S)
    waiting.join()
    assert [answer.status_code for answer in answers] == [500]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=hypercorn_does_not_end) if kind == "hypercorn" else kind
        for kind in COMMANDS
    ],
)
def test_a_server_ends_with_idle_connections(
    start_server: StartServer, workers: Workers, kind: str
) -> None:
    """Without a traceback, and without a warning about what is pending."""
    workers()
    server = start_server(kind)
    with connect(f"{server.ws_url}/echo") as client:
        client.send("hello")
        assert client.recv(timeout=PATIENCE_S) == "hello"
        server.client.get("/")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE_S)
    assert MODULE not in server.log(), server.log()
    assert "was destroyed" not in server.log(), server.log()


def test_a_layer_that_cannot_be_used_is_said_at_the_start(prefix: str) -> None:
    """The server does not start, and says why."""
    segment = Path(f"/dev/shm/{prefix}-messages")
    segment.touch(0o600)
    segment.write_bytes(b"not a segment of ours".ljust(1 << 16, b"\0"))
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "--port", "0", "asgi_ipc.interface:application"],
        env={**os.environ, "ASGI_IPC_PREFIX": prefix},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 3
    assert f"{prefix}-messages" in done.stderr, done.stderr
    segment.unlink()


def test_an_impossible_setting_is_named(prefix: str) -> None:
    """With its variable and what was wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "--port", "0", "asgi_ipc.interface:application"],
        env={**os.environ, "ASGI_IPC_PREFIX": prefix, "ASGI_IPC_REQUEST_TIMEOUT": "soon"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 3
    assert "ASGI_IPC_REQUEST_TIMEOUT='soon'" in done.stderr


def test_workers_are_replaced_under_open_connections(
    start_server: StartServer, workers: Workers
) -> None:
    """A websocket stays open while the only worker is killed; the next one goes on with it."""
    server, worker = start_server(), workers()
    with connect(f"{server.ws_url}/echo") as client:
        client.send("before")
        assert client.recv(timeout=PATIENCE_S) == "before"
        worker.kill()
        client.send("between")
        workers()
        assert client.recv(timeout=PATIENCE_S) == "between"
        client.send("after")
        assert client.recv(timeout=PATIENCE_S) == "after"
