"""The kernel's word that something happened to files: inotify, which Python has not got.

``open_inotify`` may refuse at any time: another system, no ``ctypes``, no ``/proc``, or one of the
user's limits reached (``fs.inotify.max_user_instances`` is 128 by default). Whoever asks does
without then; it is no error.

What happened is never read, only that something did. So an overflow of the queue
(``IN_Q_OVERFLOW``) and the end of a watch (``IN_IGNORED``) are events like any other. The queue
does not grow where nobody reads it: the kernel merges an event into an equal one that was the last.

``ctypes`` is imported by the first call, not with the package: it takes 3 ms.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from .._process.own import close_if_same, identity_of, keep_off_streams

__all__ = ["IN_ATTRIB", "IN_CLOSE_WRITE", "IN_MOVE_SELF", "Inotify", "open_inotify"]
__all__ = [
    "IN_ATTRIB",
    "IN_CLOSE_WRITE",
    "IN_MOVE_SELF",
    "Inotify",
    "SharedInotify",
    "open_inotify",
]

logger = logging.getLogger("asgi_ipc")

IN_ATTRIB = 0x4  # the link count is one of the attributes
IN_CLOSE_WRITE = 0x8
IN_MOVE_SELF = 0x800
_READ_BYTES = 4096

_refusals = itertools.count()


class Inotify:
    """A descriptor that is readable when something has happened to a file."""

    def __init__(self, watches: Iterable[tuple[str, int]]) -> None:
        """Watch these paths, links followed, each for its mask of events.

        Raises:
            OSError, ImportError, AttributeError: not to be had here, or not now.
        """
        libc = _libc()
        keep_off_streams()
        self.fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _error("inotify_init1")
        self._identity = identity_of(self.fd)
        try:
            for path, mask in watches:
                if libc.inotify_add_watch(self.fd, os.fsencode(path), mask) < 0:
                    raise _error(path)
        except BaseException:
            os.close(self.fd)
            raise

    def drain(self) -> bool:
        """Take every event there is; whether there was any."""
        found = False
        try:
            while len(os.read(self.fd, _READ_BYTES)) > _READ_BYTES // 2:
                found = True
            return True
        except BlockingIOError:
            return found  # just emptied, or another loop was faster

    def close(self) -> None:
        """Close the descriptor. The kernel sleeps in it: 0.05 ms, up to 16 where there is load."""
        close_if_same(self.fd, self._identity)


class SharedInotify:
    """One for all loops of a process: a user may have 128 of them (``max_user_instances``).

    Every loop watches its descriptor, as any of them may be busy; whoever is first takes the event.
    The last one to give it back closes it.
    """

    def __init__(self, inotify: Inotify) -> None:
        self.fd = inotify.fd
        self.drain = inotify.drain
        self._open = [inotify]  # no lock, as a finaliser gives it back: each step is a whole one
        self._users: list[None] = []

    def take(self) -> bool:
        """Have one more user; False if it is closed already."""
        self._users.append(None)
        return bool(self._open)

    def give_back(self) -> None:
        """Have one less."""
        self._users.pop()
        while not self._users and self._open:
            try:
                self._open.pop().close()
            except IndexError:
                pass  # another thread was faster


def open_inotify(watches: Iterable[tuple[str, int]]) -> Inotify | None:
    """Watch these paths; ``None`` where that cannot be done."""
    try:
        return Inotify(watches)
    except (OSError, ImportError, AttributeError) as exc:
        if not next(_refusals):  # once in a process
            logger.debug(
                "no inotify here: a killed process is noticed by looking, every few seconds: %s",
                exc,
                extra={"event": "no-inotify"},
            )
        return None


@functools.cache
def _libc() -> Any:
    """Return the C library of this process.

    Raises:
        OSError, ImportError, AttributeError: it cannot be called, or has no inotify.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "no inotify on this system")
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
    return libc


def _error(what: str) -> OSError:
    import ctypes

    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)
