"""The program of docs/asgi.md under several workers, with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from websockets.asyncio.client import connect

from asgi_ipc import AsyncIPCChannelLayer
from tests.channels1.running_site import unused_port

from .blocks import DOCS, blocks_of

PATIENCE_S = 60.0
WORKERS = 2


@contextlib.asynccontextmanager
async def rooms(folder: Path, prefix: str) -> AsyncIterator[str]:
    """The program as the page has it; yields its address once all workers have started."""
    parts = [block.text for block in blocks_of(DOCS / "asgi.md", "python") if block.info]
    program = "\n\n".join(parts).replace('"mysite"', repr(prefix))
    (folder / "rooms.py").write_text(program)
    port = unused_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "uvicorn", "rooms:app", "--app-dir", str(folder), "--port", str(port)),
        *("--workers", str(WORKERS), "--ws", "websockets-sansio"),
        *("--timeout-graceful-shutdown", "1"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = b""
    try:
        while said.count(b"startup complete") < WORKERS:
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = await process.communicate()
    assert b"Traceback" not in said + rest, (said + rest).decode()


async def test_a_room_is_one_room_in_all_workers(tmp_path: Path, prefix: str) -> None:
    """Websockets, requests and streams hear each other; who has gone is counted no more."""
    room = "rooms/büro 1"
    async with (
        asyncio.timeout(PATIENCE_S),
        rooms(tmp_path, prefix) as address,
        httpx.AsyncClient(base_url=f"http://{address}/", timeout=PATIENCE_S) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        path = httpx.URL(f"http://{address}/{room}").raw_path.decode()
        sockets = [
            await stack.enter_async_context(connect(f"ws://{address}{path}")) for _ in range(8)
        ]
        async with http.stream("GET", f"{room}/events") as stream:
            lines = stream.aiter_lines()
            while (await http.get(f"{room}/count")).json() < 9:
                await asyncio.sleep(0.01)
            await sockets[0].send("hello")
            for socket in sockets:
                assert json.loads(await socket.recv()) == {"text": "hello"}
            assert await anext(lines) == 'data: {"text": "hello"}'
        while (await http.get(f"{room}/count")).json() > 8:
            await asyncio.sleep(0.01)
        told = (await http.post(room, params={"text": "all"})).json()
        assert told == {"reached": 8, "skipped": 0}
        for socket in sockets:
            assert json.loads(await socket.recv()) == {"text": "all"}
            await socket.close()
        while (await http.get(f"{room}/count")).json():
            await asyncio.sleep(0.01)
    AsyncIPCChannelLayer(prefix).unlink()


def test_the_parts_of_the_program_have_its_name() -> None:
    """Each titled block of the page belongs to rooms.py."""
    infos = {block.info.strip() for block in blocks_of(DOCS / "asgi.md", "python")}
    assert {re.sub(r'title="(.*)"', r"\1", info) for info in infos} == {"", "rooms.py"}
