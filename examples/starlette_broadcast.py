"""A broadcast over the websockets of several workers: Starlette and the async core, no Django.

    python examples/starlette_broadcast.py --workers 4

Open http://127.0.0.1:8000/ in a few tabs: each says which worker it is connected to, and all of
them see what one of them says. The same under ``uvicorn starlette_broadcast:app --workers 4``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_ipc import AsyncIPCChannelLayer

GROUP = "everybody"
PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Broadcast</title>
<style>
  :root { color-scheme: light dark; }
  body { max-width: 36rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.6 system-ui; }
  input { width: 100%; padding: .6rem .8rem; font: inherit; border-radius: .5rem;
          border: 1px solid gray; box-sizing: border-box; }
  li small { opacity: .6; }
</style>
<h1>Broadcast</h1>
<form><input aria-label="Message" placeholder="Say something to everybody" autofocus></form>
<ul></ul>
<script>
  const socket = new WebSocket(`ws://${location.host}/ws`);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data), line = document.createElement("li");
    const worker = document.createElement("small");
    line.append(message.text, " ", worker);
    worker.textContent = `worker ${message.worker}`;
    document.querySelector("ul").prepend(line);
  };
  document.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const input = event.target.elements[0];
    if (input.value) socket.send(input.value);
    input.value = "";
  };
</script>
"""

# Made when the worker imports this module: nothing is bound to an event loop.
layer = AsyncIPCChannelLayer(prefix=os.environ.get("BROADCAST_PREFIX", "starlette-broadcast"))


async def page(_request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


async def connection(socket: WebSocket) -> None:
    """One websocket: what it says goes to the group, what the group is told goes to it."""
    await socket.accept()
    async with layer.subscribe(GROUP) as messages:
        count = await layer.group_count(GROUP)
        await socket.send_json({"text": f"you are one of {count}", "worker": os.getpid()})
        reader = asyncio.create_task(pass_on(messages, socket))
        try:
            async for text in socket.iter_text():
                await layer.group_send(GROUP, {"text": text, "worker": os.getpid()})
        finally:
            reader.cancel()


async def pass_on(messages: AsyncIterator[dict[str, Any]], socket: WebSocket) -> None:
    async for message in messages:
        try:
            await socket.send_json(message)
        except WebSocketDisconnect:
            return  # the other half of the connection notices, too


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Let go of the shared memory when the worker stops."""
    yield
    await layer.close()


app = Starlette(
    routes=[Route("/", page), WebSocketRoute("/ws", connection)],
    lifespan=lifespan,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="broadcast between websockets of many workers")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        uvicorn.run(
            "starlette_broadcast:app",
            app_dir=str(Path(__file__).parent),
            port=options.port,
            workers=options.workers,
            ws="websockets-sansio",
            timeout_graceful_shutdown=2,
        )
    finally:
        layer.unlink()


if __name__ == "__main__":
    main()
