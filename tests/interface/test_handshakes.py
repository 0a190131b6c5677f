"""What wsproto's own tests accept and refuse of an opening handshake, on every server.

What is no handshake reaches a worker as a request, or is refused; it is never a websocket.
"""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Iterator

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from tests.conftest import OURS

from .processes import PATIENCE_S, Server, start_worker

KINDS = {
    "websockets": ("uvicorn", ("--ws", "websockets")),
    "sansio": ("uvicorn", ("--ws", "websockets-sansio")),
    "wsproto": ("uvicorn", ("--ws", "wsproto")),
    "hypercorn": ("hypercorn", ()),
    "daphne": ("daphne", ()),
}
KEY = "AQIDBAUGBwgJCgsMDQ4PEA=="
ACCEPT = base64.b64encode(
    hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
).decode()
HEADERS = {
    "Host": "localhost",
    "Connection": "Keep-Alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
# What is different from an ordinary handshake, and the statuses in the order of KINDS.
CASES: dict[str, tuple[dict[str, str], tuple[int, ...]]] = {
    "ordinary": ({}, (101,) * 5),
    "more headers": ({"X-Foo": "bar"}, (101,) * 5),
    "in other letters": ({"Connection": "upgrade", "Upgrade": "WebSocket"}, (101,) * 5),
    "a POST": ({"method": "POST"}, (400, 405, 400, 200, 405)),
    "no upgrade of the connection": (
        {"Connection": "Keep-Alive, No-Upgrade"},
        (200, 200, 200, 200, 400),
    ),
    "an upgrade to something else": ({"Upgrade": "other"}, (200,) * 5),
    "an older version": ({"Sec-WebSocket-Version": "12"}, (400, 400, 426, 400, 400)),
    "a version that is no number": (
        {"Sec-WebSocket-Version": "not-a-digit"},
        (400, 400, 426, 400, 400),
    ),
    "no version": ({"Sec-WebSocket-Version": ""}, (400,) * 5),
    "no key": ({"Sec-WebSocket-Key": ""}, (400,) * 5),
    "subprotocols that nobody takes": ({"Sec-WebSocket-Protocol": "one, two"}, (101,) * 5),
    "an unknown extension": ({"Sec-WebSocket-Extensions": "pretend; a=b"}, (101,) * 5),
    "nonsense": ({"line": "broken nonsense"}, (400,) * 5),
}


@pytest.fixture(scope="module", params=list(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each server with each of its websocket libraries, and one worker."""
    kind, arguments = KINDS[request.param]
    prefix = f"{OURS}handshake-{request.param}"
    server, worker = Server(kind, prefix, *arguments), start_worker(prefix)
    server.name = request.param  # type: ignore[attr-defined]
    try:
        server.client.get("/")
        yield server
    finally:
        server.kill()
        worker.kill()
        AsyncIPCChannelLayer(prefix).unlink()


def shake_hands(server: Server, different: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Send a handshake; return the status and the headers of the answer."""
    headers = {**HEADERS, **different}
    method = headers.pop("method", "GET")
    line = headers.pop("line", f"{method} /echo HTTP/1.1")
    lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value), "", ""]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
        client.sendall("\r\n".join(lines).encode())
        answer = client.makefile("rb")
        status = int(answer.readline().split()[1])
        got = {}
        while text := answer.readline().decode().strip():
            name, _, value = text.partition(":")
            got[name.lower()] = value.strip()
    return status, got


@pytest.mark.parametrize("case", CASES)
def test_a_handshake(server: Server, case: str) -> None:
    """It opens a websocket, or is refused, or is an ordinary request."""
    different, statuses = CASES[case]
    status, headers = shake_hands(server, different)
    assert status == statuses[list(KINDS).index(server.name)]  # type: ignore[attr-defined]
    if status == 101:
        assert headers["sec-websocket-accept"] == ACCEPT
        assert headers["upgrade"].lower() == "websocket"
        assert "sec-websocket-protocol" not in headers
        assert "pretend" not in headers.get("sec-websocket-extensions", "")
    if status == 426:
        assert headers["sec-websocket-version"] == "13"
