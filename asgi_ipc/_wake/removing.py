"""Removing a site from the machine: its names, and never anything behind them.

Another user may have put a symlink, a directory or a FIFO where one of our names belongs. So
nothing is followed: the directory of doors is opened as a directory that is no symlink, its owner
is looked at, and what goes is named relative to that descriptor. Only names that we give go:
doors and the witness. A file of anybody else stays, and the directory with it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from .._process.opening import cannot_use
from .._process.witness import FILE_NAME
from ..exceptions import IPCError, SegmentMismatch, SegmentPermission
from .bell import bells_directory, is_door

__all__ = ["Removed", "names_of", "open_directory", "remove_site"]

_SEGMENTS = ("messages", "groups")


class Removed(NamedTuple):
    """What ``remove_site`` did.

    Attributes:
        paths: what is gone.
        strangers: files in the directory of doors that are none of ours, and stay.
    """

    paths: list[str]
    strangers: list[str]


def names_of(prefix: str) -> list[str]:
    """Return the paths of a site's files that exist, the directory of doors left out.

    The semaphores are what asgi_ipc 1.x kept beside its segments.
    """
    base = os.path.dirname(bells_directory(prefix))
    paths = [f"{base}/{kind}{prefix}-{name}" for kind in ("", "sem.") for name in _SEGMENTS]
    return [path for path in paths if os.path.lexists(path)]


def open_directory(path: str) -> int | None:
    """Open the directory of doors, which must be one; ``None`` if there is nothing.

    Raises:
        SegmentMismatch: something that is no directory stands there, a symlink perhaps.
        SegmentPermission: it belongs to a user who has no part in the site.
        SegmentError: it cannot be opened for another reason.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise SegmentMismatch(
                f"{path} is no directory, and nothing behind it was touched: find out who made it "
                f"(ls -ld {path}), and remove it"
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise _not_ours(path, os.lstat(path)) from exc
        raise cannot_use(path, exc) from exc
    info = os.fstat(fd)
    if not _may_remove(info):
        os.close(fd)
        raise _not_ours(path, info)
    return fd


def _may_remove(info: os.stat_result) -> bool:
    """Whether a directory is this user's, or of a group whose members share the site.

    Root may, whosever it is: nothing but names of ours in this very directory goes.
    """
    me = os.geteuid()
    if me == 0 or info.st_uid in (me, 0):
        return True
    is_shared = info.st_gid in {os.getegid(), *os.getgroups()} and info.st_mode & stat.S_IWGRP
    return bool(is_shared) and not info.st_mode & stat.S_IWOTH


def _not_ours(path: str, info: os.stat_result) -> SegmentPermission:
    return SegmentPermission(
        f"{path} belongs to user {info.st_uid}, and this process runs as {os.geteuid()}: remove "
        "it as that user, or as root"
    )


def remove_site(prefix: str) -> Removed:
    """Remove segments and doors, and what asgi_ipc 1.x left under the same names.

    Whoever is attached keeps what there is, without a name. What vanishes meanwhile is no error.

    Raises:
        SegmentMismatch: a directory, or something that is none, stands in the place of one of
            them; nothing was removed.
        SegmentPermission: it is another user's; what could be removed is gone.
        SegmentError: the system refuses it for another reason; the same holds.
    """
    try:
        return _remove_site(prefix)
    except OSError as exc:
        if isinstance(exc, IPCError):
            raise
        raise cannot_use(prefix, exc) from exc


def _remove_site(prefix: str) -> Removed:
    directory = bells_directory(prefix)
    doors = open_directory(directory)
    try:
        removed = [path for path in _checked(names_of(prefix)) if _unlink(path)]
        strangers: list[str] = []
        if doors is not None:
            strangers = _empty(doors, directory)
    finally:
        if doors is not None:
            os.close(doors)
    if doors is not None and not strangers:
        try:
            os.rmdir(directory)  # never what a symlink names
            removed.append(directory)
        except OSError as exc:
            if exc.errno in (errno.EACCES, errno.EPERM):
                raise _not_ours(directory, os.lstat(directory)) from exc
            # ENOTEMPTY, ENOENT: a process is just starting or ending there
    return Removed(removed, strangers)


def _checked(paths: list[str]) -> list[str]:
    for path in paths:
        try:
            is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            continue  # gone meanwhile
        if is_directory:
            raise SegmentMismatch(
                f"a directory stands in the place of {path}: find out who made it, and remove it"
            )
    return paths


def _unlink(path: str, dir_fd: int | None = None) -> bool:
    """Remove a name, never what a symlink names; whether it was there."""
    try:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except PermissionError as exc:
        raise _not_ours(path, os.stat(path, dir_fd=dir_fd, follow_symlinks=False)) from exc
    return True


def _empty(directory_fd: int, path: str) -> list[str]:
    """Remove what is ours in a directory; return the paths of what is not."""
    strangers = []
    for name in os.listdir(directory_fd):
        if is_door(name) or name == FILE_NAME:
            try:
                _unlink(name, directory_fd)
            except IsADirectoryError:
                strangers.append(f"{path}/{name}")
        else:
            strangers.append(f"{path}/{name}")
    return strangers
