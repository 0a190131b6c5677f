"""Clients that keep a site busy, and remember every answer that did not come.

They run on an event loop in a thread of their own, so that a test can kill processes meanwhile.
"""

import asyncio
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .running_site import DEADLINE_S, Site, poll_until

# Daphne answers a request that nobody handles with a 503 after this time (and up to 2 s more,
# since that is how often it looks): this is how a request in the hands of a killed worker ends.
HTTP_TIMEOUT_S = 4
NO_ANSWER = "Worker server failed to respond within time limit."
# An echo that has not come after this time was in the hands of a killed worker.
ECHO_TIMEOUT_S = 4.0


class Load:
    """HTTP and websocket clients, each sending its next message when the last was answered."""

    def __init__(self, site: Site, http_clients: int = 8, websockets: int = 10) -> None:
        self.site = site
        self.http_clients = http_clients
        self.websockets = websockets
        self.answers = 0
        self.lost: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stopping = False
        self._outages: list[tuple[float, float]] = []

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Run the clients; at the end let every one of them finish what it waits for."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        thread.start()
        try:
            yield self
        finally:
            self._stopping = True
            thread.join()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Excuse what fails while the block runs: the interface server is down."""
        index = len(self._outages)
        self._outages.append((time.monotonic(), float("inf")))
        yield
        self._outages[index] = (self._outages[index][0], time.monotonic())

    def wait_for_answers(self, count: int) -> None:
        """Wait until `count` more requests and echoes have been answered."""
        wanted = self.answers + count
        poll_until(
            lambda: self.answers >= wanted or self.failures,
            f"{count} more answers; there were {self.answers}, lost {self.lost}",
        )
        assert self.failures == []

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(self.http_clients):
                clients.create_task(self._http_client(number))
            for number in range(self.websockets):
                clients.create_task(self._websocket(number))

    def _failed(self, started: float, what: str) -> None:
        now = time.monotonic()
        if not any(started < end and start < now for start, end in self._outages):
            self.failures.append(what)

    async def _http_client(self, number: int) -> None:
        body = bytes([number]) * 50_000
        digest = hashlib.sha256(body).hexdigest()
        async with httpx.AsyncClient(base_url=self.site.url, timeout=DEADLINE_S) as client:
            while not self._stopping:
                started = time.monotonic()
                try:
                    if number % 4:
                        answer = await client.get("/")
                        right = answer.text == "hello\n"
                    else:
                        answer = await client.post("/request/load", content=body)
                        right = answer.status_code == 200 and answer.json()["body_sha256"] == digest
                except httpx.TransportError as error:
                    self._failed(started, f"HTTP client {number}: {error!r}")
                    await asyncio.sleep(0.05)  # nobody listens: do not spin
                    continue
                if right:
                    self.answers += 1
                elif answer.status_code == 503 and NO_ANSWER in answer.text:
                    self.lost["request"] += 1
                else:
                    what = f"{answer.status_code} {answer.text[:200]}"
                    self._failed(started, f"HTTP client {number}: {what}")

    async def _websocket(self, number: int) -> None:
        while not self._stopping:
            started = time.monotonic()
            try:
                async with connect(f"{self.site.ws_url}/echo", open_timeout=DEADLINE_S) as socket:
                    await self._echo(socket, number)
            except (ConnectionClosed, InvalidHandshake, OSError) as error:
                # A handshake in the hands of a killed worker ends in a refusal, 403, after 5 s.
                if isinstance(error, InvalidHandshake) and "403" in str(error):
                    self.lost["handshake"] += 1
                else:
                    self._failed(started, f"websocket {number}: {error!r}")
                await asyncio.sleep(0.05)

    async def _echo(self, socket: ClientConnection, number: int) -> None:
        count = 0
        missing: set[str | bytes] = set()
        while not self._stopping:
            count += 1
            sent = f"{number} {count}"
            await socket.send(sent)
            try:
                while (
                    received := await asyncio.wait_for(socket.recv(), ECHO_TIMEOUT_S)
                ) in missing:
                    missing.remove(received)  # late, as all of a machine that stood still
                    self.lost["echo"] -= 1
            except TimeoutError:
                missing.add(sent)
                self.lost["echo"] += 1
                continue
            if received == sent:
                self.answers += 1
            else:
                self.failures.append(f"websocket {number}: {received!r} for {sent!r}")
