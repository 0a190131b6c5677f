"""``InterfaceServer``: the ASGI application."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..aio import AsyncIPCChannelLayer
from ..exceptions import IPCError
from ..names import home_of
from ..sync import IPCChannelLayer
from ._context import Context, Counts
from ._http import Exchange
from ._messages import Scope
from ._options import InterfaceOptions, core_of
from ._websocket import WebSocket

__all__ = ["InterfaceServer"]

logger = logging.getLogger("asgi_ipc.interface")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class InterfaceServer:
    """An ASGI 3 application that hands every connection to workers behind a channel layer.

    One object serves one event loop at a time. It works without lifespan events; with them it
    says at the start whether the layer can be used, and at the end lets answers finish.
    """

    def __init__(
        self,
        layer: AsyncIPCChannelLayer | IPCChannelLayer,
        options: InterfaceOptions | None = None,
        *,
        close_layer: bool = False,
    ) -> None:
        """Make a server; nothing is attached to before the first event.

        Args:
            layer: of any face, with the prefix of the workers.
            options: how to behave; ``None``: the defaults.
            close_layer: close the layer at the end of the lifespan.
        """
        self.layer: AsyncIPCChannelLayer = core_of(layer)
        self.options: InterfaceOptions = options or InterfaceOptions()
        self.counts: Counts = Counts()
        self._close_layer = close_layer
        self._context: Context | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan of the application.

        Raises:
            ValueError: a protocol that is neither of these.
        """
        kind = scope["type"]
        if kind == "http":
            await Exchange(await self._bound(), scope, receive, send).run()
        elif kind == "websocket":
            await WebSocket(await self._bound(), receive, send).run(scope)
        elif kind == "lifespan":
            await self._live(receive, send)
        else:
            raise ValueError(f"scope type {kind!r} is none of http, websocket and lifespan")

    def statistics(self) -> dict[str, int]:
        """Return the counts of ``context.Counts``, and how many of each there are now."""
        now = {"open_requests": 0, "open_websockets": 0, "orphans": 0}
        context = self._context
        if context is not None:
            now["open_requests"] = context.open_requests
            now["open_websockets"] = len(context.sockets)
            now["orphans"] = len(context.orphans)
        return {**dataclasses.asdict(self.counts), **now}

    async def _bound(self) -> Context:
        """Return what belongs to the running loop; made anew when that is another one."""
        context = self._context
        if context is None or context.loop is not asyncio.get_running_loop():
            name = await self.layer.new_channel("websocket.send")
            part = home_of(name).removeprefix("websocket.send.").removesuffix("!")
            context = self._context = Context(self.layer, self.options, self.counts, part)
        return context

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                try:
                    await self._bound()
                    await self.layer.receive_async((), block=False)  # attaches, if it was closed
                except (IPCError, OSError) as exc:
                    logger.error("the channel layer %r cannot be used: %s", self.layer.prefix, exc)
                    await send({"type": "lifespan.startup.failed", "message": str(exc)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif event["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def close(self) -> None:
        """Wait for the answers in flight (``shutdown_timeout``), then stop reading. Idempotent."""
        context, self._context = self._context, None
        if context is not None:
            await context.close()
        if self._close_layer:
            await self.layer.close()
