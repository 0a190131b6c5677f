"""Processes that kill themselves at the n-th thing they do to shared memory.

A *step* is one store of a word, one copied slice, one half of one, one ring, one system
call on the lock or on the memory behind a segment. ``in_child`` forks; ``arm`` makes the
child count its steps, and die at one of them. What the parent must know afterwards (how
many steps there were, who was rung) goes into a ``Ledger``, which survives the SIGKILL.
"""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from asgi_ipc._process.shm import shm_open
from asgi_ipc._shm import layout as L
from asgi_ipc._shm import segment as segment_module
from asgi_ipc._shm.segment import Segment

STEPS = (
    "before the lock",
    "with the lock",
    "before the unlock",
    "unlocked",
    "word",
    "LOG_N",
    "slice",
    "half a slice",
    "log slice",
    "half a log slice",
    "payload",
    "half a payload",
    "ring",
    "growth",
    "grown",
)
_NUMBER = {name: number for number, name in enumerate(STEPS)}

_SIZE_BYTES = 1 << 16
_COUNT, _LAST, _RINGS, _FIRST_RING, _LAST_RING = 0, 1, 2, 4, 4000
_NOTE = 1 << 15  # byte where a note begins


class Ledger:
    """A few numbers in memory that parent and child share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE_BYTES)
        self._words = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        """Give the memory back."""
        self._words.release()
        self._memory.close()

    def clear(self) -> None:
        """Begin anew."""
        self._words[_COUNT] = self._words[_RINGS] = 0
        self._memory[_NOTE : _NOTE + 8] = bytes(8)

    def count(self, step: str) -> int:
        """Count a step, and return how many that makes."""
        self._words[_LAST] = _NUMBER[step]
        self._words[_COUNT] += 1
        return self._words[_COUNT]

    def ring(self, slot: int, alive: bool) -> None:
        """Write down that a slot was rung, and whether anybody heard it."""
        number = self._words[_RINGS]
        assert _FIRST_RING + number < _LAST_RING
        self._words[_FIRST_RING + number] = slot << 1 | alive
        self._words[_RINGS] = number + 1

    def note(self, text: str) -> None:
        """Leave a last word."""
        data = text.encode()[-8000:]
        self._memory[_NOTE : _NOTE + 8 + len(data)] = len(data).to_bytes(8, "little") + data

    @property
    def steps(self) -> int:
        """Return how many steps were counted, the last one perhaps not done."""
        return self._words[_COUNT]

    @property
    def last_step(self) -> str:
        """Return what kind of step the last one was."""
        return STEPS[self._words[_LAST]]

    @property
    def rings(self) -> list[tuple[int, bool]]:
        """Return who was rung, and whether anybody heard it."""
        entries = self._words[_FIRST_RING : _FIRST_RING + self._words[_RINGS]].tolist()
        return [(entry >> 1, bool(entry & 1)) for entry in entries]

    @property
    def last_word(self) -> str:
        """Return what the child had to say."""
        length = int.from_bytes(self._memory[_NOTE : _NOTE + 8], "little")
        return self._memory[_NOTE + 8 : _NOTE + 8 + length].decode()


class Fuse:
    """Counts steps, and ends the process at one of them: just before it is done."""

    def __init__(self, ledger: Ledger, kill_at: int) -> None:
        self._ledger = ledger
        self._kill_at = kill_at

    def step(self, name: str, do_half: Callable[[], object] | None = None) -> None:
        """Count a step that is about to be done, or die instead: after half of it, perhaps."""
        if self._ledger.count(name) == self._kill_at:
            if do_half is not None:
                do_half()
            os.kill(os.getpid(), signal.SIGKILL)


class _Memory(mmap.mmap):
    """A segment's bytes; a subclass, because ``struct`` reads them through the buffer."""

    fuse: Fuse

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, slice):
            self.fuse.step("payload")
        else:
            half = len(value) // 2
            start = key.start
            log = 8 * L.LOG <= start < 8 * L.SLOTS
            self.fuse.step("log slice" if log else "payload")
            if half:
                self.fuse.step(
                    "half a log slice" if log else "half a payload",
                    lambda: mmap.mmap.__setitem__(
                        self, slice(start, start + half), bytes(value[:half])
                    ),
                )
        super().__setitem__(key, value)


class _Words:
    """A segment's words."""

    def __init__(self, words: memoryview, fuse: Fuse) -> None:
        self._words = words
        self._fuse = fuse

    def __getitem__(self, key: Any) -> Any:
        return self._words[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, slice):
            self._fuse.step("LOG_N" if key == L.LOG_N else "word")
        else:
            half = (key.stop - key.start) // 2
            log = L.LOG <= key.start < L.SLOTS
            self._fuse.step("log slice" if log else "slice")
            if half:
                self._fuse.step(
                    "half a log slice" if log else "half a slice",
                    lambda: self._words.__setitem__(
                        slice(key.start, key.start + half), value[:half]
                    ),
                )
        self._words[key] = value

    def __len__(self) -> int:
        return len(self._words)


def arm(segments: Iterable[Segment], fuse: Fuse) -> None:
    """Let every step on these segments count. For a child that ends soon: nothing is undone."""
    assert isinstance(segment_module._flock, CountedLock)
    segment_module._flock.fuse = fuse
    for segment in segments:
        arm_memory(segment, fuse)
        _arm_growth(segment, fuse)


def arm_memory(segment: Segment, fuse: Fuse) -> None:
    """Let every store count."""
    fd = shm_open(segment.name)
    memory = _Memory(fd, segment.size_bytes)
    os.close(fd)
    memory.fuse = fuse
    words = memoryview(memory)[: segment.size_bytes & ~7].cast("Q")
    segment.memory = memory
    segment.words = _Words(words, fuse)


def _arm_growth(segment: Segment, fuse: Fuse) -> None:
    back = segment.back

    def counted_back(first_word: int, end_word: int) -> None:
        fuse.step("growth")
        back(first_word, end_word)
        fuse.step("grown")

    segment.back = counted_back  # type: ignore[method-assign]


class CountedLock:
    """Stands in for ``flock``: counts once it has a fuse."""

    def __init__(self) -> None:
        self.fuse: Fuse | None = None

    def __call__(self, fd: int, operation: int) -> None:
        """Do what ``flock`` does."""
        unlocking = operation == fcntl.LOCK_UN
        if self.fuse is not None:
            self.fuse.step("before the unlock" if unlocking else "before the lock")
        fcntl.flock(fd, operation)
        if self.fuse is not None:
            self.fuse.step("unlocked" if unlocking else "with the lock")


def replace_everywhere(old: object, new: object) -> list[str]:
    """Replace an object under every name of every module of the package; say in which."""
    places = []
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("asgi_ipc."):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
                    places.append(module_name)
    return places


def in_child(action: Callable[[], object], ledger: Ledger) -> bool:
    """Run an action in a forked child; whether it was killed before it came to its end.

    Raises:
        AssertionError: the action raised.
    """
    pid = os.fork()
    if not pid:
        try:
            gc.disable()  # a child lives for milliseconds: do not touch what it shares
            action()
            os._exit(0)
        except BaseException:
            ledger.note(traceback.format_exc())
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, ledger.last_word
    return False
