"""The doorbell: how one process wakes an event loop of another.

A loop's *bell* is an eventfd (a pipe where there is none) that it watches for reading. An
eventfd has no name, so the loop also listens on a unix socket, its *door*. Whoever rings
for the first time connects to the door: **the connection is the first ring**, because it
makes the door readable. The owner accepts, answers with the bell's descriptor, and looks
at its queues as for any ring. From then on a ring is one 8-byte ``write``.

The connection stays open: its end-of-file means that the owner is dead.

* A ring is never lost: it is a pending connection or an unread counter, and the owner
  drains before it looks.
* Ringing never blocks: a bell that is full is already rung.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import time
import weakref
from collections.abc import Callable

from ._layout import ANCHOR
from ._own import Identity, close_if_same, close_socket_if_same, identity_of
from .exceptions import SegmentPermission

__all__ = [
    "Anchor",
    "Bell",
    "Door",
    "EventBell",
    "PipeBell",
    "Ringer",
    "bells_directory",
    "new_bell",
    "new_random",
]

_ONE = struct.pack("=Q", 1)
_BACKLOG = 512
_CHECK_EVERY_S = 0.001  # a silent peer is asked whether it lives at most this often
_RANDOM_MASK = (1 << 48) - 1
_CREDENTIALS = struct.Struct("3i")


class EventBell:
    """A bell made of one eventfd."""

    def __init__(self) -> None:
        self.read_fd = self.ring_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._identity = identity_of(self.read_fd)

    def drain(self) -> None:
        """Take every ring there is."""
        try:
            os.read(self.read_fd, 8)
        except BlockingIOError:
            pass  # rung by nobody: a connection at the door, or a second callback

    def is_lost(self) -> bool:
        """Whether somebody has closed the descriptor."""
        return identity_of(self.read_fd) != self._identity

    def close(self) -> None:
        """Close the descriptor."""
        close_if_same(self.read_fd, self._identity)


class PipeBell:
    """A bell made of a pipe, for systems without eventfd."""

    def __init__(self) -> None:
        self.read_fd, self.ring_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.ring_fd, False)
        self._identity = identity_of(self.read_fd)  # one for both ends

    def drain(self) -> None:
        """Take every ring there is."""
        try:
            while len(os.read(self.read_fd, 65536)) == 65536:
                pass
        except BlockingIOError:
            pass  # rung by nobody, or just emptied

    def is_lost(self) -> bool:
        """Whether somebody has closed the descriptor that is read."""
        return identity_of(self.read_fd) != self._identity

    def close(self) -> None:
        """Close both descriptors."""
        close_if_same(self.read_fd, self._identity)
        close_if_same(self.ring_fd, self._identity)


Bell = EventBell | PipeBell


def new_bell() -> Bell:
    """Return the best bell this system has."""
    return EventBell() if hasattr(os, "eventfd") else PipeBell()


def ring(fd: int) -> None:
    """Ring a bell by its descriptor."""
    try:
        os.write(fd, _ONE)
    except BlockingIOError:
        pass  # full: it is rung already


def bells_directory(name: str) -> str:
    """Return where the doors of the segment called ``name`` are."""
    base = "/dev/shm"  # noqa: S108
    if not os.path.isdir(base):
        import tempfile  # not above: it takes 5 ms, and hardly anybody needs it

        base = tempfile.gettempdir()
    return os.path.join(base, f"{name}-bells")


def make_directory(path: str, mode: int) -> None:
    """Create the directory of doors, or check the one that is there.

    Raises:
        SegmentPermission: it belongs to another user and is not meant to be shared.
    """
    wanted = (mode | (mode & 0o444) >> 2) & 0o777
    try:
        os.mkdir(path, wanted)
        os.chmod(path, wanted)  # whatever the umask was
    except FileExistsError:
        pass
    info = os.lstat(path)
    me = os.geteuid()
    if not stat.S_ISDIR(info.st_mode) or (
        info.st_uid not in (me, 0) and me != 0 and not mode & 0o077
    ):
        raise SegmentPermission(
            f"{path} is not a directory of this user: run all processes of one site as one user, "
            "or choose another prefix"
        )


def new_random() -> int:
    """Return 48 random bits, never all of them zero: what names a door."""
    return int.from_bytes(os.urandom(6), "little") or 1


def door_path(directory: str, token: int) -> str:
    """Return the socket of the loop with this token (its random part)."""
    return os.path.join(directory, f"{token:012x}")


class Door:
    """The listening side: hands the bell's descriptor to whoever connects."""

    def __init__(self, directory: str, token: int, mode: int, bell: Bell) -> None:
        self.path = door_path(directory, token)
        self._bell = bell
        self._shared = bool(mode & 0o077)
        self._guests: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._identity = identity_of(self.listener.fileno())
        try:
            self.listener.setblocking(False)
            self.listener.bind(self.path)
            os.chmod(self.path, mode)
            self.listener.listen(_BACKLOG)
        except BaseException:
            self.listener.close()
            raise

    def answer(self) -> bool:
        """Give the bell to everybody who waits at the door; whether there was anybody."""
        came = False
        while True:
            try:
                guest, _ = self.listener.accept()
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE):
                    came = True  # the guest waits in the backlog; its ring is heard
                    break
                if exc.errno == errno.ECONNABORTED:
                    continue  # gone before it was answered
                raise
            came = True
            if not self._is_welcome(guest):
                guest.close()
                continue
            guest.setblocking(False)
            try:
                socket.send_fds(guest, [b"b"], [self._bell.ring_fd])
            except OSError:
                guest.close()  # EPIPE: it died meanwhile
                continue
            self._guests.append(guest)
        if came:
            self._forget_gone_guests()
        return came

    def _is_welcome(self, guest: socket.socket) -> bool:
        if self._shared or not hasattr(socket, "SO_PEERCRED"):
            return True  # the socket's mode decides
        raw = guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        uid: int = _CREDENTIALS.unpack(raw)[1]
        return uid in (os.geteuid(), 0)

    def _forget_gone_guests(self) -> None:
        if not self._guests:
            return
        poll = select.poll()
        for guest in self._guests:
            poll.register(guest, select.POLLRDHUP if hasattr(select, "POLLRDHUP") else 0)
        gone = {fd for fd, _ in poll.poll(0)}
        for guest in [guest for guest in self._guests if guest.fileno() in gone]:
            self._guests.remove(guest)
            guest.close()

    def close(self, *, unlink: bool = True) -> None:
        """Stop listening; everybody who rang here learns that nobody answers any more."""
        is_ours = identity_of(self.listener.fileno()) == self._identity
        for sock in (self.listener, *self._guests):
            if is_ours:
                sock.close()
            else:
                sock.detach()  # somebody has closed everything: the numbers are not ours any more
        self._guests.clear()
        if unlink:
            try:
                os.unlink(self.path)
            except OSError:
                pass  # ENOENT: the directory was removed with the segments


