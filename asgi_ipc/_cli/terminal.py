"""A terminal taken over for a while, and given back as it was on every way out.

Keys come one by one and unechoed, the screen is the alternate one. ``wait`` returns when a
key was pressed, the window was resized, the process was stopped and continued (Ctrl-Z, fg),
or time is over. The signals Ctrl-C and Ctrl-Z still work.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live

__all__ = ["Terminal", "keys_in"]

_SEQUENCE = re.compile(r"\A\x1b[\[O][0-9;]*[A-Za-z~]?")
_NAMED = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[Z": "back tab",
    "\x1b": "escape",
    "\t": "tab",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    " ": "space",
}


class Terminal:
    """See the module docstring; to be used on the main thread, by ``with``."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._fd = sys.stdin.fileno()
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._live: Live | None = None
        self._must_stop = False

    def __enter__(self) -> Self:
        """Take over."""
        self._before = termios.tcgetattr(self._fd)
        self._wake_fd, self._bell_fd = os.pipe()
        for fd in (self._wake_fd, self._bell_fd):
            os.set_blocking(fd, False)
        self._old_bell = signal.set_wakeup_fd(self._bell_fd, warn_on_full_buffer=False)
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            self._handlers[number] = signal.signal(number, self._on_signal)
        try:
            self._take()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give back, whatever happened."""
        self._restore()

    def _restore(self) -> None:
        try:
            self._give()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_bell)
            os.close(self._wake_fd)
            os.close(self._bell_fd)

    def _take(self) -> None:
        tty.setcbreak(self._fd)
        self._live = Live(console=self.console, screen=True, auto_refresh=False)
        self._live.start()

    def _give(self) -> None:
        live, self._live = self._live, None
        try:
            if live is not None:
                live.stop()
        finally:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Note what to do; the bell wakes ``wait``, which does it."""
        if number == signal.SIGTSTP:
            self._must_stop = True

    def show(self, picture: RenderableType) -> None:
        """Put a picture on the screen; what does not fit is cut off."""
        if self._live is not None:
            self._live.update(picture, refresh=True)

    def wait(self, seconds: float) -> list[str]:
        """Return the keys that were pressed; empty when it is time to show something anew."""
        ready, _, _ = select.select([self._fd, self._wake_fd], [], [], max(0.0, seconds))
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)
        if self._must_stop:
            self._must_stop = False
            self._stop()
        if self._fd not in ready:
            return []
        typed = os.read(self._fd, 4096)
        if not typed:
            raise SystemExit(0)  # the terminal was closed
        return list(keys_in(typed.decode("utf-8", "ignore")))

    def _stop(self) -> None:
        """Give the terminal back, be stopped, and take it again when continued."""
        self._give()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._before = termios.tcgetattr(self._fd)
        self._take()


def keys_in(typed: str) -> Iterator[str]:
    """Yield what was typed, key by key: named keys by their names, others as characters."""
    while typed:
        longest = max((name for name in _NAMED if typed.startswith(name)), key=len, default="")
        if longest == "\x1b" and typed[1:2] in ("[", "O"):
            typed = _SEQUENCE.sub("", typed)  # a key that means nothing here
        elif longest:
            yield _NAMED[longest]
            typed = typed[len(longest) :]
        else:
            if typed[0].isprintable():
                yield typed[0]
            typed = typed[1:]
