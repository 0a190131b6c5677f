"""What is left of connections: nothing, however they end."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import Child

from ..test_inotify import inotifies
from .processes import Server, eventually

StartServer = Callable[..., Server]
Workers = Callable[[], Child]

CONNECTIONS = 40
BODY = bytes(3_000_000)


async def one_request(port: int, dice: random.Random) -> None:
    """Make a request, and perhaps go away in the middle of it or of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        path = dice.choice(["/", "/bytes?count=300000", "/stream?count=5&size=50000", "/upload"])
        body = BODY if path == "/upload" and dice.random() < 0.3 else b"x" * dice.randrange(100)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        how = dice.random()
        if how < 0.2:
            writer.write(request[: dice.randrange(len(request))])
            return
        writer.write(request)
        if how < 0.4:
            await writer.drain()
        elif how < 0.6:
            await reader.read(dice.randrange(1, 100_000))
        else:
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    finally:
        if dice.random() < 0.5:
            writer.transport.abort()
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # aborted


async def one_websocket(port: int, dice: random.Random) -> None:
    """Open a websocket, and perhaps go away in the middle of the handshake or of an echo."""
    path = dice.choice(["echo", "group", "silent"])
    try:
        async with connect(
            f"ws://127.0.0.1:{port}/{path}",
            open_timeout=0.2 if path == "silent" else 30,
            close_timeout=0.1,
            max_queue=1,
        ) as socket:
            for _ in range(dice.randrange(4)):
                await socket.send("x" * dice.randrange(1, 50_000))
                if dice.random() < 0.7:
                    await socket.recv()
            if dice.random() < 0.3:
                socket.transport.abort()
    except TimeoutError:
        assert path == "silent"


async def storm(port: int, count: int, seed: int) -> None:
    """Make connections that end in every way, some at a time."""
    numbers = iter(range(count))

    async def several() -> None:
        for number in numbers:
            dice = random.Random(seed * 1_000_003 + number)
            kind = one_websocket if dice.random() < 0.15 else one_request
            try:
                await kind(port, dice)
            except ConnectionError:
                pass  # ours, aborted

    await asyncio.gather(*(several() for _ in range(CONNECTIONS)))


def is_idle(state: dict[str, Any]) -> bool:
    """Whether nothing of a connection is left in a server."""
    return not (
        state["open_requests"]
        or state["open_websockets"]
        or state["orphans"]
        or state["inbox"]
        or state["messages_pending"]
    )


@pytest.mark.parametrize(
    "count", [600, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn"])
def test_connections_leave_nothing(
    start_server: StartServer, workers: Workers, kind: str, count: int
) -> None:
    """No task, descriptor, waiter or message; no reply channel that anybody would read."""
    workers()
    workers()
    server = start_server(kind, request_timeout=20, client_timeout=20)
    asyncio.run(storm(server.port, 50, seed=0))  # what is made once
    eventually(lambda: is_idle(server.state()), "the end of the first connections")
    eventually(lambda: inotifies(server.pid) or kind != "uvicorn", "its inotify descriptor")
    before = eventually(lambda: server.state(), "its state")
    asyncio.run(storm(server.port, count, seed=count))
    eventually(lambda: is_idle(server.state()), "the end of all connections")

    def is_as_before() -> bool:
        state = server.state()
        # Hypercorn itself leaves connections behind whose client aborted a handshake.
        whole = ("tasks", "descriptors") if kind == "uvicorn" else ()
        return all(state[what] <= before[what] for what in ("our_tasks", "waiters", *whole))

    try:
        eventually(is_as_before, "what there was before")
    finally:
        print(f"before {before}\nafter {server.state()}")
    assert "Traceback" not in server.log(), server.log()


def test_a_thousand_idle_websockets(start_server: StartServer, workers: Workers) -> None:
    """They are answered when they speak, reached by a group, and cost little memory."""
    count = 1_000
    workers()
    server = start_server("uvicorn", "--ws-ping-interval", "0")
    bare = start_server("uvicorn", "--ws-ping-interval", "0", bare_websockets=1)

    async def open_all(at: Server, path: str) -> list[ClientConnection]:
        sockets: list[ClientConnection] = []
        for _ in range(0, count, 50):
            options: dict[str, Any] = {"compression": None, "open_timeout": None}
            new = (connect(f"{at.ws_url}/{path}", **options) for _ in range(50))
            sockets += await asyncio.gather(*new)
        return sockets

    async def scenario() -> None:
        cost = {}
        for at in (bare, server):
            before = at.state()["resident_bytes"]
            sockets = await open_all(at, "group")
            cost[at] = (at.state()["resident_bytes"] - before) / count
            if at is server:
                assert at.state()["open_websockets"] == count
                eventually(lambda: server.state()["waiters"] == 1, "one reader for all")
                assert {await s.recv() for s in sockets} == {"joined"}
                await sockets[7].send("hello")
                assert [await s.recv() for s in sockets] == ["hello"] * count
            await asyncio.gather(*(s.close() for s in sockets))
        print(f"bytes for each websocket: {cost[server]:.0f}, of which {cost[bare]:.0f} bare")
        assert cost[server] - cost[bare] <= 20_000, cost

    asyncio.run(scenario())
    eventually(lambda: is_idle(server.state()), "the end of all websockets")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn"])
def test_ten_thousand_idle_connections(
    start_server: StartServer, workers: Workers, kind: str
) -> None:
    """Strangers that connect and say nothing cost little, and stand in nobody's way."""
    count = 10_000
    needed = count + 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} descriptors, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    workers()
    server = start_server(kind)
    before = eventually(lambda: server.state(), "its state")
    with ExitStack() as strangers:
        for number in range(count):
            address = f"127.0.0.{2 + number % 4}"  # more ports than one address may have
            strangers.enter_context(
                socket.create_connection(("127.0.0.1", server.port), 30, (address, 0))
            )
        began = time.perf_counter()
        for _ in range(100):
            assert server.client.get("/").status_code == 200
        each_s = (time.perf_counter() - began) / 100
        state = server.state()
        cost = (state["resident_bytes"] - before["resident_bytes"]) / count
        print(f"{state['sockets']} sockets, {cost:.0f} bytes each; a request {each_s * 1e3:.2f} ms")
        # Hypercorn itself closes who says nothing for 5 s.
        assert kind == "hypercorn" or state["sockets"] >= count
        assert cost <= 20_000
    if kind == "uvicorn":  # hypercorn keeps some of those who went
        eventually(lambda: server.state()["sockets"] < before["sockets"] + 20, "their end")
