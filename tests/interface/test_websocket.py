"""Websockets through every ASGI server and a real worker."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_sync

from .processes import PATIENCE_S, Server, eventually


def connect(server: Server, path: str, **options: Any) -> ClientConnection:
    """Open a websocket."""
    options.setdefault("open_timeout", PATIENCE_S)
    socket: ClientConnection = connect_sync(f"{server.ws_url}{path}", max_size=None, **options)
    return socket


def raw(server: Server, *replies: dict[str, Any], **options: Any) -> ClientConnection:
    """Open a websocket whose connection a worker answers with exactly these messages."""
    return connect(server, f"/raw?{msgpack.packb(replies).hex()}", **options)


def status_of(server: Server, *replies: dict[str, Any]) -> int:
    """Return the status with which a websocket is refused after these answers."""
    with pytest.raises(InvalidStatus) as refused, raw(server, *replies):
        pass
    return int(refused.value.response.status_code)


def close_code(socket: ClientConnection) -> int:
    """Wait for the end of a socket; return its code."""
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None, closed.value
    return int(closed.value.rcvd.code)


def test_frames_come_back_as_they_were(server: Server) -> None:
    """Text and bytes, from one character to 5 MB (daphne takes 1 MiB), in order."""
    large = b"y" * (1_000_000 if server.kind == "daphne" else 5_000_000)
    frames: list[str | bytes] = ["héllo ☃", b"\x00\xff", "x" * 100_000, large, "\x00"]
    with connect(server, "/echo") as socket:
        for frame in frames:
            socket.send(frame)
            assert socket.recv(timeout=PATIENCE_S) == frame
        for number in range(200):
            socket.send(str(number))
        assert [socket.recv(timeout=PATIENCE_S) for _ in range(200)] == list(map(str, range(200)))


def test_the_messages_of_a_connection(server: Server) -> None:
    """Connect with everything and order 0, frames from 1 on, disconnect with code and order."""
    with connect(server, "/events?a=1", additional_headers={"X-One": "1"}) as socket:
        socket.send("first")
        socket.send(b"second")
        socket.close(4321)
    seen: list[Any] = []

    def look() -> bool:
        seen.extend(event for event in server.events() if event[0].startswith("websocket"))
        return len([message for _, message in seen if message["path"] == "/events"]) == 4

    eventually(look, "four messages")
    # What several channels carry has no order but this.
    in_order = sorted((m for _, m in seen if m["path"] == "/events"), key=lambda m: m["order"])
    opened, *frames, closed = in_order
    assert opened["order"] == 0 and opened["path"] == "/events"
    assert opened["query_string"] == "a=1" and opened["scheme"] == "ws"
    assert ["x-one", "1"] in opened["headers"]
    assert opened["client"][0] == "127.0.0.1" and opened["server"] == ["127.0.0.1", server.port]
    reply = opened["reply_channel"]
    assert reply.startswith("websocket.send.") and "!" in reply
    assert frames == [
        {"reply_channel": reply, "path": "/events", "order": 1, "text": "first"},
        {"reply_channel": reply, "path": "/events", "order": 2, "bytes": "second"},
    ]
    # Hypercorn does not say what the client's code was.
    code = 1006 if server.kind == "hypercorn" else 4321
    assert closed == {"reply_channel": reply, "path": "/events", "order": 3, "code": code}


@pytest.mark.parametrize(
    ("replies", "first"),
    [
        ([{"accept": True, "text": "welcome"}], "welcome"),
        ([{"text": "welcome"}], "welcome"),
        ([{"bytes": b"welcome"}], b"welcome"),
        ([{"accept": True}, {"accept": True, "text": "later"}], "later"),
        ([{}, {"text": None, "accept": None}, {"text": "third"}], "third"),
        ([{"accept": True, "text": None, "bytes": b"\x00"}], b"\x00"),
    ],
)
def test_answers_that_accept(
    server: Server, replies: list[dict[str, Any]], first: str | bytes
) -> None:
    """``accept``, a payload as the answer, or both; what says nothing is waited out."""
    with raw(server, *replies) as socket:
        assert socket.recv(timeout=PATIENCE_S) == first


@pytest.mark.parametrize(
    "reply",
    [
        {"accept": False},
        {"accept": False, "text": "ignored"},
        {"close": True},
        {"close": 4000},
        {"close": True, "text": ""},
    ],
)
def test_answers_that_refuse(server: Server, reply: dict[str, Any]) -> None:
    """The handshake ends with 403, and the worker hears of the end."""
    assert status_of(server, reply) == 403
    assert server.wait_for_event("websocket.disconnect", path="/raw")["order"] == 1


@pytest.mark.parametrize(("close", "code"), [(True, 1000), (4001, 4001), (1011, 1011)])
def test_answers_that_send_and_close(server: Server, close: object, code: int) -> None:
    """A payload with ``close`` is accepted, sent, and closed with the code.

    Autobahn, below daphne, sends no code below 3000 but 1000.
    """
    with raw(server, {"text": "only this", "close": close}) as socket:
        assert socket.recv(timeout=PATIENCE_S) == "only this"
        sent = 1000 if server.kind == "daphne" and code < 3000 else code
        assert close_code(socket) == sent
    assert server.wait_for_event("websocket.disconnect")["code"] == code


def test_replies_to_an_open_socket(server: Server) -> None:
    """Payloads in order, ``accept`` without effect, then a close behind the last payload."""
    with raw(server, {"accept": True}) as socket:
        replies = [{"text": "1"}, {"accept": False}, {"bytes": b"2"}, {"text": "3", "close": 3333}]
        socket.send(msgpack.packb(replies))
        assert [socket.recv(timeout=PATIENCE_S) for _ in range(3)] == ["1", b"2", "3"]
        assert close_code(socket) == 3333


@pytest.mark.parametrize(
    "bad",
    [
        {"text": "both", "bytes": b"both"},
        {"text": 5},
        {"bytes": "text"},
        {"content": b"of a response"},
        {"close": 17},
        {"accept": True, "subprotocol": 5},
    ],
)
def test_a_malformed_reply(server: Server, bad: dict[str, Any]) -> None:
    """An open socket ignores it, with one log line; a connecting one is refused at once."""
    before = server.log().count("a worker's message is ignored")
    with raw(server, {"accept": True}) as socket:
        socket.send(msgpack.packb([bad, bad, {"text": "good"}]))
        assert socket.recv(timeout=PATIENCE_S) == "good"
    assert status_of(server, bad) == (403 if server.kind == "daphne" else 500)
    assert server.log().count("a worker's message is ignored") == before + 2


def test_a_client_that_leaves_before_the_answer(server: Server) -> None:
    """The worker hears of it, and what it answers later is dropped."""

    async def opening() -> None:
        await connect_async(f"{server.ws_url}/silent", open_timeout=None)

    async def scenario() -> None:
        client = asyncio.create_task(opening())
        await asyncio.to_thread(server.wait_for_event, "websocket.connect", path="/silent")
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client

    asyncio.run(scenario())
    server.wait_for_event("websocket.disconnect", path="/silent", order=1)


def test_a_group_reaches_all_its_sockets(server: Server) -> None:
    """Every member once; one that left, never."""
    with connect(server, "/group") as first, connect(server, "/group") as second:
        with connect(server, "/group") as third:
            assert {s.recv(timeout=PATIENCE_S) for s in (first, second, third)} == {"joined"}
        second.send("hello")
        assert [first.recv(timeout=PATIENCE_S), second.recv(timeout=PATIENCE_S)] == ["hello"] * 2


def test_a_worker_may_choose_a_subprotocol(server: Server) -> None:
    """Beyond Channels 1: ``subprotocol`` in the message that accepts."""
    reply = {"accept": True, "subprotocol": "b"}
    with raw(server, reply, subprotocols=["a", "b"]) as socket:
        assert socket.subprotocol == "b"


def test_a_subprotocol_that_was_not_offered(server: Server) -> None:
    """Is a worker's mistake: the handshake is refused, and the client never sees it."""
    with pytest.raises(InvalidStatus) as refused:
        raw(server, {"accept": True, "subprotocol": "c"}, subprotocols=["a", "b"])
    assert refused.value.response.status_code == (403 if server.kind == "daphne" else 500)
    assert "the client has not offered subprotocol 'c'" in server.log()
