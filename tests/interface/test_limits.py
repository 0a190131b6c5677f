"""When something takes too long, is too large, or there is no room for it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from asgi_ipc import ChannelFull, IPCChannelLayer
from tests.conftest import Child

from .answering import pattern
from .processes import PATIENCE_S, Server, eventually

StartServer = Callable[..., Server]
Workers = Callable[[], Child]


@contextlib.contextmanager
def raw_request(server: Server, request: bytes, **options: int) -> Iterator[socket.socket]:
    """Send bytes, over a socket that reads only when it is told to."""
    with socket.socket() as client:
        if "receive_buffer" in options:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["receive_buffer"])
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", server.port))
        client.sendall(request)
        yield client


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def get(path: str) -> bytes:
    """The bytes of a request after which the server closes."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def content_of(response: bytes) -> bytes:
    """The content of a response in chunks."""
    head, _, rest = response.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower(), head
    parts: list[bytes] = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return b"".join(parts)
        parts.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]


# -- no answer ---------------------------------------------------------------------------


def test_no_answer_is_a_504(start_server: StartServer, workers: Workers) -> None:
    """After ``request_timeout``; a late answer to it reaches nobody."""
    workers()
    server = start_server(request_timeout=2.5)  # in which the other requests are answered
    answer = server.client.get("/hold")
    assert answer.status_code == 504
    assert answer.text == "504 Gateway Timeout\n\nNo worker answered within 2.5 s.\n"
    assert server.client.get("/release").json() == 1
    assert server.client.get("/bytes?count=5").content == pattern(5)
    eventually(lambda: not server.state()["orphans"], "the end of what was read for nobody")
    assert server.state()["timed_out"] == 1


def test_a_worker_that_dies_in_a_response_cuts_it(
    start_server: StartServer, workers: Workers
) -> None:
    """After ``request_timeout`` without a chunk."""
    workers()
    server = start_server(request_timeout=2.5)  # in which the first chunk comes
    with pytest.raises(httpx.RemoteProtocolError):
        server.client.get("/dies")
    assert "no further chunk in 2.5 s" in server.log()


def test_no_answer_to_a_websocket_refuses_it(start_server: StartServer, workers: Workers) -> None:
    """With 504, after ``websocket_connect_timeout``."""
    workers()
    server = start_server(websocket_connect_timeout=0.5)
    with pytest.raises(InvalidStatus) as refused, connect(f"{server.ws_url}/silent"):
        pass
    assert refused.value.response.status_code == 504
    server.wait_for_event("websocket.disconnect", path="/silent", code=1006)


def test_a_websocket_ends_after_its_timeout(start_server: StartServer, workers: Workers) -> None:
    """With 1000, and the worker hears of it."""
    workers()
    server = start_server(websocket_timeout=0.5)
    with connect(f"{server.ws_url}/echo") as client, pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
    server.wait_for_event("websocket.disconnect", path="/echo", code=1000)


def test_a_body_that_stands_still_is_a_408(start_server: StartServer, workers: Workers) -> None:
    """After ``client_timeout``; no worker hears of the request."""
    workers()
    server = start_server(client_timeout=0.5)
    request = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
    with raw_request(server, request) as client:
        assert read_all(client).startswith(b"HTTP/1.1 408 ")
    assert all(message["path"] != "/body" for _, message in server.events())


# -- no room -----------------------------------------------------------------------------


def fill(prefix: str, channel: str) -> IPCChannelLayer:
    """Fill a channel that nobody reads; return the layer, to be closed."""
    layer = IPCChannelLayer(prefix=prefix)
    for _ in range(layer.capacity):
        layer.send(channel, {})
    return layer


def test_a_full_request_channel_is_a_503(start_server: StartServer, prefix: str) -> None:
    """With Retry-After, at once, and the connection is closed."""
    server = start_server()
    layer = fill(prefix, "http.request")
    answer = server.client.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["connection"] == "close"
    assert server.state()["full"] == 1
    layer.close()