class Anchor:
    """A socket that listens as long as this process lives, and is never answered.

    A process-specific home whose loop has ended may still be received for by another loop of
    the process; that the process itself has ended shows when its anchor refuses.
    """

    def __init__(self, directory: str, mode: int) -> None:
        self.token = ANCHOR | new_random() << 8
        self._path = door_path(directory, self.token >> 8 & _RANDOM_MASK)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(self._path)
            os.chmod(self._path, mode)
            self._socket.listen(1)
        except BaseException:
            self._socket.close()
            raise
        identity = identity_of(self._socket.fileno())
        self._closer = weakref.finalize(
            self, _close_anchor, self._socket, identity, self._path, os.getpid()
        )

    def close(self) -> None:
        """Stop listening; a forked child does not remove the parent's name."""
        self._closer()


def _close_anchor(listener: socket.socket, identity: Identity | None, path: str, pid: int) -> None:
    close_socket_if_same(listener, identity)
    if os.getpid() == pid:
        try:
            os.unlink(path)
        except OSError:
            pass  # ENOENT: the directory was removed with the segments


class _BellLost(Exception):
    """The kernel had no descriptor left to receive the bell with: ask for it anew."""


class _Peer:
    """The ringing side of one connection."""

    __slots__ = ("_identity", "checked_s", "fd", "sock", "token")

    def __init__(self, sock: socket.socket, token: int) -> None:
        self.sock = sock
        self._identity = identity_of(sock.fileno())
        self.token = token
        self.fd = -1  # the bell, once it has arrived
        self.checked_s = 0.0

    def close(self) -> None:
        is_ours = identity_of(self.sock.fileno()) == self._identity
        close_socket_if_same(self.sock, self._identity)
        if self.fd >= 0 and is_ours:  # who has closed the one has closed the other
            os.close(self.fd)
        self.fd = -1


