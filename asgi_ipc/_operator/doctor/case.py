"""The site that is examined, and what was found out about it once for all checks."""

from __future__ import annotations

import functools
import operator
import os
import stat
from dataclasses import dataclass

from ..._process.witness import Witness
from ..._shm import layout as L
from ..._wake.bell import bells_directory
from .probe import is_alive
from .processes import Process, Survey, survey
from .raw import Raw

__all__ = ["Case", "Doors", "open_case"]


@dataclass(slots=True)
class Doors:
    """The directory of doors.

    Attributes:
        path: where it is, or would be.
        info: of the directory; ``None`` when there is none.
        entries: its files, by name; what could not be looked at is left out.
    """

    path: str
    info: os.stat_result | None
    entries: dict[str, os.stat_result]


@dataclass(slots=True)
class Case:
    """See the module docstring.

    Attributes:
        mode: as the site is configured, or what its segments agree in.
        is_mode_given: whether somebody said it.
        user: the uid the site runs as.
        watch_s: how long a lock that is held is watched.
        shm: the shared-memory filesystem.
        segments: messages and groups, whether they are there or not.
        seen: all processes that have a segment mapped.
        users: those of this site, attached to what the names stand for now.
        witness: says which of the processes in the slots live.
    """

    prefix: str
    mode: int
    is_mode_given: bool
    user: int
    watch_s: float
    shm: str
    segments: tuple[Raw, Raw]
    doors: Doors
    seen: Survey
    users: list[Process]
    witness: Witness

    @property
    def is_shared(self) -> bool:
        """Whether several users are meant to use the site."""
        return bool(self.mode & 0o077)

    def listeners(self) -> int:
        """Return how many sockets of the site somebody listens on, in whatever container."""
        paths = (os.path.join(self.doors.path, name) for name in self.doors.entries)
        return sum(is_alive(path) is not False for path in paths)

    @property
    def names(self) -> set[str]:
        """Names of both segments."""
        return {segment.name for segment in self.segments}

    def close(self) -> None:
        """Let go of the files."""
        for segment in self.segments:
            segment.close()
        self.witness.close()


def open_case(
    prefix: str,
    *,
    message_memory: int | None,
    group_memory: int | None,
    mode: int | None,
    user: int | None,
    watch_s: float,
) -> Case:
    """Find out what all checks need. Creates nothing."""
    doors = bells_directory(prefix)
    shm = os.path.dirname(doors)
    messages = Raw(shm, f"{prefix}-messages", L.KIND_MESSAGES, message_memory)
    groups = Raw(shm, f"{prefix}-groups", L.KIND_GROUPS, group_memory)
    seen = survey()
    here = {(raw.info.st_dev, raw.info.st_ino) for raw in (messages, groups) if raw.info}
    users = [
        process
        for _, process in sorted(seen.processes.items())
        if any((one.device, one.inode) in here for one in process.mappings)
    ]
    if user is None:
        user = _likely_user(messages, users)
    is_mode_given = mode is not None
    if mode is None:
        mode = _common_mode(messages, groups)
    return Case(
        prefix,
        mode,
        is_mode_given,
        user,
        watch_s,
        shm,
        (messages, groups),
        _look_at(doors),
        seen,
        users,
        Witness(doors, 0),
    )


def _common_mode(*raws: Raw) -> int:
    modes = [stat.S_IMODE(raw.info.st_mode) for raw in raws if raw.info is not None]
    return functools.reduce(operator.and_, modes, 0o777) if modes else 0o600


def _likely_user(messages: Raw, users: list[Process]) -> int:
    """Return whom the site runs as: for root, who looks after others, whoever is attached."""
    me = os.geteuid()
    if me != 0:
        return me
    uids = {process.uid for process in users}
    if len(uids) == 1:
        return uids.pop()
    return messages.info.st_uid if messages.info else me


def _look_at(path: str) -> Doors:
    try:
        doors = Doors(path, os.lstat(path), {})
    except OSError:
        return Doors(path, None, {})  # ENOENT: nobody ever waited
    if doors.info is not None and stat.S_ISDIR(doors.info.st_mode):
        try:
            for entry in os.scandir(path):
                try:
                    doors.entries[entry.name] = entry.stat(follow_symlinks=False)
                except OSError:
                    pass  # closed meanwhile
        except OSError:
            pass  # EACCES: another user's, which is found by its mode
    return doors
