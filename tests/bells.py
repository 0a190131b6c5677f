"""Whom a store rings, written down; and who is dead, as a test says."""

from __future__ import annotations

import itertools

from asgi_ipc._process.witness import Life

_processes = itertools.count(1 << 40)


class WrittenBells:
    """What a store needs of a ringer.

    Attributes:
        rings: slot and token of every ring.
        dead: processes that are proven dead.
        unknown: processes nobody can tell anything of.
        process: token of the one whose store it is.
    """

    def __init__(self) -> None:
        self.rings: list[tuple[int, int]] = []
        self.dead: set[int] = set()
        self.unknown: set[int] = set()
        self.process = next(_processes)

    def ring(self, slot: int, token: int, process: int) -> Life:
        """Write it down."""
        self.rings.append((slot, token))
        return self.ask(process)

    def token(self) -> int:
        """Return its process's."""
        return self.process

    def is_own(self, process: int) -> bool:
        """There is one."""
        return process == self.process

    def heard(self, slot: int, token: int, process: int) -> Life:
        """Say whether it lives."""
        return self.ask(process)

    def forget(self, slot: int, token: int) -> None:
        """There is nothing to tidy up."""

    def ask(self, process: int) -> Life:
        """Say whether it lives."""
        if process in self.unknown:
            return Life.UNKNOWN
        return Life.DEAD if process in self.dead else Life.ALIVE
