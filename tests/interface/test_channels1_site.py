"""The real Channels 1 site behind this server instead of Daphne 1: the same checks.

The tests themselves are those of ``tests.channels1.test_site``, with another ``site``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from asgi_ipc import IPCChannelLayer
from asgi_ipc.exceptions import StoreLocked
from tests.channels1.conftest import stack_python
from tests.channels1.running_site import (
    DEADLINE_S,
    Site,
    SiteProcess,
    poll_until,
    shared_memory_of,
    wait_until_working,
)
from tests.channels1.test_site import *  # noqa: F403

from .processes import ROOT

__all__ = ["stack_python"]

pytestmark = pytest.mark.timeout(300)  # the first may have to make the stack

SOCKETS = 100


class InterfaceSite(Site):
    """The example site, behind uvicorn and the interface server."""

    def start_daphne(self, *arguments: str) -> SiteProcess:
        """Start what takes Daphne's place."""
        process = SiteProcess(
            "interface",
            [
                *(sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--no-access-log", *arguments, "asgi_ipc.interface:application"),
            ],
            {**os.environ, "PYTHONPATH": str(ROOT), "ASGI_IPC_PREFIX": self.prefix},
            self.directory / "interface.log",
        )
        self.processes.append(process)
        return process


@contextmanager
def run_site(python: Path, directory: Path) -> Iterator[InterfaceSite]:
    """Give a site whose processes all end as they should and which leaves nothing behind."""
    site = InterfaceSite(python, directory)
    try:
        yield site
    finally:
        statuses = site.stop()
        print(site.report())
        assert shared_memory_of(site.prefix) == []
    # Uvicorn ends by the signal that it was told to end with.
    assert set(statuses.values()) <= {0, -signal.SIGTERM}, statuses


@pytest.fixture(scope="module")
def site(stack_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a running site that the tests of this module share."""
    with run_site(stack_python, tmp_path_factory.mktemp("interface") / "site") as site:
        site.start_all()
        yield site


def test_an_upload_whose_chunks_are_lost_is_an_error(stack_python: Path, tmp_path: Path) -> None:
    """A worker of Channels 1 as it is aborts it, its client gets 504; the next one is whole."""
    body = random.Random(1).randbytes(30_000_000)
    with run_site(stack_python, tmp_path / "site") as site:
        site.start_daphne()
        worker = site.start_worker()
        wait_until_working(worker)
        site.wait_until_answering()
        layer = IPCChannelLayer(prefix=site.prefix, lock_timeout=0.2)
        before = layer.global_statistics()["messages_pending"]
        answers: list[httpx.Response] = []

        def upload() -> None:
            answers.append(httpx.post(f"{site.url}/request/upload", content=body, timeout=60))

        def is_in_the_middle() -> bool:
            """Stop the worker while chunks wait for it, or let it go on."""
            worker.process.send_signal(signal.SIGSTOP)
            try:
                if layer.global_statistics()["messages_pending"] >= before + 2:
                    return True
            except StoreLocked:
                pass  # stopped in the middle of an operation
            worker.process.send_signal(signal.SIGCONT)
            return False

        thread = threading.Thread(target=upload)
        thread.start()
        poll_until(is_in_the_middle, "chunks that wait for the worker")
        layer.flush()
        worker.process.send_signal(signal.SIGCONT)
        thread.join()
        upload()
        layer.close()
    lost, whole = answers
    assert lost.status_code == 504
    assert whole.json()["body_sha256"] == hashlib.sha256(body).hexdigest()


class Echoer:
    """A websocket that sends a number, waits for it to come back, and so on."""

    def __init__(self) -> None:
        self.echoed = 0
        self.lost = 0

    async def run(self, url: str, end: asyncio.Event) -> None:
        """Echo until the end; a socket that is closed fails the test."""
        async with connect(url) as socket:
            number = 0
            while not end.is_set():
                number += 1
                await socket.send(str(number))
                try:
                    async with asyncio.timeout(5):
                        while await socket.recv() != str(number):
                            pass
                    self.echoed += 1
                except TimeoutError:
                    self.lost += 1


@pytest.mark.slow
def test_workers_are_replaced_one_after_the_other(stack_python: Path, tmp_path: Path) -> None:
    """No websocket drops and no echo is lost, but for what a worker had in its hands.

    Not only a killed one may lose that: SIGTERM ends a worker of Channels 1 wherever it is, and
    between taking a message and saying that it is busy, that loses the message.
    """
    with run_site(stack_python, tmp_path / "site") as site:
        site.start_daphne()
        workers = [site.start_worker(), site.start_worker()]
        for worker in workers:
            wait_until_working(worker)
        site.wait_until_answering()
        echoers = [Echoer() for _ in range(SOCKETS)]

        async def everybody_echoes(end: asyncio.Event) -> None:
            """Wait until every socket has echoed again; something is wrong if one cannot."""
            before = [echoer.echoed for echoer in echoers]
            async with asyncio.timeout(DEADLINE_S):
                while any(e.echoed <= b for e, b in zip(echoers, before, strict=True)):
                    assert not end.is_set()
                    await asyncio.sleep(0.02)

        async def replace(worker: SiteProcess, number: signal.Signals) -> None:
            successor = site.start_worker()
            await asyncio.to_thread(wait_until_working, successor)
            if number == signal.SIGKILL:
                worker.kill()
            else:
                worker.ask_to_end(number)
                assert await asyncio.to_thread(worker.exit_status) == 0

        async def scenario() -> None:
            end = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for echoer in echoers:
                    group.create_task(echoer.run(f"{site.ws_url}/echo", end))
                try:
                    await everybody_echoes(end)
                    for worker in workers:
                        await replace(worker, signal.SIGTERM)
                        await everybody_echoes(end)
                    await replace(site.processes[-1], signal.SIGKILL)
                    await everybody_echoes(end)
                finally:
                    end.set()

        asyncio.run(scenario())
        assert sum(echoer.lost for echoer in echoers) <= 3  # one for each that ended
