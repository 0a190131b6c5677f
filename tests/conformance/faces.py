"""The faces of the layer behind one interface; ``peers.py`` has those of other layers."""

# ruff: noqa: D102 - what the methods of a face promise is what test_contract.py says

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc.names import home_of

from ..conftest import Clock

Message = dict[str, Any]
SIZES: dict[str, Any] = {"message_memory": 8 << 20, "group_memory": 4 << 20}


class Face(Protocol):
    """What the contract is asked of; a face that cannot do a thing says so.

    Attributes:
        full: the exception of a full channel.
        counts_by_name: capacity is counted per full name, not on what ends at the "!".
    """

    full: Any
    counts_by_name: bool

    async def send(self, channel: str, message: Any) -> None: ...
    async def receive(self, channel: str) -> tuple[str, Message]: ...
    async def receive_now(self, channel: str) -> Message | None: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Any) -> object: ...
    async def new_channel(self) -> str: ...
    async def flush(self) -> None: ...
    def advance(self, seconds: float) -> None: ...
    async def close(self) -> None: ...


class AsyncFace:
    """The asyncio face, and its Channels 4 subclass."""

    counts_by_name = True

    def __init__(self, layer: AsyncIPCChannelLayer, clock: Clock) -> None:
        self.layer = layer
        self.full: Any = layer.ChannelFull
        self.advance = clock.advance
        self.send = layer.send
        self.group_add = layer.group_add
        self.group_discard = layer.group_discard
        self.group_send = layer.group_send
        self.flush = layer.flush

    async def close(self) -> None:
        """Close."""
        self.layer.close_now()

    async def receive(self, channel: str) -> tuple[str, Message]:
        """Wait for a message."""
        name, message = await self.layer.receive_async([channel])
        assert name is not None and message is not None
        return name, message

    async def receive_now(self, channel: str) -> Message | None:
        """Return one that is there."""
        return (await self.layer.receive_async([channel], block=False))[1]

    async def new_channel(self) -> str:
        """Return a name of this process's own."""
        return await self.layer.new_channel()


class SyncFace:
    """The blocking face: every receive that waits does so in a thread of its own."""

    counts_by_name = False

    def __init__(self, layer: IPCChannelLayer, clock: Clock) -> None:
        self.layer = layer
        self.full: Any = layer.ChannelFull
        self.advance = clock.advance
        self._number = 0

    async def send(self, channel: str, message: Any) -> None:
        """Send."""
        self.layer.send(channel, message)

    async def receive(self, channel: str) -> tuple[str, Message]:
        """Wait in a thread; a full name is received from its home."""
        while True:
            name, message = await asyncio.to_thread(
                self.layer.receive, [home_of(channel)], block=True
            )
            if name is not None and message is not None:
                return name, message

    async def receive_now(self, channel: str) -> Message | None:
        """Return one that is there."""
        return self.layer.receive([home_of(channel)])[1]

    async def group_add(self, group: str, channel: str) -> None:
        """Add."""
        self.layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Discard."""
        self.layer.group_discard(group, channel)

    async def group_send(self, group: str, message: Any) -> object:
        """Send to a group."""
        return self.layer.group_send(group, message)

    async def new_channel(self) -> str:
        """Make a name as Daphne does."""
        self._number += 1
        return f"daphne.response.{id(self):x}!{self._number}"

    async def flush(self) -> None:
        """Flush."""
        self.layer.flush()

    async def close(self) -> None:
        """Close."""
        self.layer.close()
