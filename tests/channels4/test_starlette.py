"""The Starlette example under four workers, with real websocket clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.channels1.running_site import unused_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "starlette_broadcast.py"
PATIENCE_S = 30.0
MOST_CONNECTIONS = 200


@contextlib.asynccontextmanager
async def broadcast(prefix: str) -> AsyncIterator[int]:
    """The example with four workers; yields its port once they have all started."""
    port = unused_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        *("--port", str(port), "--workers", "4"),
        env={**os.environ, "BROADCAST_PREFIX": prefix},
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said: list[bytes] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while sum(b"startup complete" in line for line in said) < 4:
                line = await process.stderr.readline()
                assert line, b"".join(said).decode()
                said.append(line)
        yield port
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        _, rest = await process.communicate()
    output = b"".join(said) + rest
    assert b"Traceback" not in output, output.decode()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


async def _receive(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        message: dict[str, Any] = json.loads(await client.recv())
        return message


async def test_what_one_says_all_hear_whichever_worker_they_have(prefix: str) -> None:
    """Every message once, in each sender's order; who has gone is not counted."""
    async with broadcast(prefix) as port, contextlib.AsyncExitStack() as stack:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            assert "Broadcast" in (await http.get(f"http://127.0.0.1:{port}/")).text
        clients: list[ClientConnection] = []
        workers: set[int] = set()
        while len(clients) < 20 or len(workers) < 2:
            assert len(clients) < MOST_CONNECTIONS, "all connections went to one worker"
            client = await stack.enter_async_context(
                connect(f"ws://127.0.0.1:{port}/ws", open_timeout=PATIENCE_S)
            )
            clients.append(client)
            hello = await _receive(client)
            assert hello["text"] == f"you are one of {len(clients)}"
            workers.add(hello["worker"])

        speakers = clients[::5]
        for number in range(25):
            for who, speaker in enumerate(speakers):
                await speaker.send(f"{who} {number}")
        expected = {who: list(range(25)) for who in range(len(speakers))}
        spoke: set[int] = set()
        for client in clients:
            heard: dict[int, list[int]] = {who: [] for who in expected}
            for _ in range(25 * len(speakers)):
                message = await _receive(client)
                who, number = map(int, message["text"].split())
                heard[who].append(number)
                spoke.add(message["worker"])
            assert heard == expected
        assert spoke <= workers

        left, stayed = clients[0], clients[1]
        await left.close()
        await stayed.send("still here")
        for client in clients[1:]:
            assert (await _receive(client))["text"] == "still here"
