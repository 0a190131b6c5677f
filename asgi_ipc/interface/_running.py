"""The server as a process: ``application``, for ASGI servers, and ``serve``, under uvicorn."""

from __future__ import annotations

import importlib
import math
import os
from typing import Any

from ..exceptions import IPCError
from ._messages import Scope
from ._options import InterfaceOptions, LayerOptions
from ._server import InterfaceServer, Receive, Send

__all__ = ["application", "serve"]

_server: InterfaceServer | None = None


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one connection, configured by the environment: an ASGI 3 application.

    The options are read, and the layer built, at the first event: importing attaches nothing.
    What is wrong with them ends the startup, or else is raised for every connection.

    Raises:
        ValueError: a variable ``ASGI_IPC_...`` has an impossible value; it is named.
        IPCError: the layer cannot be used; see ``exceptions``.
    """
    global _server
    try:
        if _server is None:
            _server = InterfaceServer(
                LayerOptions.from_environment().make(),
                InterfaceOptions.from_environment(),
                close_layer=True,
            )
    except (ValueError, TypeError, OSError, IPCError) as exc:
        if scope["type"] != "lifespan":
            raise
        await receive()
        await send({"type": "lifespan.startup.failed", "message": str(exc)})
        return
    await _server(scope, receive, send)


def serve(
    layer: LayerOptions | None = None,
    options: InterfaceOptions | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | None = None,
    workers: int = 1,
    **uvicorn_options: Any,
) -> None:
    """Run the interface server under uvicorn until it is told to end (SIGTERM, Ctrl-C).

    Args:
        layer: the channel layer; ``None``: from the environment.
        options: of the server; ``None``: from the environment.
        host: address to listen at.
        port: port to listen at; 0 lets the system choose one.
        uds: path of a unix socket to listen at instead.
        workers: server processes; each has its own process part in the channel names.
        uvicorn_options: anything else that ``uvicorn.run`` takes. Without a
            ``timeout_graceful_shutdown`` it is ``shutdown_timeout``: uvicorn waits for
            connections first, by default without limit.

    Raises:
        ImportError: uvicorn is not installed.
        ValueError, TypeError: an option is impossible.
        IPCError: the layer cannot be used; see ``exceptions``.
        SystemExit: the server could not start, as ``uvicorn.run`` does it.
    """
    try:
        uvicorn = importlib.import_module("uvicorn")
    except ImportError as exc:
        raise ImportError("serve() needs uvicorn: pip install 'asgi_ipc[server]'") from exc
    layer = layer or LayerOptions.from_environment()
    options = options or InterfaceOptions.from_environment()
    layer.make().close_now()  # what is impossible is said here, not by each process
    uvicorn_options.setdefault("timeout_graceful_shutdown", math.ceil(options.shutdown_timeout))
    # Server processes are started anew, and read it all back from there.
    os.environ.update({**layer.as_environment(), **options.as_environment()})
    uvicorn.run(
        "asgi_ipc.interface:application",
        host=host,
        port=port,
        uds=uds,
        workers=workers,
        **uvicorn_options,
    )
