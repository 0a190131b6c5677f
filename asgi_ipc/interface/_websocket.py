"""One websocket: frames to the workers, their replies back.

Its task forwards what the client sends; while workers' replies wait for the client, a second
task sends them, and there is none for an idle socket. A client that is too far behind is
closed with 1013 ("try again later"): the socket shares its home with all the others of this
process, so its worker cannot be slowed down without slowing theirs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ..exceptions import ChannelFull, MessageTooLarge
from ._context import Context, logger, new_name
from ._http import Receive, Send
from ._interrupt import Interrupt
from ._messages import (
    Malformed,
    Scope,
    WebSocketReply,
    connect_message,
    parse_websocket_reply,
    select_subprotocol,
    shown,
)
from ._turns import CHANNEL, Turns

__all__ = ["WebSocket"]

_CONNECTING, _OPEN, _CLOSED = range(3)
_SHORT_S, _LONG_S = 0.002, 0.05  # between attempts to send into a full channel
_CLOSE_S = 2.0  # a close frame may wait for a client that reads nothing
_ABNORMAL = 1006
_ENTRY_BYTES = 8  # of the queue


def _held_by(reply: WebSocketReply) -> int:
    """Return how many bytes of memory a reply takes while it waits; an empty one, too."""
    return sys.getsizeof(reply) + sys.getsizeof(reply.data) + _ENTRY_BYTES


class WebSocket:
    """A connection, registered under its reply channel while it lasts."""

    __slots__ = (
        "_close_code",
        "_context",
        "_interrupt",
        "_is_reported",
        "_name",
        "_offered",
        "_order",
        "_path",
        "_pending",
        "_pending_bytes",
        "_receive",
        "_refusal",
        "_send",
        "_state",
        "_subprotocol",
        "_timer",
        "_turns",
        "_writer",
    )

    def __init__(self, context: Context, receive: Receive, send: Send) -> None:
        self._context = context
        self._receive = receive
        self._send = send
        self._name = new_name(context.websocket_home)
        self._path = ""
        self._order = 0
        self._state = _CONNECTING
        self._offered: Sequence[str] = ()  # subprotocols
        self._subprotocol: str | None = None
        self._interrupt = Interrupt()
        self._timer: asyncio.TimerHandle | None = None
        self._pending: deque[WebSocketReply] | None = None
        self._pending_bytes = 0
        self._turns = Turns(context.frames)
        self._writer: asyncio.Task[None] | None = None
        self._close_code: int | None = None  # that we still have to send
        self._refusal = 403
        self._is_reported = False

    async def run(self, scope: Scope) -> None:
        """Serve the connection. Cancelled, it lets go of everything and tells the workers."""
        context, options = self._context, self._context.options
        context.counts.websockets += 1
        if (await self._receive())["type"] != "websocket.connect":
            return
        self._path = scope["path"]
        self._offered = scope.get("subprotocols") or ()
        self._subprotocol = select_subprotocol(self._offered, options.websocket_protocols)
        can_respond = "websocket.http.response" in (scope.get("extensions") or ())
        connect = connect_message(scope, self._name, options.root_path, context.root_path_header)
        context.sockets[self._name] = self.deliver
        context.start_reader()
        code = _ABNORMAL
        try:
            refusal = await self._try_connect(connect)
            if refusal:
                await self._refuse(refusal, can_respond)
                return
            del connect
            self._timer = context.loop.call_later(
                options.websocket_connect_timeout, self._on_connect_timeout
            )
            try:
                with self._interrupt:
                    code = await self._forward()
                if self._interrupt.fired:
                    code = await self._close(can_respond)
            finally:
                disconnect = {"reply_channel": self._name, "code": code, "path": self._path}
                disconnect["order"] = self._order + 1
                await context.send_or_drop("websocket.disconnect", disconnect)
        finally:
            self._state = _CLOSED
            context.sockets.pop(self._name, None)
            if self._timer is not None:
                self._timer.cancel()
            if self._writer is not None:
                self._writer.cancel()

    @property
    def _shown_path(self) -> str:
        """What log lines show of the path."""
        return shown(self._path, 200)

    # -- from the client -----------------------------------------------------------------

    async def _try_connect(self, connect: dict[str, Any]) -> int:
        """Announce the connection; the status to refuse it with if that is not possible, or 0."""
        try:
            await self._context.layer.send("websocket.connect", connect)
        except ChannelFull as exc:
            self._context.counts.full += 1
            logger.warning("websocket %s refused with 503: %s", self._shown_path, exc)
            return 503
        except MessageTooLarge as exc:
            self._context.counts.too_large += 1
            logger.warning("websocket %s refused with 413: %s", self._shown_path, exc)
            return 413
        return 0

    async def _forward(self) -> int:
        """Send the client's frames to the workers until one of us closes; return the code."""
        while True:
            event = await self._receive()
            kind = event["type"]
            if kind == "websocket.disconnect":
                return event.get("code") or 1005
            if kind != "websocket.receive":
                continue
            message = {
                "reply_channel": self._name,
                "path": self._path,
                "order": self._order + 1,
            }
            data = event.get("bytes")
            if data is not None:
                message["bytes"] = bytes(data)
            else:
                message["text"] = event["text"]
            code = await self._send_frame(message)
            if code:
                self._close_code = code
                return await self._close(False)
            self._order += 1

    async def _send_frame(self, message: dict[str, Any]) -> int:
        """Send a frame, waiting for its turn and for room; the code to close with, or 0."""
        await self._turns.wait(self._context.layer.expiry)
        deadline, pause = 0.0, _SHORT_S
        while True:
            try:
                await self._context.layer.send(CHANNEL, message)
                self._turns.sent()
                return 0
            except MessageTooLarge as exc:
                self._context.counts.too_large += 1
                logger.warning("websocket %s closed with 1009: %s", self._shown_path, exc)
                return 1009
            except ChannelFull as exc:
                now = time.monotonic()
                deadline = deadline or now + self._context.options.websocket_full_timeout
                if now >= deadline:
                    self._context.counts.full += 1
                    logger.warning("websocket %s closed with 1013: %s", self._shown_path, exc)
                    return 1013
                await asyncio.sleep(min(pause, deadline - now))
                pause = min(2 * pause, _LONG_S)

    # -- from workers --------------------------------------------------------------------

    def deliver(self, message: Mapping[str, Any]) -> None:
        """Take a worker's message. Never raises."""
        if self._interrupt.fired or self._state == _CLOSED:
            self._context.counts.unclaimed += 1
            return
        try:
            reply = parse_websocket_reply(message)
            if self._state == _CONNECTING and reply.subprotocol not in (None, *self._offered):
                raise Malformed(f"the client has not offered subprotocol {reply.subprotocol!r}")
        except Malformed as exc:
            self._on_malformed(exc)
            return
        if self._pending is None:
            self._pending = deque()
        self._pending.append(reply)
        self._pending_bytes += _held_by(reply)
        limit = self._context.options.websocket_buffer_bytes
        if self._writer is None:
            self._writer = self._context.loop.create_task(self._write())
        elif self._pending_bytes > limit and len(self._pending) > 1:
            self._context.counts.slow += 1
            logger.warning(
                "websocket %s closed with 1013: its client is %d bytes behind, more than the %d of "
                "websocket_buffer_bytes",
                self._shown_path,
                self._pending_bytes,
                limit,
            )
            self._end(1013)

    def _on_malformed(self, problem: Malformed) -> None:
        """Answer what cannot be understood: a refusal, or as Daphne 1, nothing; one log line."""
        self._context.counts.malformed += 1
        if not self._is_reported:
            self._is_reported = True
            logger.error(
                "websocket %s: a worker's message is ignored: %s", self._shown_path, problem
            )
        if self._state == _CONNECTING and not self._pending:
            self._refusal = 500
            self._end(1011)

    async def _write(self) -> None:
        """Send to the client what waits for it."""
        pending = self._pending
        assert pending is not None
        try:
            while pending:
                reply = pending[0]
                if not await self._apply(reply):
                    return
                pending.popleft()
                self._pending_bytes -= _held_by(reply)
        except Exception as exc:
            # The client is gone: every server says so in its own way.
            logger.debug("websocket %s: a frame could not be sent: %r", self._shown_path, exc)
            self._end(None)
            return
        self._writer = self._pending = None

    async def _apply(self, reply: WebSocketReply) -> bool:
        """Do what a reply says; False if nothing may follow."""
        data = reply.data
        if self._state == _CONNECTING:
            if reply.accept is False or (reply.close and not data and not reply.accept):
                self._end(1000)
                return False
            if not data and not reply.accept:
                return True
            accept: dict[str, Any] = {"type": "websocket.accept"}
            if subprotocol := reply.subprotocol or self._subprotocol:
                accept["subprotocol"] = subprotocol
            self._on_accepted()
            await self._send(accept)
            data = data or None
        if isinstance(data, str):
            await self._send({"type": "websocket.send", "text": data})
        elif data is not None:
            await self._send({"type": "websocket.send", "bytes": data})
        if reply.close:
            self._end(reply.close)
            return False
        return True

    def _on_accepted(self) -> None:
        self._state = _OPEN
        if self._timer is not None:
            self._timer.cancel()
        timeout = self._context.options.websocket_timeout or self._context.layer.group_expiry
        self._timer = self._context.loop.call_later(timeout, self._on_timeout)

    # -- the end -------------------------------------------------------------------------

    def _on_connect_timeout(self) -> None:
        self._context.counts.timed_out += 1
        timeout = self._context.options.websocket_connect_timeout
        logger.warning(
            "websocket %s: neither accepted nor refused in %g s", self._shown_path, timeout
        )
        self._refusal = 504
        self._end(1013)

    def _on_timeout(self) -> None:
        self._context.counts.timed_out += 1
        self._end(1000)

    def _end(self, code: int | None) -> None:
        """Have the connection's task end it, from any other task; ``None``: it has ended."""
        if not self._interrupt.fired:
            self._close_code = code
            self._interrupt.fire()

    async def _close(self, can_respond: bool) -> int:
        """Close what is still open; return the code that workers are told."""
        if self._state == _CONNECTING:
            await self._refuse(self._refusal, can_respond)
            return _ABNORMAL
        code, self._close_code = self._close_code, None
        if code is None:
            return _ABNORMAL
        if self._writer is not None:
            self._writer.cancel()
        self._state = _CLOSED
        for sent in (code, 1000):  # daphne refuses those below 3000 that are not 1000
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await self._send({"type": "websocket.close", "code": sent})
                break
            except Exception as exc:
                logger.debug("websocket %s: no close frame was sent: %r", self._shown_path, exc)
        return code

    async def _refuse(self, status: int, can_respond: bool) -> None:
        """Refuse the handshake; without the extension for it, the server's answer is 403."""
        self._state = _CLOSED
        if status == 403 or not can_respond:
            await self._send({"type": "websocket.close", "code": 1013 if status == 503 else 1000})
            return
        headers = [(b"content-length", b"0")]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await self._send(
            {"type": "websocket.http.response.start", "status": status, "headers": headers}
        )
        await self._send({"type": "websocket.http.response.body", "body": b""})
