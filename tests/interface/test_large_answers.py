"""Large replies of a worker of ours, as their clients see them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Child

from .answering import pattern
from .processes import ROOT, Server

SIZE = 20_000_000
WORKER = f"""
sys.path.insert(0, {str(ROOT)!r})
from asgi_ipc.worker import Worker
from tests.interface.answering import pattern
worker = Worker(AsyncIPCChannelLayer(PREFIX))

@worker.on("http.request")
async def answer(message):
    await message.reply({{"status": 200, "content": pattern({SIZE})}})

say("ready")
worker.run()
"""


@pytest.fixture
def worker(prefix: str) -> Iterator[None]:
    """A worker that answers everything with much."""
    child = Child(WORKER, prefix)
    child.expect("ready")
    yield
    child.kill()


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn", "daphne"])
def test_a_large_reply_arrives_whole_and_with_its_length(
    start_server: Callable[..., Server], kind: str
) -> None:
    """Though no message of it is large."""
    server = start_server(kind)
    response = server.client.get("/")
    assert response.headers["content-length"] == str(SIZE)
    assert hashlib.sha256(response.content).digest() == hashlib.sha256(pattern(SIZE)).digest()
    response = server.client.head("/")
    assert (response.headers["content-length"], response.content) == (str(SIZE), b"")
    server.client.close()
    assert server.state()["malformed"] == server.state()["cut"] == 0
