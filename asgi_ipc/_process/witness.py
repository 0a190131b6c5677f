"""Who lives: one locked byte for each process, which the kernel frees when the process ends.

Beside the doors of a site lies a file, ``alive``. Whoever receives locks one byte of it
(``F_SETLK``) at an offset of 48 random bits. Offset and 16 bits of the file's inode number are its
*process token*, and stand in shared memory. Anybody asks for it with ``F_GETLK``, which takes
0.9 µs, never blocks, and needs no word from the other side:

================================================== =======
what was seen                                      answer
================================================== =======
a token of this very process                       ALIVE
one that this process has replaced since           UNKNOWN
the byte is locked: running, stopped, or a zombie  ALIVE
of which a thread still runs
the byte is free, in the file of the token         DEAD
another file than the token's lies there, or none  UNKNOWN
the file may not be opened, or is a stranger's     UNKNOWN
no descriptor is left                              UNKNOWN
the kernel refuses the question                    UNKNOWN
no token: 0                                        UNKNOWN
================================================== =======

Only DEAD is proof. A lock belongs to the process: a forked child does not inherit it, threads
share it, and ``exec`` gives it back, as the file is closed then. It is seen across PID and user
namespaces. It is freed before the kernel closes the file (``IN_CLOSE_WRITE``).

Caveats:

* *Any* descriptor of the file that a process closes frees all of its locks. So nothing else opens
  the file, and here it is opened once for each process: all sites of one prefix share it, and what
  was opened twice, to ask and then to lock, stays open as long. What is closed behind our back is
  noticed by ``is_held``; the others may have taken us for dead by then.
* A number is trusted to be that file's only after ``fstat`` has said so: before it says DEAD, and
  before it is closed.
* Who is killed after the file was replaced and before it has noticed is never proven dead. Nor is
  it where inode numbers are used again at once (ext4): on a tmpfs they are not.
* A child of a C ``fork`` runs no hook: what it inherited is not believed (``_Here.is_inherited``).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
import struct
import sys
import weakref

from ..exceptions import SegmentError, SegmentPermission
from .mutex import new_mutex
from .own import (
    Identity,
    close_if_same,
    here,
    identity_of,
    is_trusted,
    keep_off_streams,
    set_aside,
    this_process,
)

__all__ = ["FILE_NAME", "Life", "Witness"]

FILE_NAME = "alive"  # in the directory of doors

_OFFSET_MASK = (1 << 48) - 1
_MARK_SHIFT = 48
_MARK_MASK = (1 << 16) - 1

# struct flock of Linux: type, whence, start, length, pid. Elsewhere nobody is proven dead.
_FLOCK = struct.Struct("hhqqi4x").pack
_CAN_ASK = sys.platform.startswith("linux")
_FREE = fcntl.F_UNLCK
_TRIES = 10  # of 48 random bits each: who is refused so often is refused for another reason
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB


class Life(enum.Enum):
    """What is known of a process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class _File:
    """A witness file as this process has it open.

    Attributes:
        key: device and inode.
        fds: the first one is used; the others must stay as long.
        is_writable: the first one may carry locks; otherwise it can only ask.
        tokens: whose bytes this process has locked.
        retired: locked as well, but replaced by others: of a file that was removed, say.
        users: how many ``Witness`` objects hold it.
    """

    __slots__ = ("fds", "is_writable", "key", "retired", "tokens", "users")

    def __init__(self, key: Identity) -> None:
        self.fds: list[int] = []
        self.key = key
        self.is_writable = False
        self.tokens: set[int] = set()
        self.retired: set[int] = set()
        self.users = 0

    @property
    def mark(self) -> int:
        """The part of its inode number that its tokens carry."""
        return self.key[1] & _MARK_MASK

    def is_intact(self) -> bool:
        """Whether the number is still that file's."""
        return identity_of(self.fds[0]) == self.key

    def is_free(self, token: int) -> bool | None:
        """Whether nobody else has locked a token's byte; ``None``: the kernel does not say."""
        question = _FLOCK(fcntl.F_WRLCK, os.SEEK_SET, token & _OFFSET_MASK, 1, 0)
        try:
            return fcntl.fcntl(self.fds[0], fcntl.F_GETLK, question)[0] == _FREE
        except OSError:
            return None  # EBADF: somebody closed it behind our back; ENOLCK, EACCES: not now

    def lock(self, token: int, operation: int) -> None:
        """Lock or unlock a token's byte; a lock that is held already is no error."""
        fcntl.lockf(self.fds[0], operation, 1, token & _OFFSET_MASK)

    def close(self) -> None:
        """Close what is still that file's."""
        for fd in self.fds:
            close_if_same(fd, self.key)
        self.tokens.clear()
        self.retired.clear()


