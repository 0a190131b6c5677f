"""The doorbell: how one process wakes an event loop of another.

A loop's *bell* is an eventfd (a pipe where there is none) that it watches for reading. An
eventfd has no name, so the loop also listens on a unix socket, its *door*. Whoever rings
for the first time connects to the door: **the connection is the first ring**, because it
makes the door readable. The owner accepts, answers with the bell's descriptor, and looks
at its queues as for any ring. From then on a ring is one 8-byte ``write``.

The owner may not be able to hand its bell over: an ordinary user has a limit of descriptors that
are on their way (``ETOOMANYREFS``), or the guest is not welcome. It answers with ``c`` then:
*connect for each ring*. A guest in turn may be unable to take the bell. Nothing of all this says
that anybody is dead: that is for the witness alone to say (``_process/witness``).

* A ring is never lost: it is a pending connection or an unread counter, and the owner
  drains before it looks.
* Ringing never blocks: a bell that is full is already rung, and a bell from a stranger's door is
  not taken.
* Whoever could not be rung is called through the segment, which inotify tells of.
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
from typing import Any

from .._process.own import (
    close_if_same,
    close_socket_if_same,
    identity_of,
    is_trusted,
    keep_off_streams,
)
from .._process.witness import Life, Witness
from ..exceptions import SegmentError, SegmentPermission

__all__ = [
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
_HANDED, _CONNECT = b"b", b"c"  # what the owner answers: with the bell, or without
_ASK_AGAIN_S = 10.0  # who had to connect for each ring asks for the bell again so late
_COLLECTED = 8  # bells of others that are taken from their way at one ring
_CREDENTIALS = struct.Struct("3i")
_ONE_FD = socket.CMSG_LEN(struct.calcsize("i"))


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
        """Close the descriptor; can be done again."""
        is_ours = not self.is_lost()
        fd, self.read_fd, self.ring_fd = self.read_fd, -1, -1
        if is_ours:
            os.close(fd)  # no signal handler runs between this and the line that forgets it


class PipeBell:
    """A bell made of a pipe, for systems without eventfd and for who is rung by single bytes."""

    def __init__(self) -> None:
        """Make it.

        Raises:
            SegmentError: there is no descriptor left for it.
        """
        try:
            keep_off_streams()
            self.read_fd, self.ring_fd = os.pipe()
        except OSError as exc:
            raise SegmentError(
                f"no descriptor for an event loop's bell: {exc.strerror}: raise this process's "
                "limit of open files (ulimit -n)"
            ) from exc
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
        """Close both descriptors; can be done again."""
        for end in (self.read_fd, self.ring_fd):
            close_if_same(end, self._identity)
        self.read_fd = self.ring_fd = -1


Bell = EventBell | PipeBell


def new_bell() -> Bell:
    """Return the best bell this system has.

    Raises:
        SegmentError: it has no descriptor left for one.
    """
    try:
        keep_off_streams()
        if hasattr(os, "eventfd"):
            return EventBell()
    except OSError:
        pass  # ENOSYS, EPERM: refused by a sandbox; EMFILE: the pipe says so as well
    return PipeBell()


def ring(fd: int) -> bool:
    """Ring a bell by its descriptor; False if that is no bell any more."""
    try:
        os.write(fd, _ONE)
    except BlockingIOError:
        pass  # full: it is rung already
    except OSError:
        return False  # EPIPE: a pipe that nobody reads; EBADF: somebody closed it behind our back
    return True


def bells_directory(name: str) -> str:
    """Return where the doors of the segment called ``name`` are."""
    base = "/dev/shm"  # noqa: S108
    if not os.path.isdir(base):
        import tempfile  # not above: it takes 5 ms, and hardly anybody needs it

        base = tempfile.gettempdir()
    return os.path.join(base, f"{name}-bells")


def make_directory(path: str, mode: int) -> None:
    """Create the directory of doors, or check the one that is there.

    Whoever may write there could listen in another's place: see ``is_trusted``.

    Raises:
        SegmentPermission: it belongs to another user and is not meant to be shared.
        SegmentError: it cannot be made.
    """
    wanted = (mode | (mode & 0o444) >> 2) & 0o777
    try:
        os.mkdir(path, wanted)
        os.chmod(path, wanted)  # whatever the umask was
    except FileExistsError:
        pass
    except OSError as exc:
        raise SegmentError(
            f"{path} cannot be made: {exc.strerror}: free or enlarge the shared-memory filesystem "
            "(df /dev/shm), and see who may write there"
        ) from exc
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or not is_trusted(info, mode):
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


def is_door(name: str) -> bool:
    """Whether a file in the directory of doors has the name of one."""
    return len(name) == 12 and not set(name) - set("0123456789abcdef")


class Door:
    """The listening side: hands the bell's descriptor to whoever connects.

    Attributes:
        is_stuck: somebody waits who cannot be let in, for want of a descriptor: do not watch it
            for a while, as it stays readable.
    """

    def __init__(self, directory: str, token: int, mode: int, bell: Bell) -> None:
        self.path = door_path(directory, token)
        self.is_stuck = False
        self._bell = bell
        self._shared = bool(mode & 0o077)
        self._guests: list[socket.socket] = []
        try:
            keep_off_streams()
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:
            raise _no_door(self.path, exc) from exc
        self._identity = identity_of(self.listener.fileno())
        try:
            self.listener.setblocking(False)
            self.listener.bind(self.path)
            os.chmod(self.path, mode)
            self.listener.listen(_BACKLOG)
        except OSError as exc:
            self.listener.close()
            raise _no_door(self.path, exc) from exc

    def answer(self) -> bool:
        """Give the bell to everybody who waits at the door; whether there was anybody."""
        came = self.is_stuck = False
        while True:
            try:
                keep_off_streams()
                guest, _ = self.listener.accept()
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno == errno.ECONNABORTED:
                    continue  # gone before it was answered
                # EMFILE, ENFILE, ENOMEM: the guest waits in the backlog; its ring is heard
                came = self.is_stuck = True
                break
            came = True
            guest.setblocking(False)
            if _is_trusted(guest, self._shared) and self._hand_over(guest):
                self._guests.append(guest)
            else:
                guest.close()
        if came:
            self._forget_gone_guests()
        return came

    def _hand_over(self, guest: socket.socket) -> bool:
        """Give the bell to a guest; or tell it that it has to connect for each ring."""
        try:
            socket.send_fds(guest, [_HANDED], [self._bell.ring_fd])
            return True
        except OSError:
            pass  # ETOOMANYREFS: too many are on their way already; EPIPE: it is gone
        try:
            guest.send(_CONNECT)
        except OSError:
            pass  # EPIPE
        return False

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


def _no_door(path: str, cause: OSError) -> SegmentError:
    if isinstance(cause, PermissionError):
        return SegmentPermission(
            f"no socket can be made at {path}: {cause.strerror}: run all processes of one site as "
            "one user, or give mode=0o660 to all"
        )
    return SegmentError(
        f"no socket can be made at {path}: {cause.strerror}: raise this process's limit of open "
        "files (ulimit -n), or free the shared-memory filesystem (df /dev/shm)"
    )


def _is_trusted(sock: socket.socket, shared: bool) -> bool:
    """Whether the user at the other end is this one, or root; a shared door's mode decides."""
    if shared or not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid in (os.geteuid(), 0)


