"""What a worker's handlers get: ``Message`` for coroutines, ``SyncMessage`` for functions.

Sends out of a handler wait while there is no room, for a bounded time. The layer cannot say
when a channel has room again, so it is tried again after 1 ms, 2 ms, ... 50 ms, 50 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from .._drive.twin import SyncTwin
from ..aio import AsyncIPCChannelLayer
from ..exceptions import ChannelFull
from ._pieces import is_large, pieces

__all__ = ["Content", "Message", "Post", "SyncMessage"]

Content = dict[str, Any]

_FIRST_DELAY_S = 0.001
_LONGEST_DELAY_S = 0.05  # what Channels 1 waits each time


class _Received:
    """A message as its handler sees it: a channel's name, a dict, and where answers go."""

    def __init__(self, channel: str, content: Content) -> None:
        self.channel = channel
        self.content = content
        self.has_replied: bool = False
        self.is_unfinished: bool = False  # the latest reply said that more comes
        self._body: bytes | None = None

    @property
    def reply_channel(self) -> str | None:
        """Where the sender waits for answers, if anywhere."""
        return self.content.get("reply_channel")

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the content, or the default."""
        return self.content.get(key, default)

    def _reply_to(self) -> str:
        name = self.reply_channel
        if name is None:
            raise ValueError(
                f"a message on {self.channel!r} names no reply_channel: "
                "send() to a channel of your choice"
            )
        return name

    def _note_reply(self, content: Content) -> None:
        self.has_replied = True
        self.is_unfinished = bool(content.get("more_content"))

    def _add_chunk(self, parts: list[bytes], chunk: Content | None) -> bool:
        """Add a chunk of the request's body, and say whether it was the last."""
        if chunk is None:
            raise TimeoutError(f"the rest of a request body did not come on {self.channel!r}")
        if chunk.get("closed"):
            raise ConnectionAbortedError(
                "the rest of a request body will not come: its client has gone, or it was not "
                "read in time"
            )
        parts.append(chunk.get("content", b""))
        return not chunk.get("more_content")

    def _whole(self, parts: list[bytes]) -> bytes:
        """Return the body of these parts if it has the length that its client said."""
        body = b"".join(parts)
        for name, value in self.get("headers") or ():
            if name == b"content-length" and value.isdigit() and int(value) != len(body):
                raise ConnectionAbortedError(
                    f"a request body on {self.channel!r} has {len(body)} bytes, and its "
                    f"content-length says {int(value)}"
                )
        return body


class Message(_Received):
    """What a coroutine handler gets.

    Attributes:
        channel: the channel it came from.
        content: the message; ``message["text"]`` is short for ``message.content["text"]``.
        reply_channel: where the sender waits for answers, if anywhere.
        layer: the worker's layer, for groups and everything else.
        has_replied: whether a ``reply`` was sent.
    """

    def __init__(self, channel: str, content: Content, post: Post) -> None:
        super().__init__(channel, content)
        self._post = post
        self.layer: AsyncIPCChannelLayer = post.layer

    async def reply(self, content: Content) -> None:
        """Send to the message's reply channel; see ``send``.

        Much ``content`` to an ``http.request`` goes in pieces, each of which waits for room by
        itself, and others run in between. When it is cancelled or fails, some may have been
        sent: the response has begun, and is cut if the handler ends so.

        Raises:
            ValueError: it has none.
        """
        name = self._reply_to()
        if not is_large(self.channel, content):
            await self.send(name, content)
            self._note_reply(content)
            return
        async with self._post.turn(name):
            for piece in pieces(content):
                await self._post.send_in_turn(name, piece)
                self._note_reply(piece)
                await asyncio.sleep(0)  # a send that finds room never suspends

    async def send(self, channel: str, content: Content) -> None:
        """Send, and wait while there is no room: at most the worker's ``send_timeout``.

        While one handler waits for room in a channel, others that send to it queue behind, so
        what is sent to a channel keeps its order. When cancelled, nothing was sent.

        Raises:
            ChannelFull: there was no room for so long.
            MessageTooLarge, InvalidName, InvalidMessage, UnserialisableValue, StoreLocked: as
                ``AsyncIPCChannelLayer.send``.
        """
        await self._post.send(channel, content)

    async def body(self, timeout: float = 60.0) -> bytes:
        """Return the whole body of an ``http.request``, waiting for what has yet to come.

        Args:
            timeout: seconds to wait for the rest.

        Raises:
            ConnectionAbortedError: the client went away first, or part of the body was lost.
            TimeoutError: it did not come in time.
        """
        if self._body is None:
            parts = [self.get("body") or b""]
            if body_channel := self.get("body_channel"):
                deadline = time.monotonic() + timeout
                is_complete = False
                while not is_complete:
                    chunk = await self.layer.receive_within(body_channel, deadline)
                    is_complete = self._add_chunk(parts, chunk)
            self._body = self._whole(parts)
        return self._body


