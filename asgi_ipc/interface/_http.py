"""One HTTP request: to the workers, and a worker's response back.

The body is complete before a worker hears of it, so that a slow upload holds nobody up. A
response of one small message, the ordinary case, is awaited and sent by the request's own task.
Any other is read ahead into a `Backlog` that a second task sends from: the worker
is done as soon as it has made everything, however slow the client.

A response that has begun and cannot be finished is *cut*: this returns without having said
that the response is complete, and the ASGI server closes the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from ..exceptions import ChannelFull, IPCError, MessageTooLarge
from ._backlog import PIECE_BYTES, Backlog
from ._body import BodyChannel, BodyLost, BodyRefused, receive_body
from ._context import Context, logger, new_name
from ._interrupt import Interrupt
from ._messages import (
    BODYLESS,
    Chunk,
    Malformed,
    Scope,
    Start,
    is_push,
    parse_chunk,
    parse_start,
    request_message,
    shown,
)
from ._patience import Patience, abort_transport, patiently

__all__ = ["Exchange"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_WATCH_AFTER_S = 1.0  # until then an abort is noticed when the answer comes

_TEXTS = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class _CannotFinish(Exception):
    """The response has begun and will not be whole; the text says why."""


class Exchange:
    """A request and its response."""

    def __init__(self, context: Context, scope: Scope, receive: Receive, send: Send) -> None:
        self._context = context
        self._layer = context.layer
        self._scope = scope
        self._receive = receive
        self._send = send
        self._name = ""
        self._interrupt = Interrupt()
        self._watcher: asyncio.Task[None] | None = None
        self._body_channel: BodyChannel | None = None
        self._heard_at = 0.0  # from a worker; begins when one is asked, 0 until then
        self._emptied_at = 0.0  # the channel was seen empty then, or later
        self._has_started = False
        self._is_complete = False
        self._worker_is_done = False
        self._body_is_lost = False
        self._first: Chunk | None = None  # of the response, until it is on its way
        self._trouble: str | None = None

    async def run(self) -> None:
        """Serve the request. Cancelled, it lets go of everything and tells the workers."""
        counts = self._context.counts
        counts.requests += 1
        with Backlog(self._context.options.memory_bytes) as backlog:
            try:
                if await receive_body(self._context, self._scope, self._receive, backlog):
                    await self._exchange(backlog)
                else:
                    counts.aborted += 1
            except BodyRefused as refusal:
                await self._answer(refusal.status, str(refusal))
            except IPCError as exc:
                what = "response cut" if self._has_started else "500"
                logger.error("%s for %s: %s: %s", what, self._path, type(exc).__name__, exc)
                if not self._has_started:
                    await self._answer(500, "The channel layer cannot be used.")

    @property
    def _path(self) -> str:
        """What log lines show of the path."""
        return shown(self._scope["path"], 200)

    # -- the request ---------------------------------------------------------------------

    async def _exchange(self, body: Backlog) -> None:
        """Hand the request to the workers and bring the response back."""
        context = self._context
        home = context.borrow_home()
        self._name = new_name(home)
        try:
            if not await self._hand_over(body):
                return
            with self._interrupt:
                if self._body_channel is not None:
                    self._body_channel.task = self._start(self._body_channel.send(body))
                    self._watch()
                await self._bring_response()
            if self._interrupt.fired:
                await self._report_interruption()
        finally:
            await self._end(home)

    async def _hand_over(self, body: Backlog) -> bool:
        """Send the request's message; False if that was not possible, and was answered."""
        context, counts = self._context, self._context.counts
        content = b""
        if body.size > context.inline_body_bytes:
            # None of it goes into the request, which cannot be taken back.
            self._body_channel = await BodyChannel.make(context)
        else:
            content = body.take_exactly(body.size)
        message = request_message(
            self._scope,
            self._name,
            context.options.root_path,
            context.root_path_header,
            content,
            None if self._body_channel is None else self._body_channel.name,
        )
        try:
            await self._layer.send("http.request", message)
        except ChannelFull as exc:
            counts.full += 1
            logger.warning("503 for %s: %s", self._path, exc)
            await self._answer(503, "All workers are busy.")
            return False
        except MessageTooLarge as exc:
            counts.too_large += 1
            await self._answer(413, str(exc))
            return False
        self._heard_at = self._emptied_at = time.monotonic()
        return True

    async def _report_interruption(self) -> None:
        if self._body_is_lost:
            self._context.counts.timed_out += 1
            logger.warning("504 for %s: its body was not read in time", self._path)
            await self._answer(504, "The workers did not read the request body in time.")
            return
        if self._trouble is None:
            self._context.counts.aborted += 1
            return
        self._context.counts.cut += 1
        logger.error("response to %s cut: %s", self._path, self._trouble)

    async def _end(self, home: str) -> None:
        """Leave nothing behind: tasks, the home, what the worker did not read of the body."""
        context = self._context
        if self._watcher is not None:
            self._watcher.cancel()
        was_sent = self._heard_at > 0
        if self._worker_is_done or not was_sent:
            context.return_home(home)
        else:
            context.leave_home(home, self._name)
        if was_sent:
            if self._body_channel is not None:
                await self._body_channel.close(self._worker_is_done)
            disconnect = {"reply_channel": self._name, "path": self._scope["path"]}
            await context.send_or_drop("http.disconnect", disconnect)

    # -- the response --------------------------------------------------------------------

    async def _bring_response(self) -> None:
        try:
            start = await self._first_message()
        except Malformed as exc:
            self._context.counts.malformed += 1
            logger.error("500 for %s: a worker sent no response: %s", self._path, exc)
            await self._answer(500, "The worker's response is malformed.")
            return
        if start is None:
            self._context.counts.timed_out += 1
            timeout = self._context.options.request_timeout
            logger.warning("504 for %s: no answer in %g s", self._path, timeout)
            await self._answer(504, f"No worker answered within {timeout:g} s.")
            return
        assert self._first is not None
        head = {"type": "http.response.start", "status": start.status, "headers": start.headers}
        self._has_started = True
        try:
            if start.more or len(self._first.content) > PIECE_BYTES:
                await self._deliver(head)
                await self._stream(start)
                return
            self._is_complete = True
            body = {"type": "http.response.body", "body": self._first.content}
            await self._deliver(head, body)
        except _CannotFinish as exc:
            self._context.counts.cut += 1
            logger.error("response to %s cut: %s", self._path, exc)

    async def _deliver(self, *messages: dict[str, Any]) -> None:
        """Send to the client.

        Raises:
            _CannotFinish: it takes nothing for ``client_timeout``.
        """
        try:
            await patiently(self._send_all(messages), self._patience)
        except TimeoutError:
            self._context.counts.timed_out += 1
            abort_transport(self._send)
            timeout = self._context.options.client_timeout
            raise _CannotFinish(f"its client stood still for {timeout:g} s") from None

    async def _send_all(self, messages: Iterable[dict[str, Any]]) -> None:
        for message in messages:
            await self._send(message)

    def _patience(self) -> Patience:
        context = self._context
        return Patience(context.loop, self._scope, context.options.client_timeout)

    def _has_content(self, start: Start) -> bool:
        return self._scope["method"] != "HEAD" and start.status not in BODYLESS

    async def _first_message(self) -> Start | None:
        """Return the response's first message, ``None`` if none came in time."""
        while True:
            message = await self._wait_for_message()
            if message is None:
                return None
            if not is_push(message):
                break
        self._worker_is_done = not message.get("more_content")
        start = parse_start(message)
        size = len(start.content)
        if not start.more and start.length not in (None, size) and self._has_content(start):
            raise Malformed(f"content-length says {start.length}, the content has {size} bytes")
        is_known = size or self._scope["method"] != "HEAD"  # to which a worker may send nothing
        if start.length is None and not start.more and start.status not in BODYLESS and is_known:
            # Else it would be sent in chunks.
            start.headers.append((b"content-length", str(size).encode()))
        # Apart, so that nothing holds a large one while it waits for its client.
        self._first = Chunk(start.content if self._has_content(start) else b"", start.more)
        return Start(start.status, start.headers, start.length, b"", start.more)

    async def _next_message(self) -> Chunk:
        """Return the response's next chunk.

        Raises:
            _CannotFinish: there is none, or one before it may have been lost.
        """
        message: dict[str, Any] | None
        looked_at = time.monotonic()
        _, message = await self._layer.receive_async([self._name], block=False)
        self._heard_at = time.monotonic()
        self._refuse_a_hole()  # also before an empty channel: all of it may have expired
        if message is None:
            self._emptied_at = looked_at
            message = await self._wait_for_message()
            if message is None:
                self._context.counts.timed_out += 1
                timeout = self._context.options.request_timeout
                raise _CannotFinish(f"no further chunk in {timeout:g} s")
            self._refuse_a_hole()
        self._worker_is_done = not message.get("more_content")
        try:
            chunk = parse_chunk(message)
        except Malformed as exc:
            self._context.counts.malformed += 1
            raise _CannotFinish(f"a worker sent no chunk: {exc}") from None
        if chunk.closed:
            self._worker_is_done = True
            raise _CannotFinish("its worker failed, or was stopped, in the middle of it")
        return chunk

    def _refuse_a_hole(self) -> None:
        """What was sent since the channel was last seen empty may have expired in it.

        Raises:
            _CannotFinish: that is so long ago.
        """
        if self._heard_at - self._emptied_at >= self._layer.expiry:
            raise _CannotFinish(
                f"its client was so slow that chunks waited for {self._layer.expiry:g} s and may "
                "have expired: raise response_buffer_bytes, or lower the capacity of "
                "http.response.*"
            )

    async def _wait_for_message(self) -> dict[str, Any] | None:
        """Return the next message of a channel that is empty now, ``None`` if it is too late.

        In steps, so that it is known when the channel was empty last even if this process
        stands still for long.
        """
        timeout = self._context.options.request_timeout
        while True:
            now = time.monotonic()
            if self._body_channel is not None:  # a worker that reads it is alive
                self._heard_at = max(self._heard_at, self._body_channel.read_at)
            over = self._heard_at + timeout
            if now >= over:
                return None
            step = self._layer.expiry / 4
            if self._watcher is None:
                step = min(step, _WATCH_AFTER_S)
            message = await self._layer.receive_within(self._name, min(over, now + step))
            if message is not None:
                self._heard_at = time.monotonic()
                return message
            self._emptied_at = now
            self._watch()

    async def _stream(self, start: Start) -> None:
        """Bring a response of several messages."""
        with Backlog(self._context.options.memory_bytes) as backlog:
            writer = self._start(self._write(backlog, self._has_content(start)))
            self._watch()
            try:
                await self._read_ahead(start, backlog)
                await writer
            except OSError as exc:
                raise _CannotFinish(f"the temporary file for it: {exc}") from exc
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _read_ahead(self, start: Start, backlog: Backlog) -> None:
        """Read chunks to the end, ahead of the client up to the limit."""
        limit = self._context.options.response_buffer_bytes
        length = start.length if self._has_content(start) else None
        size = 0
        chunk, self._first = self._first, None
        assert chunk is not None
        while True:
            size += len(chunk.content)
            if length is not None and (size > length or (size < length and not chunk.more)):
                self._context.counts.malformed += 1
                raise _CannotFinish(f"content-length says {length}, and {size} bytes came")
            await backlog.feed(chunk.content)
            if not chunk.more:
                backlog.finish()
                return
            await asyncio.sleep(0)  # neither reading nor sending need ever suspend
            while backlog.size >= limit:
                await backlog.changed()
            chunk = await self._next_message()

    async def _write(self, backlog: Backlog, has_content: bool) -> None:
        """Send what waits to the client, to the end."""
        while not backlog.is_finished:
            piece = backlog.take()
            if not piece:
                await backlog.changed()
            elif has_content:
                await self._deliver(
                    {"type": "http.response.body", "body": piece, "more_body": True}
                )
                await asyncio.sleep(0)  # a client as fast as this holds nobody up
        self._is_complete = True
        await self._deliver({"type": "http.response.body", "body": b""})

    # -- beside it -----------------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something whose failure is the end of the exchange."""
        task = self._context.loop.create_task(coroutine)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        exc = None if task.cancelled() else task.exception()
        if isinstance(exc, BodyLost):
            # A worker that answers already may not need it; one that reads on is told.
            self._body_is_lost = not self._has_started
            if self._body_is_lost:
                self._interrupt.fire()
        elif exc is not None and not self._is_complete:
            self._trouble = str(exc) if isinstance(exc, _CannotFinish) else repr(exc)
            self._interrupt.fire()

    def _watch(self) -> None:
        """Notice from now on when the client goes away."""
        if self._watcher is None:
            self._watcher = self._context.loop.create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_complete:
            self._interrupt.fire()

    async def _answer(self, status: int, reason: str) -> None:
        """Answer in the workers' place."""
        body = f"{status} {_TEXTS[status]}\n\n{reason}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        if status in (400, 408, 413, 503) and self._scope["http_version"] in ("1.0", "1.1"):
            headers.append((b"connection", b"close"))
        if status == 503:
            headers.append((b"retry-after", b"1"))
        self._has_started = self._is_complete = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
