"""What the ASGI servers of these tests serve: the package's application, and its insides.

``/-/state`` tells, without any worker, what the process holds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
from pathlib import Path
from typing import Any

import asgi_ipc
from asgi_ipc.interface import _running
from asgi_ipc.interface import application as interface

assert asgi_ipc.__file__ is not None
PACKAGE = str(Path(asgi_ipc.__file__).parent)


def count_sockets() -> int:
    """Return how many sockets this process has: connections, above all."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            pass  # the directory's own
    return count


async def state() -> dict[str, Any]:
    """What this process holds just now."""
    gc.collect()
    server = _running._server
    pages, shared_pages = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    coroutines: list[Any] = [task.get_coro() for task in asyncio.all_tasks()]
    found: dict[str, Any] = {
        "tasks": len(coroutines),
        "our_tasks": sum(PACKAGE in one.cr_code.co_filename for one in coroutines),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "sockets": count_sockets(),
        "resident_bytes": pages * os.sysconf("SC_PAGESIZE"),
        "own_bytes": (pages - shared_pages) * os.sysconf("SC_PAGESIZE"),  # without the segments
        "attached": server is not None and server.layer._site.is_open,
    }
    if server is not None:
        found |= server.statistics()
        found["waiters"] = sum(len(port.waiting.by_key) for port in server.layer._site.ports())
        found |= await server.layer.global_statistics()
        found["inbox"] = server.layer._reception.inboxes.count
    return found


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer ``/-/state``, and hand on everything else (websockets not, if told so)."""
    if scope["type"] == "websocket" and "ASGI_IPC_BARE_WEBSOCKETS" in os.environ:
        await bare_websocket(receive, send)
        return
    if scope["type"] != "http" or scope["path"] != "/-/state":
        await interface(scope, receive, send)
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(await state()).encode()})


async def bare_websocket(receive: Any, send: Any) -> None:
    """The least that a websocket costs the ASGI server."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass
