"""What ``/proc`` tells about the processes of a site: passive evidence, nobody is asked.

Everything here may be wrong by the time it is read, and is missing where there is no
``/proc`` or where it may not be read (other users' processes, other PID namespaces): then
the answer is ``None`` or leaves things out, never an error.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "UNKNOWN",
    "Holder",
    "command_line",
    "door_answers",
    "is_stopped",
    "listening",
    "lock_holder",
    "mapping",
    "state_of",
    "thawing",
]

_SPAWNED = ("from multiprocessing.spawn import", "from multiprocessing.forkserver import")
_CHILD = " (child)"
_CGROUPS = "/sys/fs/cgroup"


class Holder(NamedTuple):
    """Who holds a lock.

    Attributes:
        pid: its process id, ``None`` when it cannot be told (another PID namespace).
        state: the kernel's letter for it: R runs, S sleeps, T is stopped, ...
        command: its command line.
        idle_s: seconds since any of its threads last ran: for how long it has been stopped.
        frozen: how to thaw it, when its control group is frozen (docker pause): a command.
    """

    pid: int | None
    state: str | None
    command: str | None
    idle_s: float | None
    frozen: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether it will not go on by itself."""
        return is_stopped(self.state) or self.frozen is not None


UNKNOWN = Holder(None, None, None, None)
"""Somebody in another PID namespace: ``/proc/locks`` leaves out what it cannot name."""


def is_stopped(state: str | None) -> bool:
    """Whether a process in this state will not go on by itself: stopped, or traced."""
    return state in ("T", "t")


def lock_holder(fd: int) -> Holder | None:
    """Return who holds the ``flock`` on the file behind ``fd``; ``None``: nobody to be seen."""
    info = os.fstat(fd)
    wanted = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    for line in _read("/proc/locks").splitlines():
        fields = line.split()
        # "12: FLOCK  ADVISORY  WRITE 4711 00:1a:42 0 EOF"; waiters have "->" second
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:
            pid = int(fields[4])
            if pid <= 0:  # it lives in a PID namespace that this one cannot see into
                return UNKNOWN
            return Holder(pid, state_of(pid), command_line(pid), _idle_s(pid), thawing(pid))
    return None


def state_of(pid: int) -> str | None:
    """Return the kernel's letter for what a process does; ``None`` if there is no such one."""
    _, _, rest = _read(f"/proc/{pid}/stat").rpartition(")")
    return rest.split()[0] if rest.split() else None


def command_line(pid: int) -> str | None:
    """Return a process's command line; ``None`` if there is no such process.

    Of a child that multiprocessing has spawned, whose own says nothing, its parent's.
    """
    words = _read(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " ")
    if any(mark in words for mark in _SPAWNED):
        parent = _parent_of(pid)
        if parent is not None and parent > 1:
            line = command_line(parent)
            return line and line.removesuffix(_CHILD) + _CHILD
    return words or _read(f"/proc/{pid}/comm").strip() or None


def _parent_of(pid: int) -> int | None:
    _, _, rest = _read(f"/proc/{pid}/stat").rpartition(")")
    fields = rest.split()
    return int(fields[1]) if len(fields) > 1 else None


def thawing(pid: int) -> str | None:
    """Return the command that thaws a process of a frozen control group; ``None``: it is not.

    A signal, a kill as well, may wait for the thaw.
    """
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer":
            group = f"{_CGROUPS}/freezer{path}"
            if _read(f"{group}/freezer.state").strip() in ("FROZEN", "FREEZING"):
                return f"echo THAWED > {group.rstrip('/')}/freezer.state"
        elif not controllers:
            for root in (_CGROUPS, f"{_CGROUPS}/unified"):
                if "frozen 1" in _read(f"{root}{path}/cgroup.events"):
                    return f"echo 0 > {root}{path.rstrip('/')}/cgroup.freeze"
    return None


def _idle_s(pid: int) -> float | None:
    """Return how long ago any thread of a process last ran.

    The scheduler notes when it last ran a thread, on a clock of its own: what that clock
    says now is read from this very thread, which is running.
    """
    now = _last_ran_s("/proc/thread-self/sched")
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return None  # it has ended
    latest = [_last_ran_s(f"/proc/{pid}/task/{thread}/sched") for thread in threads]
    known = [moment for moment in latest if moment is not None]
    return max(0.0, now - max(known)) if now is not None and known else None


def _last_ran_s(path: str) -> float | None:
    for line in _read(path).splitlines():
        if line.startswith("se.exec_start"):
            return float(line.rpartition(":")[2]) / 1000
    return None  # a kernel built without it


def mapping(files: Iterable[tuple[str, int]]) -> set[int]:
    """Return the processes that have one of these files mapped for writing: all that are attached.

    One that only looks has it mapped for reading.

    Args:
        files: the last part of a file's path, and its inode; the name may be gone already.
    """
    wanted = [(f"/{name}", str(inode)) for name, inode in files]
    found = set()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not entry.isdigit():
            continue
        maps = _read(f"/proc/{entry}/maps")
        if any(name in maps for name, _ in wanted) and _maps_one(maps, wanted):
            found.add(int(entry))
    return found


def _maps_one(maps: str, wanted: list[tuple[str, str]]) -> bool:
    for line in maps.splitlines():
        # "7f..-7f.. rw-s 00000000 00:1a 42   /dev/shm/mysite-messages (deleted)"
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1][1] == "w" and fields[3] != "00:00":
            path = fields[5].removesuffix(" (deleted)")
            if any(path.endswith(name) and fields[4] == inode for name, inode in wanted):
                return True
    return False


def listening() -> set[str]:
    """Return the paths of all unix sockets that somebody in this network namespace holds."""
    return {
        fields[7]
        for fields in (line.split(maxsplit=7) for line in _read("/proc/net/unix").splitlines())
        if len(fields) == 8
    }


def door_answers(path: str) -> bool | None:
    """Whether somebody listens behind a unix socket; ``None``: it cannot be told.

    Connecting is a ring: the loop behind it looks at its queues once more than it needed to.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return None  # EACCES: another user's
    return True


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""  # ENOENT, ESRCH: it has ended; EACCES: another user's; no /proc here
