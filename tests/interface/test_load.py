"""Hashed bodies both ways under load, expiry and the killing of workers: a 200 is never a lie."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import Child

from .answering import pattern
from .processes import PATIENCE_S, Server

WORKER = """
import hashlib
from asgi_ipc.worker import Worker
worker = Worker(AsyncIPCChannelLayer(PREFIX, expiry=2), concurrency=8)

@worker.on("http.request")
async def hashed(message):
    \"\"\"Answer with the hash of the body, and so much content that is hashed, too.\"\"\"
    await asyncio.sleep(float(message["path"].rpartition("/")[2]))
    body = await message.body()
    count = int(message["query_string"])
    content = bytes([count % 251]) * count
    headers = [
        [b"x-body", hashlib.sha1(body).hexdigest().encode()],
        [b"x-content", hashlib.sha1(content).hexdigest().encode()],
    ]
    start = {"status": 200, "headers": headers}
    for at in range(0, max(1, count), 300_000):
        more = at + 300_000 < count
        await message.reply(
            start | {"content": content[at : at + 300_000], "more_content": more}
        )
        start = {}

@worker.on("http.disconnect")
async def gone(message):
    pass

say("ready")
worker.run()
"""


class Load:
    """Requests of every size, some at a time, and what became of them."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.dice = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.whole = pattern(100_000_000)

    def size(self, largest: int) -> int:
        """Of a body: most are small, some as large as a message, few as large as may be."""
        top = self.dice.choices([100, 100_000, 2_000_000, largest], [50, 42, 7.6, 0.4])[0]
        return self.dice.randrange(top)

    async def request(self, client: httpx.AsyncClient, largest: int) -> None:
        """Make one; a 200 whose body or content was not whole fails the test."""
        size, count = self.size(largest), self.size(largest)
        start = self.dice.randrange(len(self.whole) - size)
        body = self.whole[start : start + size]
        pause_s = self.dice.choices([0, 0.01, 3], [80, 18, 2])[0]
        try:
            answer = await client.post(f"/{pause_s}?{count}", content=body)
        except httpx.TransportError as exc:  # cut
            self.outcomes[type(exc).__name__] += 1
            return
        self.outcomes[str(answer.status_code)] += 1
        if answer.status_code == 200:
            assert answer.headers["x-body"] == hashlib.sha1(body).hexdigest(), size
            assert answer.headers["x-content"] == hashlib.sha1(answer.content).hexdigest()
            assert len(answer.content) == count

    async def run(self, total: int, at_once: int, largest: int) -> None:
        """Make so many, so many at once."""
        left = iter(range(total))
        limits = httpx.Limits(max_keepalive_connections=0)
        url = self.server.url
        async with httpx.AsyncClient(base_url=url, timeout=4 * PATIENCE_S, limits=limits) as client:

            async def several() -> None:
                for _ in left:
                    await self.request(client, largest)

            await asyncio.gather(*(several() for _ in range(at_once)))


@pytest.mark.parametrize(
    ("total", "at_once", "largest"),
    [
        (300, 20, 5_000_000),
        pytest.param(10_000, 20, 100_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_an_answer_of_200_is_for_a_whole_body(
    start_server: Callable[..., Server],
    start: Callable[..., Child],
    total: int,
    at_once: int,
    largest: int,
) -> None:
    """From 0 bytes on, with workers that are late for what expires, and are killed meanwhile."""
    server = start_server("uvicorn", "--no-access-log", expiry=2, request_timeout=8)
    load = Load(server, seed=total)

    async def killing() -> None:
        """Kill the older of two workers whenever the load has come on a little."""
        workers = [start(WORKER), start(WORKER)]
        step, due = total // 12, total // 12
        while True:
            await asyncio.sleep(0.01)
            if sum(load.outcomes.values()) >= due:
                due += step
                workers.append(start(WORKER))
                workers.pop(0).signal(signal.SIGKILL)

    async def scenario() -> None:
        killer = asyncio.create_task(killing())
        try:
            await load.run(total, at_once, largest)
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)

    asyncio.run(scenario())
    print(dict(load.outcomes))
    assert load.outcomes["200"] > total // 2, load.outcomes
    assert set(load.outcomes) <= {"200", "503", "504", "RemoteProtocolError", "ReadError"}
