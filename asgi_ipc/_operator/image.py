"""A segment as an onlooker sees it: attached read-only, locked for a moment at a time.

* Never creates, never writes: the memory is mapped for reading, the file is opened for
  reading. What a killed process left half done is finished in a private copy only.
* Never waits for a lock that will not be given back: a stopped holder is an error at once,
  a busy one after ``patience`` seconds.
* Lets others in: after a hold that they may have waited for it leaves the lock alone for 2 ms.
* Touches only memory that is backed: the mapping ends where the heap ends.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .._process.mutex import new_mutex
from .._process.own import identity_of, this_process
from .._shm import layout as L
from .._shm.segment import PICKLE_2, Segment, damaged, left_by_original
from .._wake.bell import bells_directory
from ..exceptions import (
    SegmentError,
    SegmentMismatch,
    SegmentPermission,
    StoreLocked,
)
from . import procfs

__all__ = ["Copy", "Image", "LockHeld", "NoSite", "segment_name"]

P = ParamSpec("P")
R = TypeVar("R")

_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_YIELDS = 30  # a holder is usually done within a few µs
_SUSPICION_S = 0.01  # a lock held for longer makes us ask whether its holder is stopped
_SHORT_S = 0.0002  # a hold that nobody need recover from
_REST_S = 0.002  # whoever waits meanwhile sleeps up to 1 ms between two attempts: let them in
_KIND_NAMES = {L.KIND_MESSAGES: "messages", L.KIND_GROUPS: "groups"}


class NoSite(SegmentError):
    """There is no segment of that name: no process of the site has started yet."""


class LockHeld(StoreLocked):
    """The lock of a segment is held by a stopped process, or was for ``patience`` seconds.

    Attributes:
        segment: the segment's name.
        holder: who it is, as far as it can be told.
    """

    def __init__(self, segment: str, holder: procfs.Holder, patience: float) -> None:
        who = "an unknown process" if holder.pid is None else f"process {holder.pid}"
        if holder.command:
            who += f" ({holder.command})"
        if holder.frozen is not None:
            text = (
                f"segment {segment} is locked by {who}, whose control group is frozen (docker "
                f"pause?): thaw it ({holder.frozen}); a kill would wait for that as well"
            )
        elif holder.is_stopped:
            since = "" if holder.idle_s is None else f" for {holder.idle_s:.1f} s"
            text = (
                f"segment {segment} is locked by {who}, which has been stopped{since} (state "
                f"{holder.state}): continue it (kill -CONT {holder.pid}) or kill it; its lock is "
                "freed at once and nothing is lost"
            )
        else:
            text = (
                f"segment {segment} has been locked by {who} for more than {patience:g} s: try "
                "again, or with more patience"
            )
        super().__init__(text, holder_pid=holder.pid)
        self.segment = segment
        self.holder = holder


def segment_name(prefix: str, kind: int) -> str:
    """Return the POSIX name of a site's segment."""
    return f"/{prefix}-{_KIND_NAMES[kind]}"


