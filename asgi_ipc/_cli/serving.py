"""The command ``serve``: the interface server under uvicorn."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Annotated

import typer

from .codes import Code
from .options import AsJson, Prefix, ending, fail, size_in_bytes

__all__ = ["serve"]


@ending
def serve(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 lets the system choose.")
    ] = 8000,
    uds: Annotated[
        str, typer.Option(metavar="PATH", help="Listen at this unix socket instead.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, help="Server processes.")] = 1,
    log_level: Annotated[
        str, typer.Option(help="Of uvicorn: debug, info, warning, error.")
    ] = "info",
    ws_max_size: Annotated[
        int,
        typer.Option(parser=size_in_bytes, metavar="SIZE", help="Largest websocket frame."),
    ] = 16 << 20,
    access_log: Annotated[bool, typer.Option(help="Write a line for each request.")] = True,
) -> None:
    """Serve HTTP and websockets, and pass them to workers as Channels 1 messages.

    Needs uvicorn. All other options come from the environment: ASGI_IPC_CAPACITY,
    ASGI_IPC_REQUEST_TIMEOUT and so on, as docs/interface.md lists them. This is a process of
    the site, so it creates the segments if it is the first.
    """
    if importlib.util.find_spec("uvicorn") is None:
        fail(
            Code.MISSING,
            "serve needs uvicorn, which is not installed: pip install 'asgi_ipc[server]'",
            as_json=as_json,
        )
    from .. import interface

    try:
        layer = dataclasses.replace(interface.LayerOptions.from_environment(), prefix=prefix)
        options = interface.InterfaceOptions.from_environment()
    except (ValueError, TypeError) as exc:
        fail(Code.USAGE, str(exc), as_json=as_json)
    interface.serve(
        layer,
        options,
        host=host,
        port=port,
        uds=uds or None,
        workers=workers,
        log_level=log_level,
        access_log=access_log,
        ws_max_size=ws_max_size,
    )