def test_a_full_connect_channel_refuses_websockets(start_server: StartServer, prefix: str) -> None:
    """With 503 where the server can say that."""
    server = start_server()
    layer = fill(prefix, "websocket.connect")
    with pytest.raises(InvalidStatus) as refused, connect(f"{server.ws_url}/echo"):
        pass
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"
    assert server.state()["open_websockets"] == 0
    layer.close()


def test_a_full_receive_channel_closes_websockets(
    start_server: StartServer, workers: Workers, prefix: str
) -> None:
    """With 1013, once a frame has waited for ``websocket_full_timeout``."""
    server, worker = start_server(websocket_full_timeout=0.2), workers()
    with connect(f"{server.ws_url}/echo") as client:
        client.send("answered")
        assert client.recv(timeout=PATIENCE_S) == "answered"
        worker.kill()
        layer = fill(prefix, "websocket.receive")
        client.send("for nobody")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
    layer.close()


def test_disconnects_that_nobody_reads_are_dropped(
    start_server: StartServer, prefix: str, make_sync: Callable[..., IPCChannelLayer]
) -> None:
    """And counted; nothing waits for them."""
    server = start_server()
    fill(prefix, "http.disconnect").close()
    layer = make_sync(message_memory=100 << 20, group_memory=20 << 20)
    with raw_request(server, get("/")) as client:
        channel, message = None, None
        while channel is None:
            channel, message = layer.receive(["http.request"], block=True)
        assert message is not None
        layer.send(message["reply_channel"], {"status": 200, "content": b"fine"})
        assert read_all(client).endswith(b"fine")
    assert server.state()["disconnects_dropped"] == 1


# -- too large ---------------------------------------------------------------------------


def test_a_body_above_the_limit_is_a_413(start_server: StartServer, workers: Workers) -> None:
    """Known beforehand or not; one of the limit itself is taken."""
    workers()
    server = start_server(max_body_bytes=3_000_000)

    def produce() -> Iterator[bytes]:
        for _ in range(31):
            yield bytes(100_000)

    assert server.client.post("/", content=bytes(3_000_000)).json()["body_bytes"] == 3_000_000
    for body in (bytes(3_000_001), produce()):
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it need not read it all
            assert server.client.post("/", content=body).status_code == 413
    assert server.state()["too_large"] == 2


def test_a_frame_above_the_limit_of_the_layer(start_server: StartServer, workers: Workers) -> None:
    """It closes the websocket with 1009; a body that is larger comes in smaller chunks."""
    workers()
    server = start_server(max_message_bytes=100_000)
    with connect(f"{server.ws_url}/echo") as client:
        client.send(bytes(100_000))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    facts = server.client.post("/", content=bytes(400_000)).json()
    assert facts["body_bytes"] == 400_000 and max(facts["chunks"]) == 50_000


# -- slow clients ------------------------------------------------------------------------


def test_a_slow_client_holds_no_worker(start_server: StartServer, workers: Workers) -> None:
    """All of its response is taken over while it has read nothing; then it gets it, whole."""
    workers()
    server = start_server()
    with raw_request(
        server, get("/stream?count=100&size=200000"), receive_buffer=1 << 16
    ) as client:
        told = server.wait_for_event("streamed")
        assert told["full"] >= 0
        assert server.state()["resident_bytes"] < 200_000_000
        assert content_of(read_all(client)) == pattern(20_000_000)


def test_a_slow_client_slows_its_worker_down(start_server: StartServer, workers: Workers) -> None:
    """From ``response_buffer_bytes`` on, and nobody else's; in the end it gets everything."""
    workers()
    other = workers()
    server = start_server(response_buffer_bytes=1_000_000)
    with raw_request(server, get("/stream?count=400&size=50000"), receive_buffer=1 << 16) as client:
        # Beyond the sockets' buffers, the limit and the channel's capacity, there is no room.
        layer_is_full = eventually(lambda: full_count(server) > 20, "a channel that is full")
        assert layer_is_full
        for _ in range(20):
            assert server.client.get("/bytes?count=1000").content == pattern(1000)
        assert content_of(read_all(client)) == pattern(20_000_000)
    assert other.process.poll() is None


