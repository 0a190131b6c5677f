"""Events that come in bursts: logged at once, then at most once in a while, counted."""

from __future__ import annotations

import time

__all__ = ["Throttle"]

EVERY_S = 10.0


class Throttle:
    """Says how many events a log line is to stand for. Of several threads one tells it."""

    def __init__(self) -> None:
        self._due_at = 0.0
        self._untold = 0

    def add(self, count: int = 1) -> int:
        """Count events; return how many to tell of now, 0 if it is too early."""
        self._untold += count
        now = time.monotonic()
        if now < self._due_at:
            return 0
        self._due_at = now + EVERY_S
        told, self._untold = self._untold, 0
        return told