class _Here:
    """What this process has open: one file for each device and inode."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start with nothing."""
        self.process = this_process()
        self.lock = new_mutex()  # innermost of all locks; held for a few system calls
        self.files: dict[Identity, _File] = {}

    def is_inherited(self) -> bool:
        """Whether all of this is the parent's: the one place that decides it."""
        return self.process != here[0]

    def abandon(self) -> None:
        """Let go of what a fork left here; the parent's locks are no business of this process."""
        inherited = list(self.files.values())
        self.begin()
        for file in inherited:
            try:
                file.close()
            except OSError:
                pass  # whatever it is: the number stays open, and is used no more


_here = _Here()


class Witness:
    """One site's token, and its view of the tokens of others."""

    def __init__(self, directory: str, mode: int) -> None:
        """Open nothing yet.

        Args:
            directory: where the file lies.
            mode: the site's. 0: for who only looks, at anybody's site; else a file that another
                user has put there says nothing.
        """
        self.path = os.path.join(directory, FILE_NAME)
        self._mode = mode
        self._files: dict[int, _File] = {}  # by mark: the one there now, and what was there before
        self._tokens: list[int] = []  # whose bytes are locked; the last one may be in use
        self._is_new = True  # none of them is
        self._given_back: tuple[int, ...] = ()  # when it was last closed: nobody's any more
        self._finalizer = weakref.finalize(self, _let_go, self._files, self._tokens)
        self._finalizer.atexit = False  # the kernel frees it a moment later, when all has ended

    @property
    def token(self) -> int:
        """The token that is held; 0: none."""
        return 0 if self._is_new else self._tokens[-1]

    def is_own(self, token: int) -> bool:
        """Whether a token is held here, or was and has been replaced since."""
        return token in self._tokens

    def take(self) -> int:
        """Lock a byte, unless one is held, and return its token. The directory must be there.

        Raises:
            SegmentPermission: the file may not be opened for writing.
            SegmentError: it cannot be opened or locked, for want of a descriptor, say.
        """
        if _here.is_inherited():
            self.abandon()
        if not self._is_new:
            return self._tokens[-1]
        try:
            file = self._open(create=True)
            for _ in range(_TRIES):
                token = file.mark << _MARK_SHIFT | (int.from_bytes(os.urandom(6), "little") or 1)
                try:
                    file.lock(token, _TRY)
                except (BlockingIOError, PermissionError) as exc:
                    refusal = exc  # EAGAIN: by chance another process has this very byte
                    continue
                file.tokens.add(token)
                self._tokens.append(token)
                self._is_new = False
                return token
        except OSError as exc:
            raise _error(self.path, exc) from exc
        raise SegmentError(
            f"no byte of {self.path} can be locked: {refusal.strerror}: something refuses to lock "
            "anything there (a sandbox, a filesystem without locks?): allow fcntl(F_SETLK)"
        )

    def ask(self, token: int, *, wait: bool = False) -> Life:
        """Say whether the process with a token lives. Never blocks, never raises.

        Args:
            wait: for another thread that opens the file just now, as for who has to know. Not for
                who holds a lock.
        """
        if token in self._given_back:
            return Life.DEAD  # whatever the kernel may refuse to say
        while (file := self._file_of(token, wait=wait)) is not None:
            if (token in file.tokens or token in file.retired) and not _here.is_inherited():
                # Own locks do not conflict. What was a retired one's is to go over to the new one.
                return Life.ALIVE if token in file.tokens else Life.UNKNOWN
            is_free = file.is_free(token)
            if is_free is False:
                return Life.ALIVE
            if file.is_intact():
                return Life.UNKNOWN if is_free is None else Life.DEAD
            if self._files.get(file.mark) is file:  # closed behind our back: opened anew
                del self._files[file.mark]
        return Life.UNKNOWN

    def can_tell(self, token: int) -> bool:
        """Whether ``ask`` will have an answer: a token's file is at hand."""
        return token in self._given_back or self._file_of(token) is not None

    def is_held(self) -> bool:
        """Whether the token, if there is one, is where others look for it; locked again if not."""
        if self._is_new:
            return True
        token = self._tokens[-1]
        file = self._files.get(token >> _MARK_SHIFT)
        if file is None or token not in file.tokens or not file.is_intact():
            return False
        try:
            if _key(os.stat(self.path, follow_symlinks=False)) != file.key:
                return False
            file.lock(token, _TRY)  # nothing happens if it is held
        except OSError:
            return False  # ENOENT: removed; EAGAIN: lost, and taken by another
        return True

    def retire(self) -> None:
        """Take another token the next time. The old byte stays locked: its process lives."""
        if not self._is_new:
            self._is_new = True
            token = self._tokens[-1]
            file = self._files.get(token >> _MARK_SHIFT)
            if file is not None and token in file.tokens:
                file.retired.add(token)  # first: whoever asks in between must not find it free
                file.tokens.discard(token)

    def close(self) -> None:
        """Give all bytes back, and let go of the file; ``take`` and ``ask`` open it anew."""
        self._is_new = True
        tokens = () if _here.is_inherited() else tuple(self._tokens)
        _let_go(self._files, self._tokens)
        self._given_back = tokens

    def abandon(self) -> None:
        """Forget what a forked child has inherited. Cannot fail; the parent keeps everything."""
        self._is_new = True
        self._files.clear()
        self._tokens.clear()
        if _here.is_inherited():
            _here.abandon()

    def _file_of(self, token: int, *, wait: bool = False) -> _File | None:
        """Return the file that a token belongs to, if it is known or lies there now."""
        return self._files.get(token >> _MARK_SHIFT) or self._find(token, wait=wait)

    def _find(self, token: int, *, wait: bool) -> _File | None:
        if not token or not _CAN_ASK:
            return None
        if _here.is_inherited():
            self.abandon()
        lock = _here.lock
        try:
            if not lock.acquire(blocking=wait):
                return None  # another thread opens it; it may wait for a lock that is held here
            file = self._open(create=False)
        except OSError:
            return None  # ENOENT: cleaned up; EACCES: a stranger's; EMFILE
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # not had
        return file if file.mark == token >> _MARK_SHIFT else None

    def _open(self, *, create: bool) -> _File:
        """Return the file that lies there now, opened once for all of this process."""
        if _here.is_inherited():
            self.abandon()
        with _here.lock:
            return self._use(create=create)

    def _use(self, *, create: bool) -> _File:
        while True:
            file = self._look_up(create=create)
            if self._files.get(file.mark) is not file:
                self._files[file.mark] = file
                file.users += 1
            if _here.files.get(file.key) is file:
                return file
            # Else the last one who used it was collected while it was looked up.

    def _look_up(self, *, create: bool) -> _File:
        try:
            info = os.stat(self.path, follow_symlinks=False)
            _check_owner(info, self._mode)
            file = _here.files.get(_key(info))
        except FileNotFoundError:
            file = None
        if file is not None and not file.is_intact():
            self._forget(file)
            file = None
        if file is None or (create and not file.is_writable):
            fd, key = _open(self.path, self._mode, create)
            file = _here.files.get(key) or _File(key)
            # Closing its low number, as moving does, would free the locks that are held.
            file.fds.insert(0, fd if file.tokens or file.retired else set_aside(fd))
            _here.files[key] = file  # not before it has a descriptor
            file.is_writable |= create
        return file

    def _forget(self, file: _File) -> None:
        """Let go of a file whose descriptor is lost, and of the locks that went with it."""
        with _here.lock:
            file.tokens.clear()
            file.retired.clear()
            if _here.files.get(file.key) is file:
                del _here.files[file.key]
            if self._files.get(file.mark) is file:
                del self._files[file.mark]


