"""A plain worker of the echo: it answers requests and websocket frames that it never accepted.

    python examples/http_echo/worker.py 1

It holds no connection, so it may be stopped, killed and replaced while they stay open.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.worker import Message, Worker

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": (PAGE / "index.html", b"text/html; charset=utf-8"),
    "/echo.css": (PAGE / "echo.css", b"text/css; charset=utf-8"),
    "/echo.js": (PAGE / "echo.js", b"text/javascript; charset=utf-8"),
}
ISOLATED = [  # a page that is, gets a clock of 5 µs instead of 100
    [b"cross-origin-opener-policy", b"same-origin"],
    [b"cross-origin-embedder-policy", b"require-corp"],
]
SIGNALS = {"stop": signal.SIGTERM, "kill": signal.SIGKILL}
SIGNAL_EXPIRY_S = 1.0  # so that it does not hit the one that is started instead

parser = argparse.ArgumentParser(description="a worker of the echo example")
parser.add_argument("number", type=int, help="tells the workers apart")
parser.add_argument("--prefix", default="http-echo", help="of the shared memory")
options = parser.parse_args()
me = {"worker": options.number, "pid": os.getpid()}
worker = Worker(AsyncIPCChannelLayer(prefix=options.prefix))


@worker.on("http.request")
async def request(message: Message) -> None:
    """Serve the page."""
    path, content_type = FILES.get(message["path"], (None, b"text/plain"))
    content = path.read_bytes() if path else b"there is nothing here\n"
    headers = [
        [b"content-type", content_type],
        [b"content-length", str(len(content)).encode()],
        [b"cache-control", b"no-store"],
        *ISOLATED,
    ]
    await message.reply({"status": 200 if path else 404, "headers": headers, "content": content})


@worker.on("websocket.connect")
async def connect(message: Message) -> None:
    """Accept; the answer's text is the first frame that the page gets."""
    await message.reply({"accept": True, "text": json.dumps({"kind": "welcome", **me})})


@worker.on("websocket.receive")
async def receive(message: Message) -> None:
    """Echo what the page says, or pass its request for a signal on to the worker it means."""
    said = json.loads(message["text"])
    if said["kind"] == "echo":
        await message.reply({"text": json.dumps({**said, **me})})
    elif said["kind"] == "signal":
        channel = f"echo.signal.{int(said['worker'])}"
        await message.layer.send(channel, {"name": said["name"]}, expiry=SIGNAL_EXPIRY_S)


@worker.on(f"echo.signal.{options.number}")
async def end(message: Message) -> None:
    os.kill(os.getpid(), SIGNALS[message["name"]])


@worker.on("websocket.disconnect", "http.disconnect")
async def gone(_message: Message) -> None:
    """Nothing is kept for a connection, so there is nothing to tidy up."""


if __name__ == "__main__":
    worker.run()
