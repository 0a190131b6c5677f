"""Whether anybody listens on a socket, found without ringing.

A connection of another type than the socket's is refused with ``EPROTOTYPE`` when its owner
lives, with ``ECONNREFUSED`` when it does not, and the owner notices neither. That works
across PID and network namespaces, where ``/proc`` does not.
"""

from __future__ import annotations

import errno
import socket

__all__ = ["is_alive"]


def is_alive(path: str) -> bool | None:
    """Whether a process listens on a socket; ``None`` if it cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as exc:
            if exc.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return False
            return True if exc.errno == errno.EPROTOTYPE else None
    return None  # a socket that is none of ours
