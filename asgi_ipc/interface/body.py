"""Request bodies: complete before a worker hears of them, in chunks if they are large."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

from ..exceptions import ChannelFull, IPCError
from .backlog import Backlog
from .context import Context, logger
from .messages import Scope

__all__ = ["BodyChannel", "BodyRefused", "receive_body"]

_WINDOW = 8  # chunks that wait in the channel at once: a segment must hold many uploads
_SHORT_S, _LONG_S = 0.002, 0.05  # between looks whether there is room


class BodyRefused(Exception):
    """The request is not taken; the text says why.

    Attributes:
        status: to answer with.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def receive_body(
    context: Context,
    scope: Scope,
    receive: Callable[[], Awaitable[dict[str, Any]]],
    backlog: Backlog,
) -> bool:
    """Put a request's body into ``backlog``; False if the client went away before its end.

    Raises:
        BodyRefused: it is too large, or stands still.
    """
    options = context.options
    limit = options.max_body_bytes
    if limit is not None:
        declared = next((v for n, v in scope["headers"] if n == b"content-length"), b"")
        if declared.isdigit():
            _check_size(context, int(declared), limit)
    event = await receive()
    while event["type"] == "http.request":
        piece = event.get("body", b"")
        if piece:
            _check_size(context, backlog.size + len(piece), limit)
            backlog.put(bytes(piece))
        if not event.get("more_body", False):
            return True
        try:
            async with asyncio.timeout(options.client_timeout):
                event = await receive()
        except TimeoutError:
            context.counts.timed_out += 1
            reason = f"The request body stood still for {options.client_timeout:g} s."
            raise BodyRefused(408, reason) from None
    return False


def _check_size(context: Context, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        context.counts.too_large += 1
        raise BodyRefused(413, f"The request body has {size} bytes or more; {limit} may be sent.")


class BodyChannel:
    """The single-reader channel that carries what does not fit into ``http.request``.

    Attributes:
        name: of the channel.
        sent_at: when the last chunk was sent, ``time.monotonic``; a worker is reading.
        task: what runs ``send``.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self.sent_at = 0.0
        self.task: asyncio.Task[None] | None = None
        self._context = context
        self._is_sent = False

    @classmethod
    async def make(cls, context: Context) -> Self:
        """Return one nobody uses."""
        return cls(context, await context.layer.new_channel("http.request.body?"))

    async def send(self, backlog: Backlog) -> None:
        """Send what waits in ``backlog``, as fast as the worker takes it."""
        sent = 0
        while backlog.size:
            content = backlog.take_exactly(self._context.chunk_bytes)
            if sent >= _WINDOW:
                await self._wait_for_room()
            await self._send_chunk({"content": content, "more_content": backlog.size > 0})
            sent += 1
            self.sent_at = time.monotonic()
        self._is_sent = True

    async def _send_chunk(self, chunk: dict[str, Any]) -> None:
        pause = _SHORT_S
        while True:
            try:
                await self._context.layer.send(self.name, chunk)
                return
            except ChannelFull:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONG_S)

    async def _wait_for_room(self) -> None:
        """Wait until a worker has read something: nobody rings for that, so look."""
        pause = _SHORT_S
        while True:
            statistics = await self._context.layer.channel_statistics(self.name)
            if statistics["messages_pending"] < _WINDOW:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONG_S)

    async def close(self, worker_is_done: bool) -> None:
        """Stop sending; tell a worker that still reads, or take away what it did not read."""
        if self.task is not None:
            self.task.cancel()
        if not worker_is_done:
            if not self._is_sent:
                await self._context.send_or_drop(self.name, {"closed": True})
            return
        try:
            while (await self._context.layer.receive_async([self.name], block=False))[0]:
                pass
        except IPCError as exc:
            logger.error("the rest of a request body on %s stays: %s", self.name, exc)
