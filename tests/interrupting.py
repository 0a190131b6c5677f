"""Exceptions at every place where a signal handler could raise one.

Python runs handlers between bytecodes, on the main thread, when a function begins, when a call
returns, and when a loop goes round. A trace function that raises at the n-th line, call or return
of chosen modules is the same and a little more, and is always the same for the same n.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any, Self

__all__ = ["Interrupt", "interrupted", "only_what_is_new"]


class Interrupt(BaseException):
    """What the handler raises."""


class interrupted:  # noqa: N801 - reads as a word of the `with` it is for
    """Raise ``Interrupt`` at one place of some modules, for the thread that enters.

    Attributes:
        where: the place it was raised at; empty if there were not so many.
    """

    def __init__(self, place: int, modules: Iterable[ModuleType]) -> None:
        self.where = ""
        self._left = place
        self._files = {module.__file__ for module in modules}
        self._lines: dict[FrameType, int] = {}  # the latest of each frame

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        sys.settrace(self._before)
        self._lines.clear()
        return kind is Interrupt

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if self.where or frame.f_code.co_filename not in self._files:
            return None
        if event == "exception" or (event != "line" and _may_suspend(frame.f_code)):
            return self._trace
        if event == "line":
            before = self._lines.get(frame)
            self._lines[frame] = frame.f_lineno
            if before not in _checked_lines(frame.f_code) or _is_whole(frame):
                return self._trace
        self._left -= 1
        if self._left < 0:
            self.where = f"{event} {_path(frame)}"
            raise Interrupt(self.where)
        return self._trace


@contextlib.contextmanager
def only_what_is_new() -> Iterator[None]:
    """Spare the garbage collector all that is there now, so that it takes no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _path(frame: FrameType) -> str:
    """Name a place and the four frames it was called from."""
    places: list[str] = []
    caller: FrameType | None = frame
    while caller is not None and len(places) < 5:
        places.append(f"{caller.f_code.co_qualname}:{caller.f_lineno}")
        caller = caller.f_back
    return " < ".join(places)


def _may_suspend(code: CodeType) -> bool:
    """Whether a call or a return may be that of a coroutine that goes on, or will.

    What is raised as it goes on does not run its ``finally``, as no handler could do.
    """
    return bool(
        code.co_flags & (inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR)
    )


@functools.cache
def _checked_lines(code: CodeType) -> set[int | None]:
    """Return the lines after which a handler may run: they make a call, or a loop goes round.

    ``None``: nothing of the function has run yet.
    """
    lines: set[int | None] = {None}
    for instruction in dis.get_instructions(code):
        position = instruction.positions
        if position is not None and any(part in instruction.opname for part in _CHECKS):
            lines.add(position.lineno)
    return lines


_CHECKS = ("CALL", "JUMP_BACKWARD", "SEND", "YIELD", "WITH")


def _is_whole(frame: FrameType) -> bool:
    """Whether no handler can run before a line: it ends a ``with`` block, or gives back.

    ``__exit__`` and what ``finally`` begins with are called with no check for signals before it.
    """
    number = frame.f_lineno
    line = linecache.getline(frame.f_code.co_filename, number)
    if line.strip() == "try:":
        line = linecache.getline(frame.f_code.co_filename, number + 1)
    return line.lstrip().startswith("with ") or any(call in line for call in _GIVES_BACK)


# What a ``finally`` begins with.
_GIVES_BACK = (
    "guard.release()",
    "_UNLOCK)",
    "SIG_SETMASK, mask.before)",
    "SIG_BLOCK, HELD)",
    "_is_running = False",
    "driving.is_driving = before",
    "driving.call_out = before",
)
