"""What ``/proc`` knows of the processes that use a site's segments.

Bounded: one look at each process. Whatever may not be read (another user's process, no
``/proc`` at all) is left out and counted, never an error.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field

from .. import procfs

__all__ = [
    "Mapping",
    "Process",
    "Survey",
    "open_files",
    "survey",
]

_DELETED = " (deleted)"
_SEGMENT = re.compile(r".*/([a-zA-Z0-9\-_.]+-(?:messages|groups))$")


@dataclass(frozen=True, slots=True)
class Mapping:
    """A segment that a process has mapped.

    Attributes:
        name: ``mysite-messages``.
        device: number of the filesystem it is on.
        inode: of the file.
        is_deleted: whether the file has lost its name.
    """

    name: str
    device: int
    inode: int
    is_deleted: bool


@dataclass(slots=True)
class Process:
    """A process that has mapped at least one segment."""

    pid: int
    uid: int
    command: str
    state: str
    mappings: list[Mapping] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})" if self.command else str(self.pid)


@dataclass(slots=True)
class Survey:
    """Everybody who has mapped a segment of whatever prefix.

    Attributes:
        processes: by pid.
        hidden: how many processes may not be looked at, being other users'.
    """

    processes: dict[int, Process] = field(default_factory=dict)
    hidden: int = 0

    def users_of(self, names: set[str], device: int | None = None) -> list[Process]:
        """Return who has mapped one of these names, on that filesystem, in order of pid."""
        return [
            process
            for _, process in sorted(self.processes.items())
            if any(
                one.name in names and (device is None or one.device == device)
                for one in process.mappings
            )
        ]


def survey() -> Survey:
    """Look at every process there is, but this one."""
    found = Survey()
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return found  # no /proc here
    for pid in pids:
        if pid == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/maps", errors="replace") as maps:
                mappings = _segments_in(maps.read())
            if mappings:
                found.processes[pid] = Process(
                    pid,
                    os.stat(f"/proc/{pid}").st_uid,
                    command_of(pid),
                    procfs.state_of(pid) or "",
                    mappings,
                )
        except PermissionError:
            found.hidden += 1
        except OSError:
            pass  # it has just ended
    return found


def _segments_in(maps: str) -> list[Mapping]:
    found: dict[Mapping, None] = {}
    for line in maps.splitlines():
        # "7f00-7f01 rw-s 00000000 00:1a 42    /dev/shm/mysite-messages (deleted)"
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[1][1:4:2] != "ws":
            continue  # private memory, or one who only looks
        is_deleted = fields[5].endswith(_DELETED)
        match = _SEGMENT.match(fields[5].removesuffix(_DELETED))
        if match:
            major, minor = (int(part, 16) for part in fields[3].split(":"))
            device = os.makedev(major, minor)
            found[Mapping(match[1], device, int(fields[4]), is_deleted)] = None
    return list(found)


def command_of(pid: int) -> str:
    """Return the beginning of a process's command line; "" if it cannot be read."""
    line = " ".join((procfs.command_line(pid) or "").split())
    return line if len(line) <= 60 else line[:57] + "..."


def open_files(pid: int | str) -> tuple[int, int] | None:
    """Return how many descriptors a process has open and may have; ``None`` if not told."""
    try:
        count = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/limits") as limits:
            for line in limits:
                if line.startswith("Max open files"):
                    soft = line.split()[3]
                    return count, (1 << 62 if soft == "unlimited" else int(soft))
    except (OSError, ValueError, IndexError):
        pass  # ended, or another user's
    return None


def inotify_instances(user: int) -> int:
    """Return how many inotify instances the processes of a user have, as far as can be told."""
    instances = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        directory = f"/proc/{pid}/fd"
        with suppress(OSError):  # ended, or not ours to see
            # Not of the directory: that of a process that has changed its user is root's.
            if os.stat(f"/proc/{pid}").st_uid == user:
                for fd in os.listdir(directory):
                    with suppress(OSError):  # closed meanwhile, as the one of this listing
                        instances += os.readlink(f"{directory}/{fd}") == "anon_inode:inotify"
    return instances


def inotify_limit() -> int | None:
    """Return how many inotify instances a user may have; ``None`` if not told."""
    try:
        with open("/proc/sys/fs/inotify/max_user_instances") as limit:
            return int(limit.read())
    except (OSError, ValueError):
        return None
