"""Real servers and real workers, and what tests ask of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.conftest import Child

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "tests.interface.served:application"
PATIENCE_S = 30.0
COMMANDS = {
    "uvicorn": ["uvicorn", "--host", "127.0.0.1", "--port", "0", "--log-level", "info"],
    # Without a process of its own below it.
    "hypercorn": ["hypercorn", "--workers", "0", "--bind", "127.0.0.1:0"],
    "daphne": ["daphne", "-b", "127.0.0.1", "-p", "0"],
}
# Not an ASGI server's command, but ours; it ends with the same argument, and ignores it.
SERVE = ["python", "-c", "from asgi_ipc.interface import serve; serve(port=0, log_level='info')"]
_ADDRESS = re.compile(r"(?:[Rr]unning on http://|TCP address )127\.0\.0\.1:(\d+)")
ANSWERING = f"""
sys.path.insert(0, {str(ROOT)!r})
from tests.interface.answering import main
main(PREFIX)
"""

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str) -> T:
    """Return the first true value of a condition; fail, naming it, if none comes."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < give_up, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.01)


class Server:
    """An ASGI server that serves the interface, with a site's prefix."""

    def __init__(self, kind: str, prefix: str, *arguments: str, **options: object) -> None:
        """Start it and wait until it listens.

        Args:
            kind: a key of ``COMMANDS``, or ``serve``.
            prefix: of the channel layer.
            arguments: of the command.
            options: of the interface, by field name.
        """
        self.kind = kind
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        program, *rest = SERVE if kind == "serve" else COMMANDS[kind]
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *rest, *arguments, APPLICATION],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                "ASGI_IPC_PREFIX": prefix,
                **{f"ASGI_IPC_{name.upper()}": str(value) for name, value in options.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.pid = self.process.pid
        self.port = int(eventually(self._find_address, f"the address of {kind}").group(1))
        # Without connections that outlive a test.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S, limits=limits)

    def _find_address(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.log()
        return _ADDRESS.search(self.log())

    @property
    def url(self) -> str:
        """Where HTTP goes."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where websockets go."""
        return f"ws://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything it has written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def state(self) -> dict[str, Any]:
        """What the process holds; see ``served``."""
        with httpx.Client(timeout=PATIENCE_S) as client:
            found: dict[str, Any] = client.get(f"{self.url}/-/state").json()
        return found

    def events(self) -> list[Any]:
        """What its worker was told since this was asked last."""
        found: list[Any] = self.client.get("/events").json()
        return found

    def wait_for_event(self, kind: str, **wanted: object) -> dict[str, Any]:
        """Return the worker's first event of a kind that has these values."""

        def look() -> dict[str, Any] | None:
            for what, message in self.events():
                if what == kind and wanted.items() <= message.items():
                    return dict(message)
            return None

        return eventually(look, f"{kind} with {wanted}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return its status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it for good. Idempotent."""
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


def start_worker(prefix: str) -> Child:
    """Start a worker that answers; see ``answering``."""
    worker = Child(ANSWERING, prefix)
    worker.expect("ready")
    return worker
