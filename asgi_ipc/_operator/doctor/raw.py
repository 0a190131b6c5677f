"""One segment as a file: its owner, its mode, its header, its slots. Nobody attaches to it.

Works on segments that cannot be attached to: damaged, half made, another version's, locked
for ever. Read with ``pread``, which takes no memory for a hole and is short, not a SIGBUS, at
the end of a file that was cut.
"""

from __future__ import annotations

import os
import stat
import struct

from ..._shm import layout as L
from ..._shm.segment import PICKLE_2
from ...aio import DEFAULT_GROUP_MEMORY, DEFAULT_MESSAGE_MEMORY

__all__ = ["Raw"]

_DEFAULT_BYTES = {
    L.KIND_MESSAGES: DEFAULT_MESSAGE_MEMORY,
    L.KIND_GROUPS: DEFAULT_GROUP_MEMORY,
}


class Raw:
    """A segment's file, if it is there and may be read.

    Attributes:
        info: of the file, ``None`` when there is none.
        fd: -1 when it may not be read, or is no file.
        asked_bytes: its size as the site is configured; ``None``: nobody said.
        fd_was_refused: it is a file, and may not be read.
        header: its first words; empty when it is too short to have any.
    """

    def __init__(
        self, directory: str, name: str, kind: int, asked_bytes: int | None = None
    ) -> None:
        self.name = name
        self.path = os.path.join(directory, name)
        self.kind = kind
        self.asked_bytes = asked_bytes
        self.fd = -1
        self.fd_was_refused = False
        self.header: tuple[int, ...] = ()
        self.info: os.stat_result | None = None
        try:
            self.info = os.lstat(self.path)
        except OSError:
            return  # ENOENT, or a directory that may not be searched: nothing to look at
        if not stat.S_ISREG(self.info.st_mode):
            return
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.fd_was_refused = True
            return  # EACCES: said as such by whoever finds `info` without `fd`
        self.info = os.fstat(self.fd)
        self.read_header()

    def read_header(self) -> None:
        """Read the first words anew."""
        data = os.pread(self.fd, 8 * L.LOG, 0)
        self.header = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & ~7])

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # -- what it is ----------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.info.st_size if self.info else 0

    @property
    def full_bytes(self) -> int:
        """What it may grow to; of one that is not there what it would be made with."""
        return self.size_bytes or self.asked_bytes or _DEFAULT_BYTES[self.kind]

    @property
    def backed_bytes(self) -> int:
        """How much of it has memory behind it."""
        return self.info.st_blocks * 512 if self.info else 0

    def word(self, index: int) -> int:
        """Return a word of the header; 0 beyond the end of a short file."""
        return self.header[index] if index < len(self.header) else 0

    @property
    def is_original(self) -> bool:
        """Whether asgi_ipc 1.x made it."""
        return self.word(L.MAGIC_WORD) & 0xFFFF == PICKLE_2

    @property
    def is_ours(self) -> bool:
        """Whether it bears our mark."""
        return self.word(L.MAGIC_WORD) == L.MAGIC

    @property
    def is_sound(self) -> bool:
        """Whether its header lets the rest be read."""
        return (
            self.is_ours
            and self.word(L.READY_WORD) == L.READY_MARK
            and self.word(L.VERSION_WORD) == L.LAYOUT_VERSION
            and self.word(L.KIND_WORD) == self.kind
            and not self.contradictions()
        )

    def contradictions(self) -> list[str]:
        """Return what in the header of a finished segment cannot be."""
        size = self.size_bytes
        if self.word(L.SIZE_WORD) != size or size < L.MIN_SEGMENT_BYTES:
            return [f"the file has {size} bytes, and its header says {self.word(L.SIZE_WORD)}"]
        found = []
        end = self.word(L.HEAP_END)
        if not self.heap_start <= end <= self._heap_limit or end % L.GRANULE_WORDS:
            found.append(f"the heap ends at word {end}")
        if self.word(L.LOG_N) & (L.LOG_RESET - 1) > L.LOG_CAPACITY:
            found.append(f"the log claims {self.word(L.LOG_N)} entries")
        return found

    @property
    def heap_start(self) -> int:
        """First word of the heap."""
        return L.heap_start(self.size_bytes)

    @property
    def _heap_limit(self) -> int:
        return (self.size_bytes // 8 - L.GRANULE_WORDS) & -L.GRANULE_WORDS

    def slots(self) -> list[tuple[int, int, int]]:
        """Return ``(slot, process token, pid)`` of every slot that is taken.

        Read without the lock, each word by itself: enough to ask who lives.
        """
        data = os.pread(self.fd, 8 * L.SLOT_COUNT * L.SLOT_WORDS, 8 * L.SLOTS)
        taken = []
        for slot in range(len(data) // (8 * L.SLOT_WORDS)):
            words = struct.unpack_from(f"<{L.SLOT_WORDS}Q", data, 8 * L.SLOT_WORDS * slot)
            if words[L.SLOT_TOKEN]:
                taken.append((slot, words[L.SLOT_PROCESS], words[L.SLOT_PID]))
        return taken
