"""Request bodies: complete before a worker hears of them, in chunks if they are large.

A body reaches a worker whole, or as an error that it cannot overlook; see ``BodyChannel``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

from ..exceptions import ChannelFull, IPCError
from ._backlog import Backlog
from ._context import Context, logger
from ._messages import Scope

__all__ = ["BodyChannel", "BodyLost", "BodyRefused", "receive_body"]

_WINDOW = 8  # chunks that wait in the channel at once: a segment must hold many uploads
_SHORT_S, _LONG_S = 0.0005, 0.05  # between looks whether there is room
_QUICK_S = 1.0  # a worker that has read within this may have many chunks waiting


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
        BodyRefused: it is too large, stands still, or has two ends.
    """
    options = context.options
    limit = options.max_body_bytes
    declared, is_coded = b"", False
    for name, value in scope["headers"]:
        if name == b"content-length":
            declared = value
        elif name == b"transfer-encoding":
            is_coded = True
    if declared and is_coded:
        # A proxy may have taken the other one, and the next request for part of this body.
        raise BodyRefused(400, "Both Content-Length and Transfer-Encoding say where it ends.")
    if declared.isdigit():
        _check_size(context, int(declared), limit)
    # The ordinary request has none, which is said at once: no clock for it.
    has_none = not declared and not is_coded and scope["http_version"] in ("1.0", "1.1")
    while True:
        try:
            if has_none:
                event = await receive()
            else:
                async with asyncio.timeout(options.client_timeout):
                    event = await receive()
        except TimeoutError:
            context.counts.timed_out += 1
            reason = f"The request body stood still for {options.client_timeout:g} s."
            raise BodyRefused(408, reason) from None
        if event["type"] != "http.request":
            return False
        piece = event.get("body", b"")
        if piece:
            _check_size(context, backlog.size + len(piece), limit)
            backlog.put(bytes(piece))
        if not event.get("more_body", False):
            return True


def _check_size(context: Context, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        context.counts.too_large += 1
        raise BodyRefused(413, f"The request body has {size} bytes or more; {limit} may be sent.")


class BodyLost(Exception):
    """Chunks were dropped unread: the body will not be whole."""


class BodyChannel:
    """The single-reader channel that carries a body too large for ``http.request``.

    What makes a body whole for any reader is its last chunk, the one without ``more_content``.
    It is sent only when the layer has counted every chunk before it as received, and none as
    expired. If one is lost, the reader gets ``closed`` in its place, and raises.

    Attributes:
        name: of the channel.
        read_at: when a worker was last seen to have read something, ``time.monotonic``; 0: never.
        task: what runs ``send``.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self.read_at = 0.0
        self.task: asyncio.Task[None] | None = None
        self._context = context
        self._is_sent = False
        self._unread = 0  # chunks, as far as is known
        # What the layer had counted when all before had been read, and chunks sent since.
        self._counted_before = self._expired_before = self._sent_since = 0

    @classmethod
    async def make(cls, context: Context) -> Self:
        """Return one nobody uses."""
        return cls(context, await context.layer.new_channel("http.request.body?"))

    async def send(self, backlog: Backlog) -> None:
        """Send what waits in ``backlog``, as fast as the worker takes it.

        One chunk at a time until the worker reads, and while it reads slowly: a chunk then waits
        no longer than the worker stands still, and little lies in memory for who does not read.

        Raises:
            BodyLost: chunks were dropped unread; the reader was told.
        """
        try:
            await self._send_all(backlog)
        except BodyLost:
            await self._take_back()
            await self._tell_closed()
            raise
        self._is_sent = True

    async def _send_all(self, backlog: Backlog) -> None:
        window = 1
        while backlog.size:
            content = backlog.take_exactly(self._context.chunk_bytes)
            more = backlog.size > 0
            began = time.monotonic()
            await self._wait_until_unread(window - 1 if more else 0)
            is_quick = self.read_at > 0 and time.monotonic() - began < _QUICK_S
            window = _WINDOW if is_quick else 1
            await self._send_chunk({"content": content, "more_content": more})

    async def _send_chunk(self, chunk: dict[str, Any]) -> None:
        pause = _SHORT_S
        while True:
            try:
                await self._context.layer.send(self.name, chunk, expiry=self._context.body_expiry)
                break
            except ChannelFull:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONG_S)
        self._unread += 1
        self._sent_since += 1

    async def _wait_until_unread(self, at_most: int) -> None:
        """Wait until no more chunks than that are unread: nobody rings for that, so look."""
        pause = _SHORT_S
        while self._unread > at_most:
            await self._count_unread()
            if self._unread > at_most:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONG_S)

    async def _count_unread(self) -> None:
        """Look what became of the chunks.

        Raises:
            BodyLost: not all that are gone were received. The layer forgets an empty channel
                after a second or more, and its counts with it; if this process stood still for
                so long, nobody knows any more, which counts as lost, too.
        """
        counts = await self._context.layer.channel_statistics(self.name)
        if counts["messages_count"] == self._sent_since:  # counts that began anew meanwhile
            self._counted_before = self._expired_before = 0
        elif counts["messages_count"] != self._counted_before + self._sent_since:
            raise BodyLost
        if counts["expired_count"] != self._expired_before:
            raise BodyLost
        unread = int(counts["messages_pending"])
        if unread < self._unread:
            self.read_at = time.monotonic()
        self._unread = unread
        if not unread:
            self._counted_before += self._sent_since
            self._sent_since = 0

    async def close(self, worker_is_done: bool) -> None:
        """Stop sending, take away what was not read, and tell a worker that may still read."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        took = await self._take_back()
        if not worker_is_done and (took or not self._is_sent):
            await self._tell_closed()

    async def _tell_closed(self) -> None:
        """Tell the reader that nothing more comes; for as long as a chunk would have waited."""
        context = self._context
        await context.send_or_drop(self.name, {"closed": True}, expiry=context.body_expiry)

    async def _take_back(self) -> bool:
        """Take away what nobody has read; whether there was something."""
        took = False
        try:
            while (await self._context.layer.receive_async([self.name], block=False))[0]:
                took = True
        except IPCError as exc:
            logger.error("the rest of a request body on %s stays: %s", self.name, exc)
        return took
