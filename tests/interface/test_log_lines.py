"""What a client sent is quoted wherever the log shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from asgi_ipc import IPCChannelLayer

from .processes import PATIENCE_S, Server, eventually

PATH = "/a%0d%0aCRITICAL:%20forged%20%1b%5b31m%e2%80%ae"
QUOTED = r"'/a\r\nCRITICAL: forged \x1b[31m\u202e'"
BEGUN = {"status": 200, "content": b"begun", "more_content": True}
GIVEN_UP = {"content": b"", "more_content": True, "closed": True}


def test_a_path_begins_no_line_and_colours_no_terminal(
    start_server: Callable[..., Server], make_sync: Callable[..., IPCChannelLayer]
) -> None:
    """In every line about a request or a websocket that goes wrong."""
    server = start_server(
        request_timeout=4.0,  # what is answered is answered in time on a slow machine, too
        websocket_connect_timeout=4.0,
        max_message_bytes=20_000,
        channel_capacity='{"websocket.receive": 1}',
        websocket_full_timeout=0.1,
    )
    layer = make_sync(message_memory=100 << 20, group_memory=20 << 20)

    def take(channel: str) -> dict[str, Any]:
        return eventually(lambda: layer.receive_many([channel], block=True)[1], channel)

    def request(*answers: dict[str, Any]) -> None:
        def ask() -> None:
            with server.client.stream("GET", PATH) as response, suppress(httpx.ProtocolError):
                response.read()  # a client that leaves before its answer is cut makes no line

        thread = threading.Thread(target=ask)
        thread.start()
        reply_channel = take("http.request")["reply_channel"]
        for answer in answers:
            layer.send(reply_channel, answer)
        thread.join()

    def open_socket(answer: dict[str, Any] | None) -> None:
        def answering() -> None:
            message = take("websocket.connect")
            if answer is not None:
                layer.send(message["reply_channel"], answer)

        thread = threading.Thread(target=answering)
        thread.start()
        try:
            with connect(f"{server.ws_url}{PATH}", open_timeout=PATIENCE_S) as socket:
                socket.send("1")
                socket.send("2")
                socket.recv(timeout=PATIENCE_S)
        finally:
            thread.join()

    request({})  # malformed
    request()  # no answer
    request(BEGUN, GIVEN_UP)
    for answer in ({"odd": 1}, None):
        with pytest.raises(InvalidStatus):
            open_socket(answer)
    with pytest.raises(Exception, match="1013"):
        open_socket({"accept": True})  # nobody reads its frames
    try:
        eventually(lambda: server.log().count(QUOTED) >= 6, "six lines about it")
    finally:
        print(server.log())
    log = server.log()
    assert "forged" in log and "\x1b" not in log and "\u202e" not in log
    assert not [line for line in log.splitlines() if line.startswith("CRITICAL")]