class SyncMessage(_Received):
    """What a plain function gets, on a thread of its own: the same, blocking.

    Attributes:
        channel, content, reply_channel, has_replied: as those of ``Message``.
        layer: the blocking twin of the worker's layer.
    """

    def __init__(self, channel: str, content: Content, layer: SyncTwin, send_timeout: float):
        super().__init__(channel, content)
        self.layer = layer
        self._send_timeout = send_timeout

    def reply(self, content: Content) -> None:
        """Send to the message's reply channel, much content in pieces; see ``Message.reply``.

        Raises:
            ValueError: it has none.
        """
        name = self._reply_to()
        for piece in pieces(content) if is_large(self.channel, content) else (content,):
            self.send(name, piece)
            self._note_reply(piece)

    def send(self, channel: str, content: Content) -> None:
        """Send, and wait while there is no room: at most the worker's ``send_timeout``.

        Raises:
            ChannelFull: there was no room for so long.
            MessageTooLarge, InvalidName, InvalidMessage, UnserialisableValue, StoreLocked: as
                ``AsyncIPCChannelLayer.send``.
        """
        for delay_s in _delays(time.monotonic() + self._send_timeout):
            try:
                return self.layer.send(channel, content)
            except ChannelFull:
                time.sleep(delay_s)
        return self.layer.send(channel, content)

    def body(self, timeout: float = 60.0) -> bytes:
        """Return the whole body of an ``http.request``; see ``Message.body``."""
        if self._body is None:
            parts = [self.get("body") or b""]
            if body_channel := self.get("body_channel"):
                deadline = time.monotonic() + timeout
                is_complete = False
                while not is_complete:
                    left_s = max(0.0, deadline - time.monotonic())
                    is_complete = self._add_chunk(parts, self.layer.receive(body_channel, left_s))
            self._body = self._whole(parts)
        return self._body


def _delays(deadline: float) -> Iterator[float]:
    """Give the seconds to wait after each attempt that failed, until the time is over."""
    delay_s = _FIRST_DELAY_S
    while (left_s := deadline - time.monotonic()) > 0:
        yield min(delay_s, left_s)
        delay_s = min(delay_s * 2, _LONGEST_DELAY_S)


class _Turn:
    """Who waits for room in one channel, first come first served."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class Post:
    """Sends for the coroutine handlers of one worker, in turn where a channel is full."""

    def __init__(self, layer: AsyncIPCChannelLayer, send_timeout: float) -> None:
        self.layer = layer
        self._send_timeout = send_timeout
        self._turns: dict[str, _Turn] = {}

    async def send(self, channel: str, content: Content) -> None:
        """See ``Message.send``."""
        if channel not in self._turns:
            try:
                return await self.layer.send(channel, content)
            except ChannelFull:
                pass
        deadline = time.monotonic() + self._send_timeout
        async with self.turn(channel):
            return await self._send_until(deadline, channel, content)

    async def send_in_turn(self, channel: str, content: Content) -> None:
        """Send for who has the turn in a channel."""
        await self._send_until(time.monotonic() + self._send_timeout, channel, content)

    async def _send_until(self, deadline: float, channel: str, content: Content) -> None:
        for delay_s in _delays(deadline):
            try:
                return await self.layer.send(channel, content)
            except ChannelFull:
                await asyncio.sleep(delay_s)
        return await self.layer.send(channel, content)

    @asynccontextmanager
    async def turn(self, channel: str) -> AsyncIterator[None]:
        """Wait until nobody else sends to a channel; others wait meanwhile."""
        turn = self._turns.setdefault(channel, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[channel]
