"""Websockets that send more than the workers can take, beside others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer
from asgi_ipc._operator.inspect import Inspector
from asgi_ipc._operator.peek import peek
from asgi_ipc.interface import InterfaceOptions, InterfaceServer

from .processes import PATIENCE_S, Server, eventually
from .test_parts import SCOPE

FRAMES = 60


@pytest.mark.parametrize("flooders", [1, 20])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("uvicorn", ("--ws", "websockets")),
        ("uvicorn", ("--ws", "websockets-sansio")),
        ("uvicorn", ("--ws", "wsproto")),
        ("hypercorn", ()),
        ("daphne", ()),
    ],
)
def test_a_socket_that_floods_waits_for_itself(
    start_server: Callable[..., Server],
    make_sync: Callable[..., IPCChannelLayer],
    kind: str,
    arguments: tuple[str, ...],
    flooders: int,
) -> None:
    """Another's frame finds few before it; in the end every frame has come, in order."""
    server = start_server(kind, *arguments)
    layer = make_sync(message_memory=100 << 20, group_memory=20 << 20)

    def take(channel: str) -> dict[str, Any]:
        return eventually(lambda: layer.receive_many([channel], block=True)[1], channel)

    def pending() -> float:
        return layer.channel_statistics("websocket.receive")["messages_pending"]

    with ExitStack() as stack:

        def open_socket(path: str) -> ClientConnection:
            async def accept() -> None:
                message = await asyncio.to_thread(take, "websocket.connect")
                layer.send(message["reply_channel"], {"accept": True})

            async def both() -> ClientConnection:
                url = f"{server.ws_url}/{path}"
                opening = asyncio.to_thread(
                    connect, url, open_timeout=PATIENCE_S, ping_interval=None
                )
                socket, _ = await asyncio.gather(opening, accept())
                return socket

            return stack.enter_context(asyncio.run(both()))

        sockets = [open_socket(str(number)) for number in range(flooders)]
        for socket in sockets:
            for number in range(FRAMES):
                socket.send(str(number))
        eventually(lambda: pending() >= max(8, flooders), "frames of every one")
        open_socket("other").send("hello")
        with Inspector(layer.prefix) as inspector:

            def is_queued() -> bool:
                found = peek(inspector.messages, "websocket.receive", 1_000).messages
                return any(b"/other" in message.body for message in found)

            eventually(is_queued, "the other's frame")
        before: list[dict[str, Any]] = []
        while (frame := take("websocket.receive"))["path"] != "/other":
            before.append(frame)
        # At most 8 of one, or one of each beyond an eighth of the capacity.
        assert len(before) <= 8 + 100 // 8 + flooders
        while len(before) < flooders * FRAMES:
            before.append(take("websocket.receive"))
        for flooder in range(flooders):
            texts = [frame["text"] for frame in before if frame["path"] == f"/{flooder}"]
            assert texts == [str(number) for number in range(FRAMES)]


async def test_empty_frames_are_cut_as_well(
    make_layer: Callable[..., AsyncIPCChannelLayer],
) -> None:
    """A client that reads nothing is behind by what its frames take, not only their payload."""
    layer, workers = make_layer(), make_layer()
    server = InterfaceServer(layer, InterfaceOptions(websocket_buffer_bytes=1_000_000))
    events = [{"type": "websocket.connect"}]
    closed = asyncio.Event()

    async def receive() -> dict[str, Any]:
        return events.pop() if events else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            closed.set()
        elif message["type"] == "websocket.send":
            await asyncio.Event().wait()  # its client reads nothing

    scope = {**SCOPE, "type": "websocket", "scheme": "ws"}
    serving = asyncio.create_task(server(scope, receive, send))
    reply_channel = (await workers.receive("websocket.connect"))["reply_channel"]
    await workers.send(reply_channel, {"accept": True})
    for _ in range(20_000):
        try:
            await workers.send(reply_channel, {"text": ""})
        except ChannelFull:
            await asyncio.sleep(0)
        if closed.is_set():
            break
    await serving
    assert server.statistics()["slow"] == 1
    await server.close()
