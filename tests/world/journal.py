"""What processes write down: one line for each fact, before and after each call.

A line is one ``os.write`` to a file that is opened for appending, so any number of threads
and forked children may write to it, and a kill leaves at most one call of each thread of
control without its end.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Fact", "Journal", "read_facts", "write_logs_to"]


class Fact(NamedTuple):
    """One line of a journal.

    Attributes:
        at_ns: ``time.monotonic_ns()``.
        who: the process, ``slot.life`` and for a forked child what follows its parent's.
        kind: ``do`` and ``end`` of a call, or what happened.
        call: number of the call within the process, 0 for what is no call.
        more: what belongs to the kind.
    """

    at_ns: int
    who: str
    kind: str
    call: int
    more: list[Any]


class Journal:
    """The journal of a process and of its forked children, each under its own name."""

    def __init__(self, path: Path, who: str, fd_floor: int = 3) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, fd_floor)
        os.close(fd)
        self.who = who
        self._numbers = itertools.count(1)

    def do(self, what: str, stream: int, *more: Any) -> int:
        """Write down that a call begins, and return its number."""
        number = next(self._numbers)
        self._write("do", number, (what, stream, *more))
        return number

    def end(self, call: int, outcome: str, *more: Any) -> None:
        """Write down how a call ended."""
        self._write("end", call, (outcome, *more))

    def say(self, kind: str, *more: Any) -> None:
        """Write down something that is no call."""
        self._write(kind, 0, more)

    def _write(self, kind: str, call: int, more: tuple[Any, ...]) -> None:
        fact = [time.monotonic_ns(), self.who, kind, call, more]
        os.write(self.fd, json.dumps(fact, default=repr).encode() + b"\n")


class _Log(logging.Handler):
    """Writes log lines down; without a lock, which a fork could leave taken."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def createLock(self) -> None:  # noqa: N802, the base class's name
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)  # from Python 3.13 on the base class cannot do without the lock
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self.journal.say("log", record.levelname, record.getMessage())


def write_logs_to(journal: Journal) -> None:
    """Have the log lines of the package written down."""
    logger = logging.getLogger("asgi_ipc")
    logger.addHandler(_Log(journal))
    logger.propagate = False


def read_facts(folder: Path) -> Iterator[Fact]:
    """Yield the facts of all journals; those of one file in the order of their writing."""
    for path in sorted(folder.glob("*.journal")):
        for line in path.read_bytes().splitlines():
            yield Fact(*json.loads(line))