class _Peer:
    """The ringing side of one connection."""

    __slots__ = ("_answers", "_identity", "fd", "sock", "token")

    def __init__(self, sock: socket.socket, token: int) -> None:
        self.sock = sock
        self._identity = identity_of(sock.fileno())
        self._answers: list[tuple[bytes, list[tuple[int, int, bytes]], int, Any]] = []
        self.token = token
        self.fd = -1  # the bell, once it has arrived and is found to be one

    def read_answer(self) -> bytes:
        """Read what the door answers, and its bell if it hands one over; nothing if it is closed.

        Raises:
            BlockingIOError: it has not answered yet.
        """
        if not self._answers:
            keep_off_streams()
            try:
                # In one call from the kernel to the list: what a signal handler raises in between
                # would lose the descriptor.
                self._answers.extend(map(self.sock.recvmsg, (1,), (_ONE_FD,)))
            except BlockingIOError:
                raise
            except OSError:
                return b""  # ECONNRESET
        for fd in self._fds():
            if _is_bell(fd):
                self.fd = fd
        return self._answers[0][0]

    def _fds(self) -> list[int]:
        return [
            fd
            for _, ancillary, _, _ in self._answers
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for fd in memoryview(data).cast("i")
        ]

    def close(self) -> None:
        is_ours = identity_of(self.sock.fileno()) == self._identity
        close_socket_if_same(self.sock, self._identity)
        if is_ours:  # who has closed the one has closed the other
            for fd in self._fds():
                os.close(fd)
        self._answers.clear()
        self.fd = -1


