"""The other process of ``bench``: echoes, or sends as fast as it can, until it is killed.

``python -m asgi_ipc._cli.bench_peer MODE ARGUMENT``, where the argument is a prefix, or the
descriptor of a socket for the modes that are the floor. It says "ready" when it is.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgpack

from .. import AsyncIPCChannelLayer, ChannelFull

__all__ = ["CAPACITY", "MODES", "messages_from"]

CAPACITY = 5_000
_PADDING = "x" * 80  # about 100 bytes with the rest


def _say_ready() -> None:
    print("ready", flush=True)


async def messages_from(sock: socket.socket) -> AsyncIterator[dict[str, Any]]:
    """Yield what arrives at a socket."""
    loop = asyncio.get_running_loop()
    unpacker = msgpack.Unpacker()
    while piece := await loop.sock_recv(sock, 1 << 16):
        unpacker.feed(piece)
        for message in unpacker:
            yield message


async def floor_echo(argument: str) -> None:
    """Send every message back through the socket."""
    sock = socket.socket(fileno=int(argument))
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    _say_ready()
    async for message in messages_from(sock):
        await loop.sock_sendall(sock, msgpack.packb(message))


async def floor_flood(argument: str) -> None:
    """Send through the socket, which stops us when it is full."""
    sock = socket.socket(fileno=int(argument))
    pack = msgpack.Packer().pack
    _say_ready()
    for n in itertools.count():
        sock.sendall(pack({"n": n, "text": _PADDING}))


async def echo(prefix: str) -> None:
    """Send every message back to the channel that it names."""
    layer = AsyncIPCChannelLayer(prefix, capacity=CAPACITY)
    await layer.send("hello", {})
    _say_ready()
    while True:
        message = await layer.receive("ping")
        await layer.send(message["reply"], message)


async def flood(prefix: str) -> None:
    """Send; when the channel is full, let the reader catch up a little."""
    layer = AsyncIPCChannelLayer(prefix, capacity=CAPACITY)
    _say_ready()
    for n in itertools.count():
        while True:
            try:
                await layer.send("flood", {"n": n, "text": _PADDING})
                break
            except ChannelFull:
                time.sleep(0.001)


MODES = {"floor-echo": floor_echo, "floor-flood": floor_flood, "echo": echo, "flood": flood}

if __name__ == "__main__":
    try:
        asyncio.run(MODES[sys.argv[1]](sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the measurement is over
