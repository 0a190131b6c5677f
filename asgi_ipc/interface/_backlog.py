"""Bytes on their way that somebody is not ready for: in memory, then in a temporary file.

One side puts, the other takes, in one event loop. The file has no name, so it goes with the
process; writing to it does not wait for a disk in the ordinary case, only for its cache.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from typing import IO, Self

__all__ = ["PIECE_BYTES", "Backlog"]

PIECE_BYTES = 1 << 16  # that somebody sends at a time; ten thousand clients may stand still
_FEED_BYTES = 1 << 18  # written to the file before others have their turn


class Backlog:
    """A queue of bytes; where one piece ends and the next begins is not kept.

    Attributes:
        size: bytes that wait.
    """

    __slots__ = (
        "_file",
        "_is_finished",
        "_memory",
        "_memory_limit",
        "_memory_size",
        "_read_at",
        "_taken",
        "_waiter",
        "_write_at",
        "size",
    )

    def __init__(self, memory_bytes: int) -> None:
        """Start empty.

        Args:
            memory_bytes: held in memory; what is more goes to the file until it was read.
        """
        self.size = 0
        self._memory: deque[bytes] = deque()
        self._memory_size = 0
        self._taken = 0  # of the first piece in memory
        self._memory_limit = memory_bytes
        self._file: IO[bytes] | None = None
        self._read_at = self._write_at = 0
        self._is_finished = False
        self._waiter: asyncio.Future[None] | None = None

    async def feed(self, data: bytes) -> None:
        """Add bytes of any number at the end, and let others run meanwhile.

        Raises:
            OSError: the temporary file cannot be written.
        """
        if len(data) <= _FEED_BYTES:
            self.put(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _FEED_BYTES):
            self.put(view[start : start + _FEED_BYTES])
            await asyncio.sleep(0)

    def put(self, data: bytes | memoryview) -> None:
        """Add bytes at the end.

        Raises:
            OSError: the temporary file cannot be written.
        """
        in_file = self._write_at > self._read_at
        if in_file or self._memory_size + len(data) > self._memory_limit:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._file.seek(self._write_at)
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
            self._write_at += len(data)
        else:
            self._memory.append(bytes(data))
            self._memory_size += len(data)
        self.size += len(data)
        self._wake()

    def take(self, at_most: int = PIECE_BYTES) -> bytes:
        """Remove bytes from the front; ``b""`` if there are none.

        Raises:
            OSError: the temporary file cannot be read.
        """
        if self._memory:
            first = self._memory[0]
            data = first[self._taken : self._taken + at_most]
            self._taken += len(data)
            if self._taken == len(first):
                self._memory.popleft()
                self._memory_size -= len(first)
                self._taken = 0
        elif self._write_at > self._read_at:
            assert self._file is not None
            self._file.seek(self._read_at)
            data = self._file.read(min(at_most, self._write_at - self._read_at))
            self._read_at += len(data)
            if self._read_at == self._write_at:
                self._file.truncate(0)
                self._read_at = self._write_at = 0
        else:
            return b""
        self.size -= len(data)
        self._wake()
        return data

    def take_exactly(self, count: int) -> bytes:
        """Remove ``count`` bytes from the front, or all if there are fewer."""
        parts = []
        while count and self.size:
            parts.append(self.take(count))
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Say that nothing more will be put."""
        self._is_finished = True
        self._wake()

    @property
    def is_finished(self) -> bool:
        """Whether nothing waits, and nothing more will."""
        return self._is_finished and not self.size

    async def changed(self) -> None:
        """Wait until something was put or taken, or it was finished. One side at a time."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            # The other side may wait already: it ran before this one, which it has woken.
            if self._waiter is waiter:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what waits."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._memory.clear()
        self.size = self._memory_size = self._taken = self._read_at = self._write_at = 0
