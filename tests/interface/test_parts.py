"""The parts of the interface that need no server: formats, bytes that wait, options, interrupts."""

from __future__ import annotations

import asyncio
import random
import tempfile
import tracemalloc
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.interface import InterfaceOptions, InterfaceServer, LayerOptions
from asgi_ipc.interface._backlog import Backlog
from asgi_ipc.interface._interrupt import Interrupt
from asgi_ipc.interface._messages import (
    Malformed,
    connect_message,
    parse_start,
    parse_websocket_reply,
    request_message,
    select_subprotocol,
)

SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "method": "get",
    "scheme": "https",
    "path": "/mount/page",
    "root_path": "/mount",
    "query_string": b"a=1",
    "headers": [(b"x-root", b"/other"), (b"x_y", b"1"), (b"host", b"example.org")],
    "client": None,
    "server": ("/run/socket", None),
}


# -- formats -----------------------------------------------------------------------------


def test_a_request_over_a_unix_socket() -> None:
    """There is no client and no server to name; the rest is there."""
    message = request_message(SCOPE, "r!1", None, None, b"body", "b?1")
    assert message == {
        "reply_channel": "r!1",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/mount/page",
        "root_path": "/mount",
        "query_string": b"a=1",
        "headers": [(b"x-root", b"/other"), (b"host", b"example.org")],
        "client": None,
        "server": None,
        "body": b"body",
        "body_channel": "b?1",
    }


def test_the_root_path_may_be_set() -> None:
    """By an option, and by a header, which then is none any more."""
    assert request_message(SCOPE, "r!1", "/set", None, b"", None)["root_path"] == "/set"
    message = request_message(SCOPE, "r!1", "/set", b"x-root", b"", None)
    assert message["root_path"] == "/other"
    assert [name for name, _ in message["headers"]] == [b"host"]
    assert connect_message(SCOPE, "r!1", "/set", None)["root_path"] == "/set"


def test_headers_of_a_response() -> None:
    """Names in lower case, text as latin-1, nothing that concerns the connection."""
    headers = [["Content-Type", "text/plain; ä"], [b"Connection", b"close"], [b"X-A", b" 1 "]]
    start = parse_start({"status": 200, "headers": headers, "status_text": b"ignored"})
    assert start.headers == [(b"content-type", b"text/plain; \xe4"), (b"x-a", b"1")]
    assert (start.content, start.more, start.length) == (b"", False, None)


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        ({}, (None, None, None, None)),
        ({"accept": True}, (True, None, None, None)),
        ({"text": "", "bytes": b"x"}, (None, b"x", None, None)),
        ({"text": "x", "bytes": b""}, (None, "x", None, None)),
        ({"text": ""}, (None, "", None, None)),
        ({"close": False}, (None, None, None, None)),
        ({"close": True, "text": "x"}, (None, "x", 1000, None)),
        ({"close": 3999, "bytes": None}, (None, None, 3999, None)),
    ],
)
def test_websocket_replies(message: dict[str, Any], reply: tuple[Any, ...]) -> None:
    """What each says, and that an empty default beside a payload does not matter."""
    assert tuple(parse_websocket_reply(message)) == reply


@pytest.mark.parametrize("close", [-1, 5, 999, 1005, 1006, 1015, 2999, 5000, "1000", 1.5])
def test_codes_that_may_not_be_sent(close: object) -> None:
    """Are said to be so."""
    with pytest.raises(Malformed, match="close must be"):
        parse_websocket_reply({"close": close})


def test_subprotocols() -> None:
    """The first of the client's that is known."""
    assert select_subprotocol(["a", "b", "c"], ("c", "b")) == "b"
    assert select_subprotocol(["a"], ()) is None


# -- bytes that wait ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_backlog_gives_what_it_got(seed: int) -> None:
    """In order, whatever goes through the file and however it is taken."""
    dice = random.Random(seed)
    put, taken = bytearray(), bytearray()
    with Backlog(1_000) as backlog:
        for _ in range(200):
            if dice.random() < 0.5:
                data = dice.randbytes(dice.choice([1, 10, 300, 999, 1_000, 5_000]))
                put += data
                backlog.put(data)
            elif dice.random() < 0.5:
                taken += backlog.take(dice.randrange(1, 3_000))
            else:
                taken += backlog.take_exactly(dice.randrange(4_000))
            assert backlog.size == len(put) - len(taken)
        taken += backlog.take_exactly(backlog.size)
        assert taken == put and backlog.take() == b""
    assert backlog.size == 0


def test_taking_from_a_large_piece_does_not_copy_the_rest() -> None:
    """However large it is: what is allocated meanwhile is what was taken."""
    with Backlog(1 << 30) as backlog:
        backlog.put(bytes(20_000_000))
        tracemalloc.start()
        try:
            while backlog.take():
                pass
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