class Ringer:
    """Rings the bells of other loops. Called under the segment's guard: never blocks.

    A ring that was delivered counts as heard, and the witness is asked whether it was (``heard``)
    when the sender has committed and given its lock back: then no death in between is missed, and
    who was rung is on its way already.
    """

    def __init__(self, directory: str, witness: Witness, mode: int) -> None:
        self._directory = directory
        self._witness = witness
        self._mode = mode
        self._shared = bool(mode & 0o077)
        self._peers: dict[int, _Peer] = {}
        self._pending: set[int] = set()  # slots whose bell has not arrived
        self._bare: dict[int, float] = {}  # slots that want a connection for each ring; until when
        # Not at exit: a thread may still ring, and the kernel closes them a moment later.
        weakref.finalize(self, _close_all, self._peers).atexit = False
        self.own: dict[int, Callable[[], bool]] = {}  # loops of this process, by token
        self.call_all: Callable[[], None] = lambda: None  # for who cannot be rung

    def ask(self, process: int) -> Life:
        """Say whether the process with this token lives."""
        return self._witness.ask(process)

    def token(self) -> int:
        """Return the token of this process, taken when it is asked for first.

        Raises:
            SegmentPermission, SegmentError: as ``make_directory`` and ``Witness.take`` do.
        """
        token = self._witness.token
        if not token:
            make_directory(self._directory, self._mode)
            token = self._witness.take()
        return token

    def is_own(self, process: int) -> bool:
        """Whether a token is this process's, or was."""
        return self._witness.is_own(process)

    def ring(self, slot: int, token: int, process: int) -> Life:
        """Wake the loop in ``slot``.

        Returns:
            ALIVE: it was rung, see ``heard``. DEAD: its process is, or it is a loop of this
            process that is closed. UNKNOWN: it lives perhaps, but perhaps nobody hears it.
        """
        own = self.own.get(token)
        if own is not None:
            return Life.ALIVE if own() else Life.DEAD
        if self._pending:
            self._collect(slot)
        peer = self._peers.get(slot)
        if peer is not None and peer.token != token:
            self._drop(slot)  # it has a new owner
            self._bare.pop(slot, None)
            peer = None
        if peer is not None and peer.fd >= 0 and not ring(peer.fd):
            self._drop(slot)
            peer = None
        # A connection that is still pending is the pending ring: the owner looks after it has
        # answered, and we hold the lock until we have committed.
        if (peer is not None or self._connect(slot, token)) and self._witness.can_tell(process):
            return Life.ALIVE
        life = self._witness.ask(process)
        return Life.DEAD if life is Life.DEAD else Life.UNKNOWN

    def heard(self, slot: int, token: int, process: int) -> Life:
        """Say whether a loop that was rung lives. UNKNOWN: perhaps; ring another one as well.

        The lock may be another's by now, but no thread of this process rings. Whoever lives and
        has closed its end of the connection has dropped that loop, or was short of descriptors.
        """
        if token in self.own:
            return Life.ALIVE
        life = self._witness.ask(process)
        peer = self._peers.get(slot)
        if life is not Life.ALIVE or peer is None or peer.token != token or peer.fd < 0:
            return life
        try:
            if peer.sock.recv(1):
                return Life.ALIVE
        except BlockingIOError:
            return Life.ALIVE
        except OSError:
            pass  # ECONNRESET
        self._drop(slot)
        return Life.UNKNOWN

    def forget(self, slot: int, token: int) -> None:
        """Tidy up after a loop that is reaped: a door's name is random and never used again.

        Where the directory was removed, another user may have put a link in its place.
        """
        peer = self._peers.get(slot)
        if peer is not None and peer.token == token:
            self._drop(slot)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            directory = os.open(self._directory, flags)
        except OSError:
            return  # ENOENT: cleaned up; ENOTDIR: a link; EMFILE: one door more until `unlink`
        try:
            if is_trusted(os.fstat(directory), self._mode):
                os.unlink(door_path("", token >> 8), dir_fd=directory)
        except OSError:
            pass  # ENOENT: its owner closed it, or another process was faster
        finally:
            os.close(directory)

    def _collect(self, slot: int) -> None:
        """Take the bells that have arrived: the kernel counts those that are on their way."""
        for one in [slot, *self._pending][:_COLLECTED]:
            self._collect_one(one)

    def _collect_one(self, slot: int) -> None:
        peer = self._peers.get(slot)
        if slot not in self._pending or peer is None:
            return
        try:
            answer = peer.read_answer()
        except BlockingIOError:
            return
        if peer.fd >= 0:
            self._pending.discard(slot)
            return
        self._drop(slot)
        if answer:  # it could not hand the bell over, or we could not take it
            self._bare[slot] = time.monotonic() + _ASK_AGAIN_S

    def _connect(self, slot: int, token: int) -> bool:
        """Ring by connecting; whether there was a door."""
        try:
            keep_off_streams()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            self.call_all()  # EMFILE
            return False
        sock.setblocking(False)
        try:
            sock.connect(door_path(self._directory, token >> 8))
            is_bare = self._bare.get(slot, 0.0) > time.monotonic()
            if is_bare or not _is_trusted(sock, self._shared):
                sock.close()  # it stays in the backlog, and is a ring
                return True
        except (ConnectionRefusedError, FileNotFoundError):
            sock.close()  # it died, or the loop was dropped, or somebody cleans up here
            return False
        except OSError as exc:
            sock.close()
            if exc.errno == errno.EAGAIN:
                return True  # its backlog is full, so it has rings enough
            self.call_all()  # EACCES and the like
            return False
        self._bare.pop(slot, None)
        self._peers[slot] = _Peer(sock, token)
        self._pending.add(slot)
        return True

    def _drop(self, slot: int) -> None:
        self._pending.discard(slot)
        self._peers.pop(slot).close()

    def close(self) -> None:
        """Close every connection."""
        _close_all(self._peers)
        self._pending.clear()
        self._bare.clear()

    def abandon(self) -> None:
        """Forget the parent's loops in a forked child, and close the copies of its connections."""
        self.own.clear()
        self.close()


def _is_bell(fd: int) -> bool:
    """Whether a descriptor that came from a door is an eventfd or a pipe; it never blocks then."""
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind not in (0, stat.S_IFIFO):  # 0: an inode without a name, as an eventfd's
            return False
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
    except OSError:
        return False
    return True


def _close_all(peers: dict[int, _Peer]) -> None:
    for peer in peers.values():
        peer.close()
    peers.clear()