class Copy(Segment):
    """A segment in private memory, as it was at one moment; its log has been replayed.

    Attributes:
        pending: entries of the log that a killed process had committed and nobody replayed.
    """

    def __init__(self, name: str, kind: int, memory: bytearray) -> None:
        self.name = name
        self.kind = kind
        self.guard = new_mutex()
        self.lock_fd = -1
        self.memory = memory
        self.words = memoryview(memory).cast("Q")
        self.size_bytes = self.words[L.SIZE_WORD]
        self.heap_start = L.heap_start(self.size_bytes)
        self.heap_limit = (self.size_bytes // 8 - L.GRANULE_WORDS) & -L.GRANULE_WORDS
        self.backed_end = 0
        self.epoch = self.words[L.EPOCH]
        self.pending = self.words[L.LOG_N] & (L.LOG_RESET - 1)
        if self.words[L.LOG_N]:
            self._replay()


class Image(Segment):
    """See the module docstring. Not for several threads.

    Attributes:
        words, memory: what ``transact``'s operation may read.
        pending: entries of a killed process's log, as of the latest hold of the lock.
        longest_hold_s: the longest that ``transact`` has held the lock.
    """

    def __init__(self, name: str, kind: int, *, patience: float) -> None:
        """Attach.

        Args:
            patience: seconds to wait for a lock whose holder is not stopped.

        Raises:
            NoSite: there is no such segment.
            SegmentPermission: it may not be read.
            SegmentMismatch: another layout version or kind, or not ours at all.
            SegmentCorrupt: its header contradicts itself.
        """
        self.name = name
        self.kind = kind
        self.patience = patience
        self.guard = new_mutex()
        self.longest_hold_s = 0.0
        self._rest_until = 0.0
        self.pending = 0
        self.backed_end = 0
        self._mapped_bytes = 0
        self._repaired: Copy | None = None
        fd = _open(name)
        self._own_lock(fd, identity_of(fd) or self._identity)
        self.attached_by = this_process()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """Look at the header, which is written once: no lock is needed."""
        info = os.fstat(self.lock_fd)
        head = os.pread(self.lock_fd, 8 * (L.KIND_WORD + 1), 0)
        magic, version, ready, size, kind = struct.unpack("<5Q", head.ljust(40, b"\0"))
        if magic & 0xFFFF == PICKLE_2:
            raise SegmentMismatch(left_by_original(self.name))
        if magic not in (0, L.MAGIC):
            raise SegmentMismatch(
                f"{self.name} exists but is not a segment of this asgi_ipc (magic {magic:#x}): "
                "choose another prefix or remove it"
            )
        if ready != L.READY_MARK:
            raise NoSite(
                f"segment {self.name} is not ready yet: a process is just creating it, or died "
                "at that; the next process of the site that starts finishes it"
            )
        if version != L.LAYOUT_VERSION:
            raise SegmentMismatch(
                f"segment {self.name} has layout version {version}, and this asgi_ipc reads "
                f"{L.LAYOUT_VERSION}: use the asgi-ipc command of the site's own environment"
            )
        if size != info.st_size or size < L.MIN_SEGMENT_BYTES or kind != self.kind:
            what = f"it has {info.st_size} bytes, kind {kind}, and says {size} bytes"
            raise damaged(self.name, what)
        self.size_bytes = size
        self.heap_start = L.heap_start(size)
        self.heap_limit = (size // 8 - L.GRANULE_WORDS) & -L.GRANULE_WORDS
        self._map(self.lock_fd, 8 * (self.heap_start + L.GRANULE_WORDS))

    def _map(self, fd: int, size: int) -> None:
        """Map what is backed; a mapping beyond could be a SIGBUS on a full filesystem."""
        self._mapped_bytes = size
        self.memory = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        self.words = memoryview(self.memory).cast("Q")

    def transact(self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``operation`` with the lock held, on memory in which the log is replayed.

        It must only read, and be quick: everybody else waits meanwhile.

        Raises:
            LockHeld: the lock could not be had.
            SegmentCorrupt: the operation met numbers that cannot be.
        """
        self._take_lock()
        started = time.perf_counter()
        try:
            self._refresh()
            return operation(*args, **kwargs)
        except (IndexError, OverflowError, UnicodeDecodeError, struct.error) as exc:
            raise damaged(self.name, f"{type(exc).__name__}: {exc}") from exc
        finally:
            fcntl.flock(self.lock_fd, fcntl.LOCK_UN)
            ended = time.perf_counter()
            self.longest_hold_s = max(self.longest_hold_s, ended - started)
            if ended - started > _SHORT_S:
                self._rest_until = ended + _REST_S

    def _take_lock(self) -> None:
        rest_s = self._rest_until - time.perf_counter()
        if rest_s > 0:
            time.sleep(rest_s)
        for _ in range(_YIELDS):
            try:
                return fcntl.flock(self.lock_fd, _EXCLUSIVE)
            except BlockingIOError:
                os.sched_yield()
        started = time.monotonic()
        pause = 50e-6
        while True:
            try:
                return fcntl.flock(self.lock_fd, _EXCLUSIVE)
            except BlockingIOError:
                waited = time.monotonic() - started
            if waited > min(_SUSPICION_S, self.patience):
                holder = procfs.lock_holder(self.lock_fd)
                if waited > self.patience or (holder is not None and holder.is_stopped):
                    raise LockHeld(self.name, holder or procfs.UNKNOWN, self.patience)
            time.sleep(pause)
            pause = min(2 * pause, 0.002)

    def _refresh(self) -> None:
        """See to it that ``words`` and ``memory`` are what the next locker would see."""
        if self._repaired is not None:
            self._map(self.lock_fd, self._mapped_bytes)
            self._repaired = None
        end_bytes = 8 * (self.heap_end() + L.GRANULE_WORDS)
        if end_bytes > self._mapped_bytes:
            self._map(self.lock_fd, end_bytes)
        self.pending = self.words[L.LOG_N] & (L.LOG_RESET - 1)
        if self.words[L.LOG_N]:
            # Nobody who is alive waits for this lock, or it would be replayed by now.
            self._repaired = Copy(self.name, self.kind, bytearray(self.memory))
            self.words, self.memory = self._repaired.words, self._repaired.memory
        self.epoch = self.words[L.EPOCH]

    def copy(self) -> Copy:
        """Return a consistent copy of all that is backed.

        The lock is held for one copy of the bytes: measured 9 ms for 100 MiB, because both
        sides were touched before.

        Raises:
            LockHeld: the lock could not be had.
        """
        buffer = bytearray(self.transact(lambda: self._mapped_bytes))
        self._copy_to(buffer)
        self.transact(self._copy_to, buffer)
        return Copy(self.name, self.kind, buffer)

    def _copy_to(self, buffer: bytearray) -> None:
        if len(buffer) < len(self.memory):
            buffer.extend(bytes(len(self.memory) - len(buffer)))
        memoryview(buffer)[: len(self.memory)] = memoryview(self.memory)

    def filesystem_bytes(self) -> int:
        """Return what is free of the filesystem that it is on."""
        room = os.fstatvfs(self.lock_fd)
        return room.f_bavail * room.f_frsize

    def inode(self) -> int:
        """Return the number of the file, by which ``/proc`` knows it."""
        return os.fstat(self.lock_fd).st_ino


def _open(name: str) -> int:
    try:
        fd = _open_file(name)
    except FileNotFoundError as exc:
        raise NoSite(
            f"there is no segment {name}: no process of the site has started yet, or the prefix is "
            "another one"
        ) from exc
    except PermissionError as exc:
        raise SegmentPermission(
            f"segment {name} belongs to another user and may not be read: run this as the user "
            "of the site"
        ) from exc
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _no_file(name) from exc  # a symlink, a socket
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(name)
    return fd


def _open_file(name: str) -> int:
    """Open what has the name, for reading: never through a symlink, nor waiting at a FIFO."""
    path = os.path.dirname(bells_directory(name[1:])) + name
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _no_file(name: str) -> SegmentMismatch:
    return SegmentMismatch(
        f"something that is no file stands in the place of segment {name} (a symlink, a directory, "
        "a FIFO): find out who made it, and remove it, or choose another prefix"
    )