async def test_a_large_piece_lies_in_the_file() -> None:
    """All but what may be held in memory; others have their turn while it is put there."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    whole = random.Random(1).randbytes(20_000_000)
    with Backlog(1_000_000) as backlog:
        beside = asyncio.create_task(others())
        tracemalloc.start()
        try:
            await backlog.feed(whole)
            assert tracemalloc.get_traced_memory()[0] < 1_500_000
        finally:
            tracemalloc.stop()
            beside.cancel()
        assert turns > 50 and backlog.size == len(whole)
        assert backlog.take_exactly(len(whole)) == whole


async def test_both_sides_of_a_backlog_wake_each_other() -> None:
    """A reader and a writer that take turns to wait never wait both."""
    whole = random.Random(1).randbytes(300_000)

    async def produce(backlog: Backlog) -> None:
        for at in range(0, len(whole), 700):
            backlog.put(whole[at : at + 700])
            while backlog.size >= 2_000:
                await backlog.changed()
        backlog.finish()

    async def consume(backlog: Backlog) -> bytes:
        parts = []
        while not backlog.is_finished:
            part = backlog.take(500)
            if part:
                parts.append(part)
            else:
                await backlog.changed()
        return b"".join(parts)

    with Backlog(1_000) as backlog:
        async with asyncio.timeout(30):
            _, got = await asyncio.gather(produce(backlog), consume(backlog))
    assert got == whole


def test_a_backlog_whose_file_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so; what it has is still there."""
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with Backlog(10) as backlog:
        backlog.put(b"123456")
        with pytest.raises(OSError, match="nonexistent"):
            backlog.put(b"789abc")
        assert backlog.take() == b"123456"


# -- interrupts --------------------------------------------------------------------------


async def test_an_interrupt_ends_its_block() -> None:
    """And nothing else: what the task awaits behind the block is not touched."""
    loop = asyncio.get_running_loop()
    with Interrupt() as interrupt:
        loop.call_soon(interrupt.fire)
        await loop.create_future()
    assert interrupt.fired
    interrupt.fire()
    await asyncio.sleep(0)


async def test_an_interrupt_lets_a_cancellation_through() -> None:
    """One that came from elsewhere, at the same time too."""

    async def blocked(at_once: bool) -> None:
        with Interrupt() as interrupt:
            if at_once:
                asyncio.get_running_loop().call_soon(interrupt.fire)
            await asyncio.get_running_loop().create_future()

    for at_once in (False, True):
        task = asyncio.create_task(blocked(at_once))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- options -----------------------------------------------------------------------------


def test_options_survive_the_environment() -> None:
    """What ``as_environment`` says is what ``from_environment`` reads."""
    options = InterfaceOptions(
        request_timeout=7.5,
        websocket_timeout=9.0,
        max_body_bytes=123,
        websocket_protocols=("a", "b"),
        root_path="/x",
    )
    layer = LayerOptions(
        prefix="site", capacity=7, channel_capacity={"http.request": 200}, mode=0o660
    )
    variables = {**options.as_environment(), **layer.as_environment()}
    assert InterfaceOptions.from_environment(variables) == options
    assert LayerOptions.from_environment(variables) == layer
    assert variables["ASGI_IPC_MODE"] == "660"
    assert InterfaceOptions.from_environment({}) == InterfaceOptions()
    assert InterfaceOptions.from_environment({"ASGI_IPC_MAX_BODY_BYTES": "none"}) == (
        InterfaceOptions(max_body_bytes=None)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REQUEST_TIMEOUT", "soon"),
        ("REQUEST_TIMEOUT", "0"),
        ("CHUNK_BYTES", "-5"),
        ("MEMORY_BYTES", "1.5"),
    ],
)
def test_impossible_options(name: str, value: str) -> None:
    """Are an error that names the variable or the field."""
    with pytest.raises(ValueError, match=f"(?i){name}"):
        InterfaceOptions.from_environment({f"ASGI_IPC_{name}": value})


# -- the application ---------------------------------------------------------------------


async def test_the_layer_may_be_of_any_face(make_sync: Any) -> None:
    """A project has a blocking layer: the server uses the core below it."""
    layer: IPCChannelLayer = make_sync()
    server = InterfaceServer(layer)
    sent: list[dict[str, Any]] = []
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return requests.pop() if requests else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    task = asyncio.create_task(server(dict(SCOPE), receive, send))
    _, message = await layer.receive_async(["http.request"])
    assert message is not None
    layer.send(message["reply_channel"], {"status": 200, "content": b"fine"})
    await task
    assert [part.get("body") for part in sent] == [None, b"fine"]
    assert server.statistics()["open_requests"] == 0
    await server.close()


async def test_a_protocol_that_it_does_not_know(make_sync: Any) -> None:
    """Is an error that says which there are."""
    with pytest.raises(ValueError, match="'other' is none of http, websocket and lifespan"):
        await InterfaceServer(make_sync())({"type": "other"}, None, None)  # type: ignore[arg-type]
