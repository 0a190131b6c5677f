"""A page that all processes of a site share: what phase it is, and who has settled."""

from __future__ import annotations

import mmap

__all__ = ["END", "RUN", "SETTLE", "Board"]

RUN, SETTLE, END = 0, 1, 2


class Board:
    """Anonymous shared memory: inherited by every child, and no descriptor of anybody's."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def phase(self) -> int:
        """``RUN``; ``SETTLE``: nobody starts anything new, but reads on; ``END``: all end."""
        return self._page[0]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._page[0] = phase

    def settle(self, slot: int, life: int) -> None:
        """Say that the process of a slot does nothing but read any more."""
        self._page[1 + slot] = 1 + life % 255

    def has_settled(self, slot: int, life: int) -> bool:
        """Whether that process has said so."""
        return self._page[1 + slot] == 1 + life % 255
