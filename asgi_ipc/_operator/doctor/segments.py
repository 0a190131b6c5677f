"""The two segments of a site: whether they can be used, and by whom; and those of others."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from ..._shm import layout as L
from .. import procfs
from .case import Case
from .finding import Finding, Number, count, error, mib, ok, warning
from .processes import Process
from .raw import Raw
from .sites import sites

__all__ = ["check_processes", "check_segments", "check_strangers", "removal"]

_LISTED = 10


def removal(case: Case) -> str:
    """Return how to remove the site, with the command once nobody uses it any more."""
    if case.users or case.listeners():
        return (
            "stop every process of the site, then remove it with asgi-ipc unlink. Who they are:\n"
            f"$ asgi-ipc processes --prefix {case.prefix}"
        )
    return f"remove it:\n$ asgi-ipc unlink --prefix {case.prefix}"


def check_segments(case: Case) -> Iterator[Finding]:
    """Look at both segments as files, and at their headers."""
    if all(raw.info is None for raw in case.segments):
        yield _no_site(case)
        return
    for raw in case.segments:
        if raw.info is not None:
            yield from _one(case, raw)
        else:
            yield warning(
                "segment-missing",
                f"{raw.path} is missing",
                "its twin is there, and they are made together: somebody deleted it",
                "processes that run notice it while they wait or at the next use and make a new "
                "one, the next to start does so too; find out who deleted it (RemoveIPC=, a "
                f"clean-up of {case.shm})",
                name=raw.name,
            )


def _no_site(case: Case) -> Finding:
    others = sites(case.seen)
    names = ", ".join(f"{one.prefix} ({one.state})" for one in others[:_LISTED])
    more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
    return warning(
        "site-missing",
        f"there is no site {case.prefix!r}",
        "no process of it has started yet, or the prefix is another one; on this machine there "
        f"{'are' if len(others) > 1 else 'is'} {names + more or 'none'}",
        "give the prefix that the site's layers have. All of them:\n$ asgi-ipc sites",
        prefixes=[one.prefix for one in others],
    )


def _one(case: Case, raw: Raw) -> Iterator[Finding]:
    unusable = _unusable(case, raw)
    if unusable is not None:
        yield unusable
        return
    problems = [one for one in (_owner(case, raw), _mode(case, raw)) if one is not None]
    yield from problems
    if raw.asked_bytes not in (None, raw.size_bytes):
        yield warning(
            "segment-size",
            f"{raw.path} was made with another size than is asked for now",
            f"it has {raw.size_bytes} bytes and keeps them; asked for are {raw.asked_bytes}",
            "give every process of the site, and this examination, the same sizes; to change "
            f"them {removal(case)}\nand start its processes again",
            name=raw.name,
            size_bytes=raw.size_bytes,
            asked_bytes=raw.asked_bytes,
        )
    elif not problems:
        assert raw.info is not None
        created_s = raw.word(L.CREATED) / 1e9
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created_s))
        yield ok(
            "segment",
            f"{raw.path} is in order",
            f"{mib(raw.size_bytes)}, of which {mib(raw.backed_bytes)} have memory; owner "
            f"{raw.info.st_uid}, mode {stat.S_IMODE(raw.info.st_mode):#o}, layout version "
            f"{raw.word(L.VERSION_WORD)}, created {when}",
            name=raw.name,
            size_bytes=raw.size_bytes,
            backed_bytes=raw.backed_bytes,
            owner=raw.info.st_uid,
            mode=stat.S_IMODE(raw.info.st_mode),
            layout_version=raw.word(L.VERSION_WORD),
            created=created_s,
        )


def _unusable(case: Case, raw: Raw) -> Finding | None:
    """Return why nobody can use what stands in a segment's place, if so."""
    assert raw.info is not None
    remove = removal(case)
    if not stat.S_ISREG(raw.info.st_mode):
        return error(
            "segment-not-ours",
            f"{raw.path} is no file",
            f"its mode is {raw.info.st_mode:#o}",
            f"remove it, or choose another prefix:\n$ ls -ld {raw.path}",
            name=raw.name,
        )
    if raw.fd < 0:
        mode = stat.S_IMODE(raw.info.st_mode)
        return error(
            "segment-unreadable",
            f"{raw.path} may not be read",
            f"it belongs to user {raw.info.st_uid} with mode {mode:#o}, and this is user "
            f"{os.geteuid()}",
            "look as the user of the site, or as root; or, if this user is meant to be in the "
            "site, run all of its processes as one user or with mode=0o660",
            name=raw.name,
            owner=raw.info.st_uid,
            mode=mode,
        )
    if raw.is_original:
        return error(
            "segment-original",
            f"{raw.path} was left by asgi_ipc 1.x",
            f"{raw.size_bytes} bytes; processes of both versions share nothing",
            remove,
            name=raw.name,
        )
    magic, ready = raw.word(L.MAGIC_WORD), raw.word(L.READY_WORD)
    if magic not in (0, L.MAGIC):
        return error(
            "segment-not-ours",
            f"{raw.path} is not a segment of asgi_ipc",
            f"it begins with {magic:#x}",
            f"choose another prefix, or remove it:\n$ rm {raw.path}",
            name=raw.name,
        )
    if ready == 0:
        return warning(
            "segment-unfinished",
            f"{raw.path} is not finished",
            f"{raw.size_bytes} bytes: it is being made just now, or its creator died half way",
            "nothing: the next process of the site makes it whole",
            name=raw.name,
        )
    version = raw.word(L.VERSION_WORD)
    if ready == L.READY_MARK and version != L.LAYOUT_VERSION:
        return error(
            "segment-layout",
            f"{raw.path} has another layout version",
            f"it has {version}, and this asgi_ipc uses {L.LAYOUT_VERSION}: they cannot share",
            f"finish the upgrade: {remove}",
            name=raw.name,
            layout_version=version,
            wanted_version=L.LAYOUT_VERSION,
        )
    broken = raw.contradictions()
    if ready != L.READY_MARK:
        broken.append(f"the ready mark is {ready:#x}")
    if raw.word(L.KIND_WORD) != raw.kind:
        broken.append(f"it is of kind {raw.word(L.KIND_WORD)}, not {raw.kind}")
    if broken:
        return error("segment-damaged", f"{raw.path} is damaged", "; ".join(broken), remove)
    return None


