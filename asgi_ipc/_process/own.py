"""What is this process's own: asked before anything is done with what it may have inherited.

A child that was forked, by whatever means, finds the objects, locks and descriptors of its parent
and must touch none of them. Python's hooks tell only of ``os.fork``; a server written in C calls
``fork`` behind its back. So every process has a number, which lies in a page that the kernel
empties in each child (``MADV_WIPEONFORK``, Linux 4.14): ``here[0]``. Whatever belongs to a process
remembers the number, and one look (20 ns) tells whether it is that process that has it in hands.

A descriptor is a number as well, and may have come to mean another file since: a daemoniser closes
every descriptor and opens a log. So a number is compared with what it once meant before it is
closed, and what is kept for long lies far from where the next ``open`` lands.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from .mutex import new_mutex

if TYPE_CHECKING:
    import socket

__all__ = [
    "NOBODY",
    "Identity",
    "close_if_same",
    "close_socket_if_same",
    "here",
    "identity_of",
    "is_trusted",
    "keep_off_streams",
    "letting_go",
    "map_file",
    "set_aside",
    "this_process",
]

NOBODY = -1
"""The number of no process: what is closed belongs to it."""

Identity = tuple[int, int]
"""Device and inode: which file a descriptor means, whatever its number."""

_MADV_WIPEONFORK = 18  # from linux/mman.h; `mmap` does not name it
# Below a soft limit of 1024, the usual one, and above what `select` and most daemonisers reach.
# The smaller ones are for smaller limits; the last is whatever there is.
_FLOORS = (900, 200, 48, 12, 3)

_STREAMS = (0, 1, 2)  # stdin, stdout, stderr
_MOST_DESCRIPTORS = 1 << 20
_END_OF_ALL_FILES = (1 << 63) - 1

_numbers = itertools.count(1)  # a child goes on from here: no number of an ancestor comes again
_letting_go: dict[int, Any] = {}


class _Pid:
    """Stands in for the page where the kernel cannot empty it (gVisor, say): 200 ns a look."""

    def __getitem__(self, _: int) -> int:
        return os.getpid()


def _wiped_page() -> memoryview | None:
    """Return a page that reads 0 in every child, ``None`` where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        return None  # EINVAL: older than 4.14, or not quite Linux
    return memoryview(page).cast("Q")


_page = _wiped_page()
here: memoryview | _Pid = _Pid() if _page is None else _page
"""``here[0]`` is the number of this process; 0 in a child that has not asked for its own yet."""


def this_process() -> int:
    """Return the number of this process, which none of its ancestors has had."""
    if _page is not None:
        fresh = next(_numbers)
        if not _page[0]:
            _page[0] = fresh  # no call since the look above: no other thread has run in between
    return here[0]


def letting_go() -> Any:
    """Return this process's lock around the letting go of what it has inherited.

    Made in this process: an inherited lock may be held by a thread that was not inherited.
    """
    return _letting_go.setdefault(this_process(), new_mutex())


def identity_of(fd: int) -> Identity | None:
    """Return which file a descriptor means, ``None`` if it is closed."""
    try:
        info = os.fstat(fd)
    except OSError:
        return None  # EBADF
    return info.st_dev, info.st_ino


def is_trusted(info: os.stat_result, mode: int) -> bool:
    """Whether a site of this mode may use a file: none that a stranger has put there.

    It must be this user's or root's. One of another user is good for a shared mode only, if its
    group is one of ours and not everybody may write there. Root is no exception.
    """
    if info.st_uid in (os.geteuid(), 0):
        return True
    if not mode & 0o077 or info.st_mode & stat.S_IWOTH:
        return False
    return info.st_gid in (os.getegid(), *os.getgroups())


def keep_off_streams() -> None:
    """Have none of the numbers 0 to 2 free: called before anything is opened here.

    Of a process that was started with stdout or stderr closed the next descriptor would be 1 or 2,
    and a traceback would be written into it. They mean ``/dev/null`` from then on, for ever: given
    back, they would be free for what another thread opens here. ``exec`` closes them.

    Raises:
        OSError: there is no descriptor left (``EMFILE``), or no ``/dev/null``.
    """
    try:
        for number in _STREAMS:
            fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) in _STREAMS:
            pass
        os.close(fd)


def set_aside(fd: int) -> int:
    """Exchange a descriptor for one of a high number, so that losing it is noticed.

    Once somebody has closed it, the number stays free: using it is EBADF, and not another file.
    The one given is closed, whatever happens.

    Raises:
        OSError: there is no descriptor left (``EMFILE``).
    """
    try:
        for floor in _FLOORS[:-1]:
            try:
                return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
            except OSError:
                pass  # EINVAL: the limit is lower; EMFILE: nothing is free above the floor
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FLOORS[-1])
    finally:
        os.close(fd)


def close_if_same(fd: int, identity: Identity | None) -> None:
    """Close a descriptor, unless it means another file by now or is closed."""
    if identity is not None and identity_of(fd) == identity:
        os.close(fd)


def close_socket_if_same(sock: socket.socket, identity: Identity | None) -> None:
    """Do the same for a socket, which would otherwise close its number when it goes."""
    if identity is not None and identity_of(sock.fileno()) == identity:
        sock.close()
    else:
        sock.detach()


def map_file(fd: int, size_bytes: int) -> tuple[mmap.mmap, int | None]:
    """Map a file for reading and writing, and say which descriptor goes when the mapping goes.

    Up to Python 3.12 an mmap keeps a duplicate of the descriptor, of the lowest number that is
    free, and closes that number in the end, whatever it means by then. ``None``: there is none;
    -1: it was not found, as another thread closes and moves things.

    Raises:
        OSError: no address space (``ENOMEM``), or no descriptor left (``EMFILE``).
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size_bytes, trackfd=False), None
    keep_off_streams()
    return mmap.mmap(fd, size_bytes), _duplicate_of(fd)


def _duplicate_of(fd: int) -> int:
    """Return the other descriptor of an open file that has two: they share its position.

    -1: it is not found.
    """
    position = int.from_bytes(os.urandom(6), "little")
    os.lseek(fd, position, os.SEEK_SET)
    try:
        for number in range(_MOST_DESCRIPTORS):
            try:
                if number != fd and os.lseek(number, 0, os.SEEK_CUR) == position:
                    return number
            except OSError:
                pass  # ESPIPE: it has no position; EBADF: it is closed
    finally:
        os.lseek(fd, _END_OF_ALL_FILES, os.SEEK_SET)  # who writes there by mistake gets EFBIG
    return -1
