"""Finding or making the file of a segment; and what to say when that fails.

Every failure is a ``SegmentError`` that names the segment, the reason and the remedy.
"""

from __future__ import annotations

import errno
import os
import stat

from ..exceptions import SegmentError, SegmentMismatch, SegmentPermission, SharedMemoryFull
from .own import Identity, identity_of, keep_off_streams, set_aside
from .shm import shm_open

__all__ = ["cannot_use", "no_room", "open_again", "open_named"]

_ENLARGE = "free or enlarge the shared-memory filesystem (df /dev/shm; in Docker --shm-size)"
_REMEDIES = {
    errno.EFBIG: "that is beyond the limit for the size of a file that this process has: raise it "
    "(ulimit -f), or ask for less memory",
    errno.EMFILE: "this process has no descriptor left: raise its limit (ulimit -n) or close some",
    errno.ENFILE: "this machine has no descriptor left: raise fs.file-max, or close some",
    errno.ENOLCK: "the kernel has no room for another lock, or this filesystem has no locks",
    errno.ENOMEM: "there is no memory or address space left: raise the limits of this process "
    "(ulimit -v) or container, or ask for less memory",
}
_NO_FILE = {errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENXIO}  # a directory, link or socket


def open_named(name: str, mode: int, size_bytes: int) -> tuple[int, bool]:
    """Return a descriptor of the named segment, and whether it is newly made.

    Opened without O_CREAT first: with ``fs.protected_regular`` set, O_CREAT on another user's
    file is refused even to root.

    Raises:
        SegmentError, OSError: it can be neither opened nor made.
    """
    while True:
        keep_off_streams()
        fd = _open(name)
        if fd >= 0:
            return fd, False
        try:
            fd = shm_open(name, os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue  # another process was faster: attach to its segment
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise no_room(name, size_bytes, exc) from exc
        try:
            os.fchmod(fd, mode)  # whatever the umask was
        except BaseException:
            os.close(fd)
            raise
        return fd, True


def _open(name: str) -> int:
    """Return a descriptor of the file of that name, -1 if there is none."""
    try:
        fd = shm_open(name)
    except FileNotFoundError:
        return -1
    except PermissionError as exc:
        raise SegmentPermission(
            f"segment {name} belongs to another user and may not be opened: run all processes of "
            "one site as one user, or give each site its own prefix"
        ) from exc
    except OSError as exc:
        if exc.errno not in _NO_FILE:
            raise
        raise _no_file(name) from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(name)
    return fd


def _no_file(name: str) -> SegmentMismatch:
    return SegmentMismatch(
        f"something that is no file (a link, a pipe, a directory) stands in the place of segment "
        f"{name}: remove it or choose another prefix"
    )


def open_again(fd: int, name: str, identity: Identity) -> int:
    """Return an independent open file description of a segment, of a high number.

    Args:
        fd: a descriptor of it, -1 if there is none.
        identity: which file it must be.

    Returns:
        -1 if the name stands for another file by now, or for none.

    Raises:
        SegmentError, OSError: it may not be opened.
    """
    again = -1
    keep_off_streams()
    if identity_of(fd) == identity:
        try:
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            pass  # no /proc, or it may not be opened by this user: see what the name says
    if again < 0:
        again = _open(name)
    if again >= 0 and identity_of(again) != identity:
        os.close(again)
        return -1
    return again if again < 0 else set_aside(again)


def cannot_use(name: str, cause: OSError) -> SegmentError:
    """Return the error for a system call on a segment, or on what belongs to it, that failed."""
    remedy = _REMEDIES.get(cause.errno or 0, "see the system's documentation of that error")
    what = name if name.count("/") > 1 else f"segment {name}"
    return SegmentError(f"{what} cannot be used: {cause.strerror or cause}; {remedy}")


def no_room(name: str, size_bytes: int, cause: OSError) -> SharedMemoryFull:
    """Return the error for a segment that cannot be created."""
    return SharedMemoryFull(
        cause.errno or errno.ENOSPC,
        f"segment {name} of {size_bytes} bytes cannot be created: {cause.strerror or cause}; "
        + _REMEDIES.get(cause.errno or errno.ENOSPC, _ENLARGE),
    )