def _let_go(files: dict[int, _File], tokens: list[int]) -> None:
    if _here.is_inherited():
        files.clear()
        tokens.clear()
        return
    with _here.lock:
        _give_back(files, tokens)


def _give_back(files: dict[int, _File], tokens: list[int]) -> None:
    """Let go of all of them. Whoever is interrupted in it does it again."""
    while files:
        mark, file = next(iter(files.items()))
        for token in (file.tokens | file.retired).intersection(tokens):
            try:
                if file.is_intact():
                    file.lock(token, fcntl.LOCK_UN)
            except OSError:
                pass  # ENOLCK: then it ends with the process
            file.tokens.discard(token)
            file.retired.discard(token)
        if file.users == 1:
            file.close()
            if _here.files.get(file.key) is file:
                del _here.files[file.key]
        del files[mark]
        file.users -= 1
    tokens.clear()


def _open(path: str, mode: int, create: bool) -> tuple[int, Identity]:
    """Open a witness file: to be locked and made if need be, or only to ask.

    Not for writing to ask: to close it would wake everybody who waits.
    """
    flags = os.O_RDWR if create else os.O_RDONLY
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    keep_off_streams()
    while True:
        try:
            fd = os.open(path, flags)
            break
        except FileNotFoundError:
            if not create:
                raise
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            os.fchmod(fd, mode)  # whatever the umask was
            break
        except FileExistsError:
            pass  # another process was faster
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    try:
        _check_owner(info, mode)
    except PermissionError:
        os.close(fd)  # it carries no lock of ours: we have never taken one there
        raise
    return fd, _key(info)


def _check_owner(info: os.stat_result, mode: int) -> None:
    if mode and not is_trusted(info, mode):
        raise PermissionError(errno.EACCES, f"it belongs to user {info.st_uid}")


def _key(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino


def _error(path: str, cause: OSError) -> SegmentError:
    if isinstance(cause, PermissionError):
        return SegmentPermission(
            f"{path} may not be opened: {cause.strerror}: run all processes of one site as one "
            "user, or give mode=0o660 to all"
        )
    remedies = {
        errno.EMFILE: "raise this process's limit of open files (ulimit -n)",
        errno.ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
        errno.ENOLCK: "the system has no lock left (cat /proc/locks)",
        errno.ENOSPC: "free or enlarge the shared-memory filesystem (df /dev/shm)",
        errno.ENOENT: "its directory was removed at this very moment: try again",
    }
    remedy = remedies.get(cause.errno or 0, f"remove it (rm {path})")
    return SegmentError(f"{path} cannot be opened and locked: {cause.strerror}: {remedy}")