def full_count(server: Server) -> int:
    """How often a send has found no room, of all processes."""
    return int(server.state()["channel_full_count"])


def test_a_response_whose_chunks_may_have_expired_is_cut(
    start_server: StartServer, workers: Workers
) -> None:
    """A client gets no response with a hole, however slow it was."""
    workers()
    server = start_server(response_buffer_bytes=100_000, expiry=3, request_timeout=4)
    request = get("/stream?count=400&size=50000")
    with contextlib.ExitStack() as clients:

        def begin() -> socket.socket | None:
            """Ask; again if the request itself has expired, on a slow machine."""
            client = clients.enter_context(raw_request(server, request, receive_buffer=1 << 16))
            return client if client.recv(12, socket.MSG_PEEK).endswith(b" 200") else None

        client = eventually(begin, "a response that begins")
        eventually(lambda: full_count(server) > 5, "a channel that is full")
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 3.5, "more than the expiry")
        response = read_all(client)
    assert not response.endswith(b"0\r\n\r\n") and len(response) < 20_000_000
    assert "may have expired" in server.log()


def test_a_response_whose_chunks_have_all_expired_is_cut(
    start_server: StartServer, make_sync: Callable[..., IPCChannelLayer]
) -> None:
    """Also if its channel is empty when it is read again, and its worker sends on only then."""
    server = start_server(response_buffer_bytes=100_000, expiry=3)
    layer = make_sync(message_memory=100 << 20, group_memory=20 << 20, expiry=3)
    response: list[bytes] = []
    with raw_request(server, get("/"), receive_buffer=1 << 16) as client:
        request = eventually(lambda: layer.receive_many(["http.request"])[1], "the request")
        name = request["reply_channel"]
        chunk = {"content": bytes(50_000), "more_content": True}
        layer.send(name, {"status": 200, **chunk})

        def is_full() -> bool:
            """Send one more, if there is room; whether there has been none many times."""
            with contextlib.suppress(ChannelFull):
                layer.send(name, chunk)
            return layer.global_statistics()["channel_full_count"] > 20

        eventually(is_full, "a channel that is full")
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 3.5, "more than the expiry")
        reading = threading.Thread(target=lambda: response.append(read_all(client)))
        reading.start()
        eventually(lambda: server.state()["waiters"], "that the server wants the next chunk")
        layer.send(name, {"content": b"the end"})
        reading.join()
    assert not response[0].endswith(b"0\r\n\r\n")
    assert "may have expired" in server.log()


def test_a_client_that_stands_still_is_cut(start_server: StartServer, workers: Workers) -> None:
    """After ``client_timeout`` in the middle of a response."""
    workers()
    server = start_server(client_timeout=0.5)
    with raw_request(
        server, get("/stream?count=100&size=200000"), receive_buffer=1 << 16
    ) as client:
        eventually(lambda: server.state()["cut"], "the end of the response")
        assert not read_all(client).endswith(b"0\r\n\r\n")
    assert re.search(r"cut: its client stood still for 0\.5 s", server.log())


def test_a_websocket_that_is_too_far_behind_is_closed(
    start_server: StartServer, workers: Workers
) -> None:
    """The others of its process do not notice."""
    workers()
    server = start_server(websocket_buffer_bytes=4_000_000)
    with (
        connect(f"{server.ws_url}/echo", max_size=None) as other,
        connect(f"{server.ws_url}/flood", max_size=None, max_queue=1, close_timeout=0.5) as slow,
    ):
        slow.send("30")  # messages of 1 MiB, of which it reads none
        eventually(lambda: server.state()["slow"] == 1, "the end of the slow one")
        other.send("still here")
        assert other.recv(timeout=PATIENCE_S) == "still here"
        assert server.state()["resident_bytes"] < 300_000_000
    assert "websocket_buffer_bytes" in server.log()
