"""Processes of the examples: started, listened to, and stopped as their users do it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 30.0


class Process:
    """A Python script, told by its lines what goes on."""

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
        self.pid = self._process.pid
        self._command = command
        self._rest = b""

    def expect(self, pattern: str) -> str:
        """Wait for a line with the pattern, and return what its first group matched."""
        assert self._process.stdout is not None
        end = time.monotonic() + PATIENCE_S
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                if match := re.search(pattern, line.decode()):
                    return match.group(match.lastindex or 0)
            left_s = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left_s)
            more = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert more, f"{self._command} never said {pattern!r}"
            self._rest += more

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        """Ask it to end, wait until it has, with success, and return what else it said."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        output, _ = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, f"exit {self._process.returncode}: {self._command}"
        return (self._rest + output).decode()

    def kill(self) -> None:
        """SIGKILL it, and wait. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
