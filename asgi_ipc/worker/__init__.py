"""A worker without a framework: handlers for channels, and a loop that feeds them.

::

    worker = Worker(AsyncIPCChannelLayer(prefix="mysite"))

    @worker.on("websocket.receive")
    async def echo(message: Message) -> None:
        await message.reply({"text": message["text"]})

    worker.run()  # until SIGTERM or Ctrl-C

It answers what an interface server sends (``asgi_ipc.interface``, Daphne 1), and reads any
other channel as well. A worker takes a message only when it has a free place for it, so that
what it cannot handle now is there for other workers. The messages in its hands are those
whose handlers have begun, and one more at most; they are all that is lost if it is killed.

Rooms: ``message`` (what handlers get), ``service`` (from receive to handler), ``worker``
(registering, signals).
"""

from __future__ import annotations

from ._message import Message, SyncMessage
from ._worker import Worker

__all__ = ["Message", "SyncMessage", "Worker"]
