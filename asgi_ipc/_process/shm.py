"""POSIX shared memory objects by name: through `posix_ipc`, or as the files that they are.

`posix_ipc` has no wheel for the newest Pythons, and turns the GIL of a free-threaded one back on.
There a segment is opened as a file of /dev/shm, which is all that the C library does: see
shm_open(3) and shm_overview(7). Both raise what the system says, as `OSError` with its number.
"""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["shm_open", "shm_unlink"]

try:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise ImportError
    import posix_ipc
except ImportError:
    posix_ipc = None

# As glibc's and musl's shm_open: no link is followed, and a pipe holds nobody up.
_AS_SHM_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = "/dev/shm"  # noqa: S108


def shm_open(name: str, flags: int = 0, mode: int = 0) -> int:
    """Return a descriptor of a shared memory object, for reading and writing.

    Args:
        name: ``/`` and a word.
        flags: ``0``, or ``os.O_CREAT | os.O_EXCL`` to make it.
        mode: of a new one.

    Raises:
        OSError: with its ``errno``; ``FileNotFoundError``, ``FileExistsError`` and
            ``PermissionError`` among them.
    """
    if posix_ipc is None:
        return os.open(_path(name), os.O_RDWR | flags | _AS_SHM_OPEN, mode)
    try:
        fd: int = posix_ipc.SharedMemory(name, flags, mode=mode).fd
    except posix_ipc.ExistentialError as exc:
        raise _error(errno.EEXIST if flags else errno.ENOENT, name) from exc
    except posix_ipc.PermissionsError as exc:
        raise _error(errno.EACCES, name) from exc
    except ValueError as exc:
        raise _error(errno.EINVAL, name) from exc
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise _error(errno.EMFILE, name) from exc  # EMFILE and ENFILE are said in words only
    return fd


def shm_unlink(name: str) -> None:
    """Remove the name of a shared memory object.

    Raises:
        OSError: with its ``errno``; ``FileNotFoundError`` among them.
    """
    if posix_ipc is None:
        return os.unlink(_path(name))
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError as exc:
        raise _error(errno.ENOENT, name) from exc
    except posix_ipc.PermissionsError as exc:
        raise _error(errno.EACCES, name) from exc


def _path(name: str) -> str:
    return f"{_DIRECTORY}/{name.removeprefix('/')}"


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
