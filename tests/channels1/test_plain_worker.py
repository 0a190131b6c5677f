"""A worker of ``asgi_ipc.worker`` behind Daphne 1.4.2: it speaks the messages of Channels 1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from .running_site import DEADLINE_S, PROJECT_ROOT, poll_until, unused_port

LAYER = """
import os
from asgi_ipc import IPCChannelLayer
channel_layer = IPCChannelLayer(prefix=os.environ["TEST_PREFIX"])
"""
WORKER = PROJECT_ROOT / "examples" / "http_echo" / "worker.py"


@pytest.fixture
def address(stack_python: Path, tmp_path: Path, prefix: str) -> Iterator[str]:
    """Where Daphne 1 listens, with the worker of an example behind it."""
    (tmp_path / "site_layer.py").write_text(LAYER)
    port = unused_port()
    daphne = [str(stack_python.with_name("daphne")), "-p", str(port), "site_layer:channel_layer"]
    commands = [daphne, [sys.executable, str(WORKER), "1", "--prefix", prefix]]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TEST_PREFIX": prefix}
    with ExitStack() as stack:
        for command in commands:
            process = stack.enter_context(subprocess.Popen(command, env=environment))
            stack.callback(process.send_signal, signal.SIGTERM)
        poll_until(lambda: _answers(port), "an answer of the worker through Daphne")
        yield f"127.0.0.1:{port}"


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", timeout=DEADLINE_S).status_code == 200
    except httpx.ConnectError:
        return False


def test_it_serves_pages_and_websockets(address: str) -> None:
    """Requests, an accepted handshake with a first frame, and echoes, in their order."""
    page = httpx.get(f"http://{address}/", timeout=DEADLINE_S)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert httpx.get(f"http://{address}/nothing", timeout=DEADLINE_S).status_code == 404
    with connect(f"ws://{address}/") as socket:
        assert json.loads(socket.recv(timeout=DEADLINE_S))["kind"] == "welcome"
        for number in range(50):
            socket.send(json.dumps({"kind": "echo", "mark": number, "text": "grüß dich"}))
        for number in range(50):
            answer = json.loads(socket.recv(timeout=DEADLINE_S))
            assert (answer["mark"], answer["text"]) == (number, "grüß dich")
