"""Clients that take their time over an answer, and those that do not take it at all."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from asgi_ipc.interface._patience import unacknowledged
from tests.conftest import Child

from .answering import pattern
from .processes import PATIENCE_S, Server, eventually
from .test_limits import content_of, get, raw_request, read_all

StartServer = Callable[..., Server]
Workers = Callable[[], Child]

KINDS = pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("uvicorn", ("--http", "httptools")),
        ("uvicorn", ("--http", "h11")),
        ("hypercorn", ()),
    ],
)


@KINDS
def test_a_client_that_reads_slowly_but_steadily_gets_everything(
    start_server: StartServer, workers: Workers, kind: str, arguments: tuple[str, ...]
) -> None:
    """However little it takes in ``client_timeout``, and however large the kernel's buffers."""
    workers()
    server = start_server(kind, *arguments, client_timeout=2)
    with raw_request(server, get("/stream?count=100&size=200000")) as client:
        parts = []
        began = time.monotonic()
        while (passed_s := time.monotonic() - began) < 8:
            parts.append(client.recv(20_000))
            due = began + sum(map(len, parts)) / 200_000  # bytes per second
            eventually(lambda due=due: time.monotonic() >= due, "its turn")  # type: ignore[misc]
        assert passed_s
        assert content_of(b"".join(parts) + read_all(client)) == pattern(20_000_000)
    assert server.state()["cut"] == 0


@KINDS
def test_a_client_that_reads_nothing_of_one_message_is_cut(
    start_server: StartServer, workers: Workers, kind: str, arguments: tuple[str, ...]
) -> None:
    """After ``client_timeout``; meanwhile what it left lies in a file, not in memory."""
    workers()
    server = start_server(kind, *arguments, client_timeout=1)
    server.client.get("/bytes?count=20000000")
    before = server.state()
    with ExitStack() as clients:
        for _ in range(4):
            request = raw_request(server, get("/bytes?count=20000000"), receive_buffer=1 << 16)
            clients.enter_context(request)
        eventually(lambda: server.state()["open_requests"] == 4, "their requests")
        eventually(lambda: server.state()["cut"] == 4, "the end of them")
        assert server.state()["own_bytes"] - before["own_bytes"] < 40_000_000
        if kind == "uvicorn":  # hypercorn waits for them until they go
            sockets = before["sockets"]  # not all descriptors: the loop asks for inotify late
            eventually(lambda: server.state()["sockets"] <= sockets, "the connections' end")
    assert "cut: its client stood still for 1 s" in server.log()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_a_client_has_not_acknowledged(host: str) -> None:
    """The kernel knows it for each connection, and nothing of those that are none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
        listener.listen()
        client.settimeout(PATIENCE_S)
        client.connect(listener.getsockname())
        here, _ = listener.accept()
        with here:
            scope = {"server": here.getsockname()[:2], "client": here.getpeername()[:2]}
            assert unacknowledged(scope) == 0
            here.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += here.send(bytes(1 << 20))
            except BlockingIOError:
                waiting = unacknowledged(scope)
            assert waiting is not None and 0 < waiting <= sent
            while sent:
                sent -= len(client.recv(1 << 20))
            eventually(lambda: unacknowledged(scope) == 0, "the acknowledgement of all")
    assert unacknowledged(scope | {"client": (host, 0)}) is None
    assert unacknowledged(scope | {"client": ("unknown", 7)}) is None
    assert unacknowledged({"server": ("/run/socket", None), "client": None}) is None
