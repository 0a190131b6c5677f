"""Who can be woken: the directory of doors, its sockets, and the slots of event loops."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..._process.witness import Life
from ..._shm import layout as L
from ..._wake.bell import is_door
from .case import Case
from .finding import Finding, Number, count, error, ok, warning
from .probe import is_alive
from .processes import inotify_instances, inotify_limit, open_files
from .segments import removal

__all__ = ["check_descriptors", "check_doors", "check_inotify", "check_slots"]

_LISTED = 20
_FEW_SLOTS = 0.9
_MANY_FILES = 0.8
_TOO_MANY_FILES = 0.95
_MANY_INSTANCES = 0.9


def check_doors(case: Case) -> Iterator[Finding]:
    """Look at the directory of doors and at each socket in it."""
    info = case.doors.info
    path = case.doors.path
    if info is None:
        taken = _tokens_by_pid(case)
        if any(os.path.exists(f"/proc/{pid}") for pid in taken):
            yield _doors_gone(case, path, sorted(taken))
        else:
            yield ok("bells", f"{path} is not there yet", "no process has ever waited", doors=0)
        return
    problems = list(_directory(case, info))
    stale: list[str] = []
    living = 0
    for name, entry in sorted(case.doors.entries.items()):
        full = os.path.join(path, name)
        if name == os.path.basename(case.witness.path) and stat.S_ISREG(entry.st_mode):
            continue
        if not stat.S_ISSOCK(entry.st_mode) or not is_door(name):
            problems.append(_stranger(full))
            continue
        alive = is_alive(full)
        if alive is False:
            stale.append(full)
            continue
        living += 1
        problems += _socket(case, full, entry)
    yield from problems
    if stale:
        yield _stale(case, stale)
    if not problems:
        yield ok(
            "bells",
            f"{path} is in order",
            f"{count(living, 'socket')} of living event loops; owner {info.st_uid}, mode "
            f"{stat.S_IMODE(info.st_mode):#o}",
            doors=living,
        )


def _tokens_by_pid(case: Case) -> dict[int, int]:
    messages = case.segments[0]
    if not messages.is_sound:
        return {}
    return {pid: process for _, process, pid in messages.slots()}


def _directory(case: Case, info: os.stat_result) -> Iterator[Finding]:
    path = case.doors.path
    remove = f"find out who made it, and {removal(case)}"
    if not stat.S_ISDIR(info.st_mode):
        yield error(
            "bells-owner",
            f"{path} is no directory",
            f"its mode is {info.st_mode:#o}: no process of the site can wait",
            f"find out who made it, and remove it:\n$ rm {path}",
        )
        return
    if info.st_uid not in (case.user, 0) and case.user != 0 and not case.is_shared:
        yield error(
            "bells-owner",
            f"{path} belongs to another user than the site's",
            f"it belongs to user {info.st_uid}, and the site runs as user {case.user}: processes "
            "of the site refuse it",
            remove,
            owner=info.st_uid,
            user=case.user,
        )
    elif info.st_uid == 0 and case.user != 0 and not case.is_shared:
        yield error(
            "bells-owner",
            f"{path} belongs to root",
            f"the site runs as user {case.user}, which cannot make sockets in it: perhaps "
            "somebody ran a command of the site as root",
            f"$ chown {case.user} {path}",
            owner=0,
            user=case.user,
        )
    wanted = (case.mode | (case.mode & 0o444) >> 2) & 0o777
    mode = stat.S_IMODE(info.st_mode)
    if mode != wanted:
        wider = mode & ~wanted & 0o777
        effect = (
            "others can look at or take away its sockets"
            if wider
            else "not everybody who is meant to can wake the others"
        )
        make = error if wider & 0o022 else warning
        yield make(
            "bells-mode",
            f"{path} has another mode than the site asks for",
            f"it is {mode:#o}, and mode={case.mode:#o} asks for {wanted:#o}: {effect}",
            f"give every process the same mode, then\n$ chmod {wanted:o} {path}",
            mode=mode,
            wanted_mode=wanted,
        )


def _socket(case: Case, path: str, info: os.stat_result) -> Iterator[Finding]:
    mode = stat.S_IMODE(info.st_mode)
    if mode != case.mode:
        yield warning(
            "bells-mode",
            f"{path} has another mode than the site asks for",
            f"it is {mode:#o}, not {case.mode:#o}: its process was started with another mode",
            "give every process of the site the same mode, and restart this one",
            path=path,
            mode=mode,
            wanted_mode=case.mode,
        )
    if info.st_uid != case.user and not case.is_shared:
        yield error(
            "bells-owner",
            f"{path} belongs to a process of another user",
            f"it runs as user {info.st_uid}, the site as user {case.user}: they cannot ring each "
            "other, and messages are late by a quarter of a second or more",
            "run every process of the site as one user, or give mode=0o660 to all",
            path=path,
            owner=info.st_uid,
            user=case.user,
        )


def _stranger(path: str) -> Finding:
    return warning(
        "bells",
        f"{path!r} is none of ours",
        "only sockets named by twelve hexadecimal digits and the file 'alive' are made there",
        "find out what made it, and remove it",
        path=path,
    )


def _stale(case: Case, paths: list[str]) -> Finding:
    listed = " ".join(os.path.basename(path) for path in paths[:_LISTED])
    more = f"; {len(paths) - _LISTED} more then" if len(paths) > _LISTED else ""
    return warning(
        "stale-sockets",
        f"{count(len(paths), 'socket')} in {case.doors.path}: nobody listens any more",
        "of processes that were killed; each takes one inode and nothing else",
        "no harm: whoever rings one removes it. By hand (their names are never used again"
        f"{more}):\n$ cd {case.doors.path} && rm {listed}",
        paths=list(paths),
    )


def _doors_gone(case: Case, path: str, pids: list[int]) -> Finding:
    return error(
        "bells-missing",
        f"{path} was deleted underneath {count(len(pids), 'process', 'processes')}",
        f"processes {', '.join(map(str, pids[:_LISTED]))} cannot be woken, and have not noticed: "
        "they were not told by inotify, and look every five seconds only while they wait",
        f"restart them, and find out what cleans up {case.shm}",
        pids=list(pids),
    )


def check_slots(case: Case) -> Iterator[Finding]:
    """Look whether the loops in the slots live."""
    messages = case.segments[0]
    if not messages.is_sound:
        return
    taken = messages.slots()
    dead = [(slot, pid) for slot, process, pid in taken if case.witness.ask(process) is Life.DEAD]
    numbers: dict[str, Number] = {"slots": len(taken), "limit": L.SLOT_COUNT, "dead": len(dead)}
    if dead:
        pids = ", ".join(str(pid) for _, pid in dead[:_LISTED])
        yield warning(
            "dead-slots",
            f"{len(dead)} of {count(len(taken), 'slot')}: the event loop is dead",
            f"of processes {pids}: killed, and nobody has met it since",
            "nothing: whoever waits or rings it next frees it. At once:\n"
            f"$ asgi-ipc repair --prefix {case.prefix}",
            pids=[pid for _, pid in dead],
            **numbers,
        )
    if len(taken) - len(dead) >= _FEW_SLOTS * L.SLOT_COUNT:
        yield warning(
            "slots-full",
            f"{len(taken) - len(dead)} of {L.SLOT_COUNT} slots for event loops are taken",
            "when all are, the next loop that wants to receive gets TooManyLoops",
            "receive from fewer event loops and threads, or split the site by prefix",
            **numbers,
        )
    elif not dead:
        yield ok(
            "slots",
            f"receiving: {count(len(taken), 'event loop')}",
            f"of {L.SLOT_COUNT} at most; none of them is dead",
            **numbers,
        )


def check_descriptors(case: Case) -> Iterator[Finding]:
    """Compare open files with their limits: a waiting loop needs one or two for each other."""
    highest, where, limit_there = 0.0, "this process", 0
    counts: dict[str, Number] = {}
    people: list[tuple[str, int | str]] = [(str(one), one.pid) for one in case.users]
    for name, pid in people or [("a process started like this one", "self")]:
        known = open_files(pid)
        if known is None:
            continue
        count, limit = known
        counts[str(pid)] = count
        if limit and count / limit >= highest:
            highest, where, limit_there = count / limit, name, limit
    if not counts:
        return
    numbers: dict[str, Number] = {"open": counts, "limit": limit_there}
    detail = f"{where} has {round(highest * limit_there)} of {limit_there} files open"
    if highest < _MANY_FILES:
        yield Finding("descriptors", "ok", "there are descriptors left", detail, "", dict(numbers))
        return
    yield Finding(
        "descriptors",
        "error" if highest >= _TOO_MANY_FILES else "warning",
        "a process has nearly no descriptors left",
        f"{detail}: without one it cannot ring others or be rung, and messages are late by a "
        "quarter of a second or more",
        "raise the limit (systemd: LimitNOFILE=65536; a shell: ulimit -n 65536) and restart it, "
        "or find out what it keeps open:\n$ ls -l /proc/PID/fd",
        dict(numbers),
    )


def check_inotify(case: Case) -> Iterator[Finding]:
    """Compare the inotify instances of the user with their limit: who waits wants one."""
    limit = inotify_limit()
    if limit is None:
        return
    instances = inotify_instances(case.user)
    numbers: dict[str, Number] = {"instances": instances, "limit": limit}
    detail = f"user {case.user} has {instances} of {limit}"
    if instances < _MANY_INSTANCES * limit:
        yield ok("inotify", "there are inotify instances left", detail, **numbers)
        return
    yield warning(
        "inotify",
        "nearly no inotify instances are left",
        f"{detail}: the event loops of a process that gets none are not told when another is "
        "killed, and look every five seconds for what that has left",
        "raise the limit:\n$ sysctl fs.inotify.max_user_instances=1024",
        **numbers,
    )
