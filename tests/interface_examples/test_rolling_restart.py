"""Websockets stay connected while the workers behind them are replaced and killed."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from tests.conftest import Child

Start = Callable[..., "Child"]
WINDOW = 3  # frames of one socket that may be on their way at once

SERVER = """
import uvicorn
os.environ["ASGI_IPC_PREFIX"] = PREFIX
os.environ["ASGI_IPC_MESSAGE_MEMORY"] = str(SIZES["message_memory"])
os.environ["ASGI_IPC_GROUP_MEMORY"] = str(SIZES["group_memory"])

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        say(self.servers[0].sockets[0].getsockname()[1])

Server(uvicorn.Config(
    "asgi_ipc.interface:application", port=0, ws="websockets-sansio", log_level="warning",
    timeout_graceful_shutdown=2,
)).run()
"""

# A worker that notes, where a SIGKILL cannot take it back, what it has taken in hand.
WORKER = """
import logging
from asgi_ipc.worker import Worker
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("asgi_ipc.worker").setLevel(logging.INFO)
works_s, places = float(sys.argv[3]), int(sys.argv[4])
worker = Worker(AsyncIPCChannelLayer(PREFIX, **SIZES), concurrency=places)
taken = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
taken_count = 0

@worker.on("websocket.connect")
async def accept(message):
    await message.reply({"accept": True})

@worker.on("websocket.receive")
async def echo(message):
    global taken_count
    os.write(taken, message["text"].encode() + b"\\n")
    taken_count += 1
    if taken_count == places:
        say("taken as many as there are places")
    if works_s:
        await asyncio.sleep(works_s)
    await message.reply({"text": message["text"]})

@worker.on("websocket.disconnect")
async def gone(message):
    pass

worker.run()
"""


class Crowd:
    """Websockets that each say something, hear it, and say the next thing.

    Attributes:
        said: every text that was sent.
        heard: how often each came back.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heard: Counter[str] = Counter()
        self._sockets: list[ClientConnection] = []
        self._is_quiet = self._is_leaving = False
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def connected(self, url: str, count: int) -> AsyncIterator[None]:
        """Be connected, and talk; a socket that is closed by anybody else is an error."""
        async with AsyncExitStack() as stack:
            sockets = (connect(url, open_timeout=None) for _ in range(count))
            opening = map(stack.enter_async_context, sockets)
            self._sockets = await asyncio.gather(*opening)
            async with asyncio.TaskGroup() as tasks:
                for number, socket in enumerate(self._sockets):
                    window = asyncio.Semaphore(WINDOW)
                    tasks.create_task(self._talk(number, socket, window))
                    tasks.create_task(self._listen(number, socket, window))
                yield
                self._is_leaving = True
                await asyncio.gather(*(socket.close() for socket in self._sockets))

    async def _talk(self, number: int, socket: ClientConnection, window: asyncio.Semaphore) -> None:
        for count in itertools.count():
            await window.acquire()
            if self._is_quiet:
                return
            self.said.append(f"{number}.{count}")
            await socket.send(self.said[-1])

    async def _listen(
        self, number: int, socket: ClientConnection, window: asyncio.Semaphore
    ) -> None:
        async for text in socket:
            self.heard[str(text)] += 1
            self._changed.set()
            window.release()
        assert self._is_leaving, f"socket {number} was closed with {socket.close_code}"

    async def hears(self, count: int) -> None:
        """Wait until so many more texts have come back."""
        enough = self.heard.total() + count
        while self.heard.total() < enough:
            self._changed.clear()
            await self._changed.wait()

    async def hear_the_rest(self) -> None:
        """Say one last thing, and return when all has come back that ever will.

        There must be one worker, which answers in order: so the answer to the last thing said
        on a socket is the last that comes back on it.
        """
        self._is_quiet = True
        for number, socket in enumerate(self._sockets):
            await socket.send(f"{number}.last")
        while any(f"{number}.last" not in self.heard for number in range(len(self._sockets))):
            self._changed.clear()
            await self._changed.wait()
        for number in range(len(self._sockets)):
            del self.heard[f"{number}.last"]


