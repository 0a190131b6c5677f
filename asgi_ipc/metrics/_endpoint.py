"""The ASGI endpoint: sites and settings come from the environment.

========================== ======== =======================================================
variable                   default  meaning
========================== ======== =======================================================
``ASGI_IPC_PREFIX``        ``asgi`` the site; several, with commas between
``ASGI_IPC_TOP_CHANNELS``  ``20``   as ``IPCCollector(top_channels=)``
========================== ======== =======================================================
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ._collector import IPCCollector

__all__ = ["PREFIX_VARIABLE", "TOP_CHANNELS_VARIABLE", "application"]

PREFIX_VARIABLE = "ASGI_IPC_PREFIX"
"""Names the site of ``application``; several, with commas between."""

TOP_CHANNELS_VARIABLE = "ASGI_IPC_TOP_CHANNELS"
"""Says how many channels ``application`` shows by name."""

_Event = MutableMapping[str, Any]


async def application(
    scope: _Event,
    receive: Callable[[], Awaitable[_Event]],
    send: Callable[[_Event], Awaitable[None]],
) -> None:
    """Answer a scrape, at whatever path this is served or mounted.

    A site is attached to when it is scraped, on a thread, so that no other request of the
    server waits for it. With a setting that is wrong the server does not start, or, where it
    knows no lifespan, each scrape fails.

    Raises:
        ValueError: the environment names no valid site or number.
    """
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        found = await asyncio.to_thread(lambda: list(_configured().collect()))
        registry = CollectorRegistry()
        registry.register(_Collected(found))
        await make_asgi_app(registry)(scope, receive, send)


class _Collected(Collector):
    """What one scrape has found, for the library's formats and ``name[]`` to work on."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics

    describe = collect


@cache
def _configured() -> IPCCollector:
    prefixes = [name.strip() for name in os.environ.get(PREFIX_VARIABLE, "asgi").split(",")]
    top = os.environ.get(TOP_CHANNELS_VARIABLE, "20")
    try:
        return IPCCollector(*prefixes, top_channels=int(top))
    except (TypeError, ValueError) as exc:
        raise ValueError(
            f"{PREFIX_VARIABLE}={','.join(prefixes)} {TOP_CHANNELS_VARIABLE}={top}: {exc}"
        ) from exc


async def _lifespan(
    receive: Callable[[], Awaitable[_Event]], send: Callable[[_Event], Awaitable[None]]
) -> None:
    while True:
        event = await receive()
        if event["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            _configured()
        except ValueError as exc:
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
        await send({"type": "lifespan.startup.complete"})
