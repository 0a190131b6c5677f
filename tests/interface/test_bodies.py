"""Request bodies through the layer: whole, or an error, whatever expires or is lost on the way."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from asgi_ipc import IPCChannelLayer
from tests.conftest import Child

from .processes import PATIENCE_S, Server, eventually

StartServer = Callable[..., Server]
Workers = Callable[[], Child]
MakeSync = Callable[..., IPCChannelLayer]
SIZES = {"message_memory": 100 << 20, "group_memory": 20 << 20}


@contextmanager
def uploading(server: Server, body: bytes) -> Iterator[list[httpx.Response]]:
    """Upload beside the test; the answer is in the list afterwards."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(server.client.post("/upload", content=body))
    )
    thread.start()
    try:
        yield answers
    finally:
        thread.join()


def take(layer: IPCChannelLayer, channel: str) -> dict[str, Any]:
    """Wait for a message as the worker of Channels 1 does."""
    return eventually(lambda: layer.receive_many([channel], block=True)[1], f"one on {channel}")


def read_body(
    layer: IPCChannelLayer, request: dict[str, Any], before_each: Callable[[], object] = bool
) -> bytes | None:
    """Read a body as the request of Channels 1.1.8 does; None where that raises RequestAborted."""
    body: bytes = request["body"]
    while True:
        before_each()
        chunk = take(layer, request["body_channel"])
        if chunk.get("closed", False):
            return None
        body += chunk.get("content", b"")
        if not chunk.get("more_content", False):
            return body


def unread(layer: IPCChannelLayer, channel: str) -> float:
    """How many messages wait in a channel."""
    return layer.channel_statistics(channel)["messages_pending"]


def until(moment: float) -> None:
    """Wait for a moment of ``time.monotonic``."""
    eventually(lambda: time.monotonic() > moment, "the time to come")


def test_a_worker_may_be_late_for_a_body(
    start_server: StartServer, prefix: str, make_sync: MakeSync
) -> None:
    """A body whose chunks wait for longer than the layer's expiry arrives whole."""
    server, layer = start_server(expiry=1), make_sync(**SIZES)
    body = random.Random(1).randbytes(12_000_000)
    with uploading(server, body) as answers:
        request = take(layer, "http.request")
        until(time.monotonic() + 1.5)
        got = read_body(layer, request)
        assert got is not None and hashlib.md5(got).digest() == hashlib.md5(body).digest()
        layer.send(request["reply_channel"], {"status": 200, "content": b"whole"})
    assert answers[0].text == "whole"


def test_a_body_whose_chunks_expire_is_an_error(
    start_server: StartServer, prefix: str, make_sync: MakeSync
) -> None:
    """A worker that reads fast and then slowly is told that it gets no more; its client, too."""
    server = start_server(expiry=0.4, request_timeout=1.6)
    layer = make_sync(**SIZES)
    began = 0.0
    reads = 0

    def slowly() -> None:
        nonlocal began, reads
        began = began or time.monotonic()
        reads += 1
        until(began + max(0, reads - 2) * 0.6)

    with uploading(server, random.Random(2).randbytes(12_000_000)) as answers:
        request = take(layer, "http.request")
        assert read_body(layer, request, slowly) is None
    assert answers[0].status_code == 504
    assert "body" in answers[0].text and "was not read in time" in server.log()


def test_a_body_whose_chunks_are_flushed_is_an_error(
    start_server: StartServer, prefix: str, make_sync: MakeSync
) -> None:
    """The worker is told that it gets no more, and the client gets its 504 at once."""
    server, layer = start_server(), make_sync(**SIZES)
    with uploading(server, random.Random(3).randbytes(12_000_000)) as answers:
        request = take(layer, "http.request")
        take(layer, request["body_channel"])
        eventually(lambda: unread(layer, request["body_channel"]) > 1, "chunks that wait")
        layer.flush()
        assert read_body(layer, request) is None
    assert answers[0].status_code == 504


def test_what_a_gone_client_sent_is_taken_back(
    start_server: StartServer, prefix: str, make_sync: MakeSync
) -> None:
    """Of its body nothing stays in memory, and who reads it is told that the client has gone."""
    server, layer = start_server(), make_sync(**SIZES)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
            client.sendall(head + bytes(3_000_000))
            request = take(layer, "http.request")
            assert len(request["body"]) == 0
            channel = request["body_channel"]
            eventually(partial(unread, layer, channel), "a chunk")
        eventually(lambda: server.state()["open_requests"] == 0, "the end of the request")
        assert take(layer, channel) == {"closed": True}
        assert layer.receive_many([channel]) == (None, None)
    assert server.state()["aborted"] == 5


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("uvicorn", ("--http", "httptools")),
        ("uvicorn", ("--http", "h11")),
        ("hypercorn", ("--read-timeout", "1000")),
    ],
)
def test_a_body_that_never_begins_is_a_408(
    start_server: StartServer, workers: Workers, kind: str, arguments: tuple[str, ...]
) -> None:
    """After ``client_timeout``; no worker hears of the request."""
    workers()
    server = start_server(kind, *arguments, client_timeout=0.5)
    request = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
        client.sendall(request)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    assert all(message["path"] != "/body" for _, message in server.events())
    assert server.state()["timed_out"] == 1
