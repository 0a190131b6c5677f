"""``tcp_server.py`` and its workers, with real connections."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from .processes import EXAMPLES, PATIENCE_S, Process

if TYPE_CHECKING:
    from asgi_ipc import AsyncIPCChannelLayer

Run = Callable[..., Process]
SERVER = str(EXAMPLES / "tcp_server.py")
WORKER = str(EXAMPLES / "tcp_worker.py")


class Client:
    """A connection, line by line."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._lines = self._socket.makefile("rb")

    def send(self, text: str) -> None:
        """Send a line."""
        self._socket.sendall(text.encode() + b"\n")

    def line(self) -> str:
        """Return the next line, "" when the server has closed."""
        return self._lines.readline().decode().rstrip("\n")

    def close(self) -> None:
        """Leave."""
        self._lines.close()
        self._socket.close()


@pytest.fixture
def server(run: Run, prefix: str) -> tuple[Process, int]:
    """The server, and its port."""
    process = run(SERVER, "--prefix", prefix, "--port", "0")
    return process, int(process.expect(r"listening on port (\d+)"))


def _worker(run: Run, prefix: str) -> Process:
    process = run(WORKER, "--prefix", prefix)
    process.expect("waiting for lines")
    return process


def test_lines_are_answered_by_whichever_worker_there_is(
    run: Run, prefix: str, server: tuple[Process, int]
) -> None:
    """Connections stay while the workers come and go; a line waits for one that comes."""
    process, port = server
    with closing(Client(port)) as ann, closing(Client(port)) as bob:
        first = _worker(run, prefix)
        ann.send("hello")
        bob.send("grüß dich")
        assert ann.line() == f"HELLO (worker {first.pid})"
        assert bob.line() == f"GRÜSS DICH (worker {first.pid})"
        first.stop()
        ann.send("anybody there?")
        second = _worker(run, prefix)
        assert ann.line() == f"ANYBODY THERE? (worker {second.pid})"
        second.stop()
    process.stop()


def test_a_client_may_send_many_lines_at_once_and_leave(
    run: Run, prefix: str, server: tuple[Process, int]
) -> None:
    """More than fit into a channel: each is answered in order; who leaves harms nobody."""
    process, port = server
    worker = _worker(run, prefix)
    with closing(Client(port)) as client:
        client.send("\n".join(str(number) for number in range(1000)))
        for number in range(1000):
            assert client.line().split()[0] == str(number)
        client.send("x" * 100_000)  # more than a line may have: it is shown the door
        assert client.line() == ""
    with closing(Client(port)) as client:
        client.send("and leave")
    with closing(Client(port)) as client:
        client.send("still there?")
        assert client.line().startswith("STILL THERE?")
    worker.stop()
    process.stop()


def test_the_server_leaves_no_channel_behind(
    run: Run,
    prefix: str,
    server: tuple[Process, int],
    make_layer: Callable[..., AsyncIPCChannelLayer],
) -> None:
    """Every message sent was received when all were answered."""
    _, port = server
    worker = _worker(run, prefix)
    for _ in range(20):
        with closing(Client(port)) as client:
            client.send("hello")
            assert client.line().startswith("HELLO")
    counts = make_layer().sync.global_statistics()
    assert counts["messages_pending"] == 0
    assert counts["messages_count"] == counts["received_count"] == 40
    worker.stop()
