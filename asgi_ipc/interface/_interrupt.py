"""Ending what a task waits for, from outside, as ``asyncio.timeout`` does when time is over."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["Interrupt"]


class Interrupt:
    """A block that others may end: what it awaits is cancelled, and the task goes on after it.

    A cancellation that comes from elsewhere goes through.

    Attributes:
        fired: whether it was ended.
    """

    __slots__ = ("_before", "_is_inside", "_task", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._is_inside = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        """Begin; on a task only."""
        self._task = asyncio.current_task()
        assert self._task is not None
        self._before = self._task.cancelling()
        self._is_inside = True
        return self

    def fire(self) -> None:
        """End the block, now if it is under way; idempotent, nothing once it is over."""
        if self._is_inside and not self.fired:
            self.fired = True
            assert self._task is not None
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Swallow the cancellation that was ours."""
        self._is_inside = False
        task, self._task = self._task, None
        if not self.fired:
            return False
        assert task is not None
        # Taken back even if the block ended otherwise first: it must not hit what comes next.
        return task.uncancel() <= self._before and kind is asyncio.CancelledError
