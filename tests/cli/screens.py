"""A command in a pseudo-terminal, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from typing import Any

import pyte

__all__ = ["Screen"]

PATIENCE_S = 30.0


class Screen:
    """A terminal of ``columns`` by ``lines`` with a command in it.

    Attributes:
        raw: everything the command has written.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        columns: int = 110,
        lines: int = 40,
    ) -> None:
        self.master, self.slave = pty.openpty()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.resize(columns, lines)
        self.before = self.settings()
        self.process = subprocess.Popen(
            arguments,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            # It becomes the session's terminal, so that Ctrl-C and a new size send signals.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def settings(self) -> list[Any]:
        """Return the terminal's settings: echo, line buffering and the like."""
        return termios.tcgetattr(self.slave)

    def resize(self, columns: int, lines: int) -> None:
        """Make the window another size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def text(self) -> str:
        """Return what is on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def cells(self) -> list[list[Any]]:
        """Return the characters on the screen with their colours, line by line."""
        columns, lines = self._screen.columns, self._screen.lines
        buffer = self._screen.buffer
        return [[buffer[line][column] for column in range(columns)] for line in range(lines)]

    def until(self, condition: str | re.Pattern[str] | Callable[[str], object]) -> str:
        """Read on until a text is on the screen, or a condition of it holds; return it.

        A screen may be half drawn: whatever is looked for goes into the condition.
        """
        if isinstance(condition, str):
            condition = re.compile(re.escape(condition))
        holds = condition.search if isinstance(condition, re.Pattern) else condition
        give_up = time.monotonic() + PATIENCE_S
        while not holds(self.text()):
            left = give_up - time.monotonic()
            assert left > 0, f"waited for {condition!r} on a screen with\n{self.text()}"
            assert self._pump(left) or holds(self.text()), self.text()
        return self.text()

    def _pump(self, seconds: float) -> bool:
        """Take in what was written; False at the end."""
        ready, _, _ = select.select([self.master], [], [], min(seconds, 0.2))
        if not ready:
            return self.process.poll() is None
        piece = os.read(self.master, 65536)
        self.raw += piece
        self._stream.feed(piece)
        return True

    def end(self) -> int:
        """Wait for the command's end; return its exit code."""
        give_up = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < give_up, f"it does not end:\n{self.text()}"
            self._pump(0.2)
        while select.select([self.master], [], [], 0)[0]:
            self._pump(0)
        return self.process.returncode

    def close(self) -> None:
        """Kill what still runs, and close both ends."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)
