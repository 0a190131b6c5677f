"""asgi_ipc itself, as a contender: a prefix of its own for every use, removed after it."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asgi_ipc import ChannelFull
from asgi_ipc.aio import AsyncIPCChannelLayer
from benchmarks.harness import Message
from benchmarks.links import Pair, pair
from benchmarks.processes import Worker, WorkerSpec, worker


class OurLink:
    """One end of a connection through a layer: see `links.Link`.

    Normal channels are received with `receive_async`, process-specific ones with `receive`: the
    two ways in which a Channels 1 and a Channels 4 site use the layer.
    """

    full = ChannelFull

    def __init__(self, end: int, specific: bool, options: dict[str, Any]) -> None:
        self._layer = AsyncIPCChannelLayer(**options)
        self._end = end
        self._specific = specific

    async def open(self) -> str:
        """Choose the channel to receive from; returns its name."""
        if self._specific:
            channel = await self._layer.new_channel("bench")
            self.receive = partial(self._layer.receive, channel)
        else:
            channel = f"bench.end{self._end}"
            self.receive = partial(self._receive_async, [channel])
        return channel

    async def _receive_async(self, channels: list[str]) -> Message:
        _, message = await self._layer.receive_async(channels)
        assert message is not None
        return message

    def connect(self, address: str) -> None:
        """Send to that channel from now on."""
        self.send = partial(self._layer.send, address)

    async def close(self) -> None:
        """Close the layer; the segments stay."""
        await self._layer.close()


@asynccontextmanager
async def segments(**options: Any) -> AsyncIterator[dict[str, Any]]:
    """Options of layers that share a prefix nobody else has; it is removed after the block."""
    options["prefix"] = f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield options
    finally:
        layer = AsyncIPCChannelLayer(**options)
        layer.unlink()
        await layer.close()


@asynccontextmanager
async def link(*, specific: bool = False, **options: Any) -> AsyncIterator[Pair]:
    """Two workers connected by channels of each."""
    async with segments(**options) as shared:
        ends = [
            WorkerSpec(OurLink, {"end": end, "specific": specific, "options": shared})
            for end in (0, 1)
        ]
        async with pair(*ends) as connected:
            yield connected


@asynccontextmanager
async def solo(**options: Any) -> AsyncIterator[Worker]:
    """One worker whose subject is a layer."""
    async with (
        segments(**options) as shared,
        worker(WorkerSpec(AsyncIPCChannelLayer, shared)) as started,
    ):
        yield started
