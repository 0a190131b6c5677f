"""Fixtures: the three ASGI servers, shared by a module's tests, and servers of a test's own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from tests.conftest import OURS, Child

from .processes import COMMANDS, Server, start_worker


def unlink(prefix: str) -> None:
    """Remove a prefix's segments, whose processes have ended."""
    if os.path.exists(f"/dev/shm/{prefix}-messages"):
        AsyncIPCChannelLayer(prefix).unlink()


@pytest.fixture(scope="module", params=list(COMMANDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An ASGI server of each kind with one worker, shared by the tests of a module."""
    yield from serving_with_a_worker(request.param)


def serving_with_a_worker(kind: str, unwanted: str = "Traceback") -> Iterator[Server]:
    """Give a server that answers; in the end its log must be without what is not wanted."""
    prefix = f"{OURS}{secrets.token_hex(4)}"
    server, worker = Server(kind, prefix), start_worker(prefix)
    try:
        server.client.get("/")  # everything is attached now
        yield server
        log = server.log()
        server.end()
        assert unwanted not in log, log
    finally:
        server.kill()
        worker.kill()
        unlink(prefix)


@pytest.fixture
def start_server(prefix: str) -> Iterator[Callable[..., Server]]:
    """Start servers of this test's prefix; none outlives it."""
    servers: list[Server] = []

    def start(kind: str = "uvicorn", *arguments: str, **options: object) -> Server:
        servers.append(Server(kind, prefix, *arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
    unlink(prefix)


@pytest.fixture
def workers(prefix: str) -> Iterator[Callable[[], Child]]:
    """Start workers of this test's prefix; none outlives it."""
    started: list[Child] = []

    def start() -> Child:
        started.append(start_worker(prefix))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