def _owner(case: Case, raw: Raw) -> Finding | None:
    assert raw.info is not None
    owner = raw.info.st_uid
    if case.user in (owner, 0) or case.is_shared:
        return None
    return error(
        "segment-owner",
        f"{raw.path} belongs to another user than the site's",
        f"it belongs to user {owner} with mode {stat.S_IMODE(raw.info.st_mode):#o}, and the site "
        f"runs as user {case.user}: perhaps somebody ran a command of the site as user {owner}",
        "run every process and command of the site as one user, or, for several users of one "
        f"group, give mode=0o660 to all. To make it anew {removal(case)}",
        name=raw.name,
        owner=owner,
        user=case.user,
    )


def _mode(case: Case, raw: Raw) -> Finding | None:
    assert raw.info is not None
    mode = stat.S_IMODE(raw.info.st_mode)
    numbers: dict[str, Number] = {"name": raw.name, "mode": mode, "wanted_mode": case.mode}
    than = "than the site asks for" if case.is_mode_given else "than the other segment"
    if mode & ~case.mode & 0o777:
        return error(
            "segment-mode",
            f"{raw.path} is open to more users {than}",
            f"its mode is {mode:#o}, wider than {case.mode:#o}: processes that start refuse it",
            f"if that is meant, pass mode={mode:#o} to every process; else\n"
            f"$ chmod {case.mode:o} {raw.path}",
            **numbers,
        )
    if case.mode & ~mode & 0o777:
        return warning(
            "segment-mode",
            f"{raw.path} is open to fewer users than the site asks for",
            f"its mode is {mode:#o}, and the site asks for {case.mode:#o}: other users stay out",
            f"give every process the same mode, then\n$ chmod {case.mode:o} {raw.path}",
            **numbers,
        )
    if mode & 0o007 and not case.is_mode_given:
        return warning(
            "segment-mode",
            f"{raw.path} is open to everybody on this machine",
            f"its mode is {mode:#o}: any user may read messages, or send them",
            "if that is meant, say so (--mode); else give every process mode=0o600, or 0o660 for "
            f"one group, then\n$ chmod o= {raw.path}",
            **numbers,
        )
    return None


# -- who uses them -----------------------------------------------------------------------


