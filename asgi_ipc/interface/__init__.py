"""An interface server: HTTP and websockets in, Channels 1 messages out, behind any ASGI server.

::

    ASGI_IPC_PREFIX=mysite uvicorn asgi_ipc.interface:application --timeout-graceful-shutdown 30

or, from code, ``InterfaceServer(layer)``, an ASGI 3 application. Workers answer through the
channel layer: those of Channels 1 unchanged, ``asgi_ipc.worker``, or anything else that reads
``http.request`` and ``websocket.*``. They may come and go; the connections stay here.

What it guarantees:

- A request is answered: by a worker, or with 413, 500, 503 or 504, each for a stated reason.
- A request's body reaches a worker whole, or as an error.
- An answer that is not whole never looks as if it were.
- A slow client holds no worker up before it is ``response_buffer_bytes`` behind; then the
  worker's sends raise ``ChannelFull``. Other connections do not notice.
- Nothing of a connection is left once it has ended.

Rooms: ``_options`` (every setting), ``_messages`` (the formats, pure), ``_backlog`` (bytes that
wait), ``_turns`` (of websockets), ``_context`` (what connections share), ``_patience`` (with slow
clients), ``_body`` (a request's), ``_http`` and ``_websocket`` (one connection each), ``_server``
(the application), ``_running`` (under uvicorn).
"""

from __future__ import annotations

from ._options import InterfaceOptions, LayerOptions
from ._running import application, serve
from ._server import InterfaceServer

__all__ = ["InterfaceOptions", "InterfaceServer", "LayerOptions", "application", "serve"]