class Workers:
    """Worker processes, and what each has taken."""

    def __init__(self, start: Start, folder: Path) -> None:
        self._start = start
        self._folder = folder
        self._count = 0
        self.running: list[Child] = []
        self.notes: dict[int, Path] = {}

    async def add(self, works_s: float = 0.002, places: int = 16) -> Child:
        """Start one, and wait until it listens."""
        self._count += 1
        notes = self._folder / f"taken-{self._count}"
        child = self._start(WORKER, str(notes), str(works_s), str(places))
        self.notes[child.pid] = notes
        await asyncio.to_thread(child.expect, "listening on")
        self.running.append(child)
        return child

    async def retire(self) -> None:
        """SIGTERM the oldest, and wait until it has ended with success."""
        child = self.running.pop(0)
        child.signal(signal.SIGTERM)
        await asyncio.to_thread(child.end)

    def kill(self) -> list[str]:
        """SIGKILL the oldest; return what it had ever taken."""
        child = self.running.pop(0)
        child.kill()
        return self.notes[child.pid].read_text().split()

    async def kill_with_full_hands(self, places: int) -> list[str]:
        """Start one that never answers, SIGKILL it holding so many; return those."""
        child = await self.add(works_s=3600, places=places)
        await asyncio.to_thread(child.expect, "taken as many")
        self.running.insert(0, self.running.pop())
        return self.kill()

    async def leave_only_one(self) -> None:
        """Replace them by one that answers in order, since it waits for nothing."""
        await self.add(works_s=0)
        while len(self.running) > 1:
            await self.retire()

    def taken(self) -> list[str]:
        """Return what all of them have ever taken."""
        return [text for notes in self.notes.values() for text in notes.read_text().split()]


@pytest.fixture
async def url(start: Start) -> AsyncIterator[str]:
    """Where the interface server listens, under uvicorn."""
    server = start(SERVER)
    yield f"ws://127.0.0.1:{await asyncio.to_thread(server.line)}/"
    server.signal(signal.SIGTERM)
    await asyncio.to_thread(server.process.wait)


@pytest.fixture
async def workers(start: Start, tmp_path: Path) -> Workers:
    """Three of them, running."""
    running = Workers(start, tmp_path)
    for _ in range(3):
        await running.add()
    return running


# At most 20 frames are lost a round, and a lost one is not said again: enough are left to talk.
ROUNDS = [1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_replacing_every_worker_loses_nothing(
    url: str, workers: Workers, rounds: int
) -> None:
    """A hundred websockets stay, and every echo comes, once."""
    crowd = Crowd()
    async with crowd.connected(url, 100):
        await crowd.hears(300)
        for _ in range(rounds * len(workers.running)):
            await workers.add()
            await workers.retire()
            await crowd.hears(200)
        await workers.leave_only_one()
        await crowd.hear_the_rest()
    assert crowd.heard == Counter(crowd.said)


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_a_killed_worker_loses_what_it_held(url: str, workers: Workers, rounds: int) -> None:
    """A hundred websockets stay; every other echo comes, once."""
    crowd = Crowd()
    held: set[str] = set()
    perhaps_held: set[str] = set()
    async with crowd.connected(url, 100):
        await crowd.hears(300)
        for _ in range(rounds):
            held.update(await workers.kill_with_full_hands(3))
            await crowd.hears(200)
            perhaps_held.update(workers.kill())
            await workers.add()
            await crowd.hears(200)
        await workers.leave_only_one()
        await crowd.hear_the_rest()
    assert max(crowd.heard.values()) == 1
    lost = set(crowd.said) - set(crowd.heard)
    noted = workers.taken()
    assert len(noted) == len(set(noted))
    assert len(held) == 3 * rounds
    assert held <= lost
    assert lost & set(noted) <= held | perhaps_held
    # Between taking a message and noting it, a worker that has a free place holds one.
    assert len(lost - set(noted)) <= rounds