def check_processes(case: Case) -> Iterator[Finding]:
    """Look at who is attached: to these segments, to deleted ones, to others of that name."""
    hidden = ""
    if case.seen.hidden:
        hidden = f"; {count(case.seen.hidden, 'process', 'processes')} may not be looked at"
        hidden += "" if os.geteuid() == 0 else " (root may)"
    if case.users:
        names = ", ".join(str(process) for process in case.users[:_LISTED])
        more = f" and {len(case.users) - _LISTED} more" if len(case.users) > _LISTED else ""
        what = f"attached: {count(len(case.users), 'process', 'processes')}"
        detail = f"{names}{more}{hidden}"
    elif listeners := case.listeners():
        what = "nobody that can be seen from here is attached"
        detail = f"in other containers, {count(listeners, 'socket')} listened on{hidden}"
    else:
        waits = any(raw.info for raw in case.segments)
        what = "nobody is attached"
        detail = ("what is there waits for the next" if waits else "nothing is there yet") + hidden
    yield ok(
        "processes", what, detail, pids=[one.pid for one in case.users], hidden=case.seen.hidden
    )
    for process in case.users:
        thaw = procfs.thawing(process.pid)
        if thaw is not None or procfs.is_stopped(process.state):
            yield _stopped(process, thaw)
    device = os.stat(case.shm).st_dev
    mine = {(raw.info.st_dev, raw.info.st_ino) for raw in case.segments if raw.info}
    for process in case.seen.users_of(case.names):
        old = [one for one in process.mappings if one.name in case.names]
        deleted = [one.name for one in old if one.is_deleted and one.device == device]
        if deleted:
            yield _deleted(case, process, deleted)
        elsewhere = [
            one.name for one in old if one.device != device and (one.device, one.inode) not in mine
        ]
        if elsewhere and _is_of_this_system(process):
            yield _elsewhere(case, process, elsewhere)


def _stopped(process: Process, thaw: str | None) -> Finding:
    word = "stopped" if thaw is None else "frozen"
    remedy = f"continue it, or end it:\n$ kill -CONT {process.pid}\n$ kill -KILL {process.pid}"
    return warning(
        "process-stopped",
        f"process {process.pid} is {word}",
        f"{process} is in state {process.state}: what it receives for waits until it expires",
        remedy if thaw is None else f"thaw it (docker unpause, systemctl thaw):\n$ {thaw}",
        pid=process.pid,
        state=process.state,
        frozen=thaw is not None,
    )


def _deleted(case: Case, process: Process, names: list[str]) -> Finding:
    return error(
        "segment-deleted",
        f"process {process.pid} uses a deleted segment: the site is split",
        f"{process} still has {' and '.join(sorted(names))}, deleted from {case.shm}; processes "
        "that started later use another one",
        "it follows within a second of its next send, within five while it waits; one that does "
        f"not is restarted. Find out who deleted it: RemoveIPC=, a clean-up of {case.shm}, a "
        "line in an old unit",
        pid=process.pid,
        names=sorted(names),
    )


def _elsewhere(case: Case, process: Process, names: list[str]) -> Finding:
    return warning(
        "segment-elsewhere",
        f"process {process.pid} has a /dev/shm of its own",
        f"{process} uses {' and '.join(names)} on another filesystem than {case.shm} here: "
        "nothing passes between the two",
        "take PrivateMounts=, TemporaryFileSystem=/dev/shm or a bind mount of it out of its unit",
        pid=process.pid,
        names=list(names),
    )


def _is_of_this_system(process: Process) -> bool:
    """Whether it is in no container: one with its own /dev/shm is as it should be."""
    try:
        return os.stat(f"/proc/{process.pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False  # ended, or another user's


def check_strangers(case: Case) -> Iterator[Finding]:
    """Look for segments of other prefixes that nobody is attached to: said, and no fault here."""
    others = [one for one in sites(case.seen) if one.prefix != case.prefix]
    stale = {one.prefix: one.backed_bytes for one in others if one.state == "stale"}
    if not stale:
        yield ok("stale-segments", "no other site has left segments behind", sites=len(others))
        return
    total = sum(stale.values())
    yield ok(
        "stale-segments",
        f"{count(len(stale), 'other site')} left segments that nobody is attached to, {mib(total)}",
        "asgi-ipc sites lists them",
        prefixes=dict(stale),
        total_bytes=total,
    )