class Ringer:
    """Rings the bells of other loops. Called under the segment's lock: never blocks."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._peers: dict[int, _Peer] = {}
        # Not at exit: a thread may still ring, and the kernel closes them a moment later.
        weakref.finalize(self, _close_all, self._peers).atexit = False
        self.own: dict[int, Callable[[], bool]] = {}  # loops of this process, by token
        self.call_all: Callable[[], None] = lambda: None  # for who cannot be rung

    def ring(self, slot: int, token: int) -> bool:
        """Wake the loop in ``slot``; False if it is known to be dead."""
        if token & ANCHOR:
            return self._holds(token)
        own = self.own.get(token)
        if own is not None:
            return own()
        peer = self._peers.get(slot)
        if peer is not None and peer.token != token:
            del self._peers[slot]  # its slot has a new owner
            peer.close()
            peer = None
        if peer is None:
            return self._connect(slot, token)
        now = time.monotonic()
        if peer.fd < 0 or now - peer.checked_s > _CHECK_EVERY_S:
            peer.checked_s = now
            try:
                lives = self._hear(peer)
            except _BellLost:
                del self._peers[slot]
                peer.close()
                return self._connect(slot, token)
            if not lives:
                del self._peers[slot]
                peer.close()
                self._remove_door(token)
                return False
        if peer.fd >= 0:
            ring(peer.fd)
        # else: the connection is still pending, and it is the pending ring. The owner looks
        # after it has answered, and we hold the lock until we have committed.
        return True

    def _hear(self, peer: _Peer) -> bool:
        """Read what the owner has said: its bell, nothing yet, or that it is dead."""
        try:
            if peer.fd >= 0:
                return peer.sock.recv(1) != b""
            message, fds, _, _ = socket.recv_fds(peer.sock, 1, 1)
            if fds:
                peer.fd = fds[0]
                os.set_inheritable(peer.fd, False)
            elif message:
                raise _BellLost
            return message != b""
        except BlockingIOError:
            return True
        except OSError:
            return False  # ECONNRESET: it died with our connection unanswered

    def _connect(self, slot: int, token: int) -> bool:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            self.call_all()  # EMFILE
            return True
        sock.setblocking(False)
        try:
            sock.connect(door_path(self._directory, token >> 8))
        except (ConnectionRefusedError, FileNotFoundError):
            sock.close()
            self._remove_door(token)
            return False
        except OSError as exc:
            sock.close()
            if exc.errno != errno.EAGAIN:  # its backlog is full, so it has rings enough
                self.call_all()  # EACCES and the like
            return True
        self._peers[slot] = _Peer(sock, token)
        return True

    def _holds(self, token: int) -> bool:
        """Whether an anchor is still there. EAGAIN: others asked before, so it is."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)
                sock.connect(door_path(self._directory, token >> 8 & _RANDOM_MASK))
        except (ConnectionRefusedError, FileNotFoundError):
            self._remove_door(token)
            return False
        except OSError:
            return True
        return True

    def _remove_door(self, token: int) -> None:
        """Tidy up after the dead: a door's name is random and never used again."""
        try:
            os.unlink(door_path(self._directory, token >> 8 & _RANDOM_MASK))
        except OSError:
            pass  # ENOENT: its owner closed it, or another process was faster

    def close(self) -> None:
        """Close every connection."""
        _close_all(self._peers)

    def abandon(self) -> None:
        """Forget the parent's loops in a forked child, and close the copies of its connections."""
        self.own.clear()
        self.close()


def _close_all(peers: dict[int, _Peer]) -> None:
    for peer in peers.values():
        peer.close()
    peers.clear()
