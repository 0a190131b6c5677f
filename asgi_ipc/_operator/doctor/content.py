"""What is inside the segments: the lock, the log, the memory, the channels, the clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from ..._process.witness import Life
from ..._shm import layout as L
from ...exceptions import SegmentCorrupt, SegmentError
from ..image import Image, LockHeld
from ..inspect import Channel, Inspector, Memory, Reading
from .case import Case
from .finding import Finding, Number, count, error, mib, ok, warning
from .processes import command_of

__all__ = ["check_clock", "check_content"]

_LISTED = 5
_NEARLY_FULL = 0.9
_OLD_S = 10.0  # a message that waits for longer, with nobody there to take it
_SLACK_S = 2.0  # two readings of a clock


def check_content(case: Case) -> Iterator[Finding]:
    """Look into both segments, if their locks can be had."""
    if not all(raw.is_sound for raw in case.segments):
        return  # which was said, with its reason
    try:
        inspector = Inspector(case.prefix, patience=case.watch_s)
    except SegmentError:
        return  # deleted, or replaced, since it was opened: the next examination says so
    with inspector:
        locks = [_lock(image) for image in (inspector.messages, inspector.groups)]
        yield from locks
        if any(one.severity != "ok" for one in locks):
            return
        try:
            reading = inspector.read()
        except LockHeld as exc:
            yield _held(exc)
        except SegmentCorrupt as exc:
            yield _damaged(case, exc)
        except SegmentError as exc:
            yield warning("channels", "the site could not be read", str(exc), "look again")
        else:
            yield from _pending_log(reading)
            for kind, memory in zip((L.KIND_MESSAGES, L.KIND_GROUPS), reading.memory, strict=True):
                yield _memory(kind, memory, reading.totals.memory_full)
            yield _channels(case, reading)


def _damaged(case: Case, exc: SegmentCorrupt) -> Finding:
    return error(
        "segment-damaged",
        f"a segment of {case.prefix} is damaged",
        str(exc),
        f"look closer with\n$ asgi-ipc check --prefix {case.prefix}",
    )


# -- the lock and the log ----------------------------------------------------------------


def _lock(image: Image) -> Finding:
    name = image.name.lstrip("/")
    began = time.monotonic()
    try:
        image.transact(lambda: None)
    except LockHeld as exc:
        return _held(exc)
    except SegmentCorrupt as exc:
        return error("segment-damaged", f"{name} is damaged", str(exc), "")
    waited_s = time.monotonic() - began
    return ok(
        "lock",
        f"the lock of {name} can be had",
        f"after {waited_s * 1000:.1f} ms",
        name=name,
        waited_s=waited_s,
    )


def _held(exc: LockHeld) -> Finding:
    name, holder = exc.segment.lstrip("/"), exc.holder
    numbers: dict[str, Number] = {
        "name": name,
        "pid": holder.pid,
        "state": holder.state,
        "idle_s": holder.idle_s,
    }
    if holder.pid is None:
        return warning(
            "lock-busy",
            f"the lock of {name} was not had",
            "it is held by a process that cannot be seen from here, in another container perhaps",
            "look from there, or on the host\n$ cat /proc/locks",
            **numbers,
        )
    who = f"process {holder.pid} ({command_of(holder.pid)})"
    if holder.frozen is not None:
        return error(
            "lock-frozen",
            f"the lock of {name} is held by process {holder.pid}, which is frozen",
            f"{who} is in a control group that is frozen (docker pause, systemctl freeze): "
            "everybody else gets StoreLocked after lock_timeout",
            "thaw it (docker unpause, systemctl thaw): nothing is lost. A kill would wait for the "
            f"thaw as well\n$ {holder.frozen}",
            **numbers,
        )
    if holder.is_stopped:
        since = "" if holder.idle_s is None else f", and has been for {holder.idle_s:.1f} s"
        return error(
            "lock-stopped",
            f"the lock of {name} is held by process {holder.pid}, which is stopped",
            f"{who} is in state {holder.state}{since}; everybody else gets StoreLocked after "
            "lock_timeout",
            "continue it, or end it: its lock is free at once, and nothing is lost but what it "
            f"had taken\n$ kill -CONT {holder.pid}\n$ kill -KILL {holder.pid}",
            **numbers,
        )
    return warning(
        "lock-busy",
        f"the lock of {name} was not had",
        f"the last to hold it was {who}, in state {holder.state}",
        "look again: if it is the same process each time, it hangs, and ending it frees the lock; "
        f"otherwise the machine is too busy\n$ kill -KILL {holder.pid}",
        **numbers,
    )


def _pending_log(reading: Reading) -> Iterator[Finding]:
    if reading.pending_log:
        yield warning(
            "log-pending",
            f"a killed process has left an operation of {reading.prefix} unfinished",
            "it is in the log, whole, and is shown as if it were finished",
            "nothing: the next process that uses the site finishes it. At once:\n"
            f"$ asgi-ipc repair --prefix {reading.prefix}",
        )


# -- memory and channels -----------------------------------------------------------------


def _memory(kind: int, memory: Memory, refused: int) -> Finding:
    name = memory.segment.lstrip("/")
    share = memory.used / (memory.used + memory.free)
    detail = (
        f"{mib(memory.used)} of {mib(memory.used + memory.free)} ({share:.0%}) are in use; the "
        f"largest piece that is free has {mib(memory.largest_free)}"
    )
    numbers: dict[str, Number] = {
        "name": name,
        "used_bytes": memory.used,
        "free_bytes": memory.free,
        "largest_free_bytes": memory.largest_free,
    }
    if kind == L.KIND_MESSAGES:
        numbers["refused"] = refused
        if refused:
            detail += f"; {refused} sends were refused for lack of it since it was made"
    if share < _NEARLY_FULL:
        return ok("memory", f"{name} has room", detail, **numbers)
    option = "message_memory" if kind == L.KIND_MESSAGES else "group_memory"
    return warning(
        "memory-full",
        f"{name} is {share:.0%} full",
        f"{detail}: when it is full, ChannelFull is raised",
        f"see what holds it (asgi-ipc top), or raise {option}: stop every process, remove the "
        "segment, start them with the new size",
        **numbers,
    )


def _channels(case: Case, reading: Reading) -> Finding:
    dead = {loop.slot for loop in reading.loops if case.witness.ask(loop.process) is Life.DEAD}
    waiting = [one for one in reading.channels if one.depth]
    unread = [
        one
        for one in waiting
        if one.oldest_age_s > _OLD_S and (one.loop in dead or not set(one.parked) - dead)
    ]
    unread.sort(key=lambda one: -one.oldest_age_s)
    totals = reading.totals
    detail = (
        f"waiting: {count(totals.pending, 'message')}, in {len(waiting)} of "
        f"{count(totals.channels, 'channel')}"
    )
    if waiting:
        detail += f", the oldest for {totals.oldest_age_s:.1f} s"
    numbers: dict[str, Number] = {
        "channels": totals.channels,
        "pending": totals.pending,
        "oldest_s": totals.oldest_age_s,
        "refused": totals.full,
        "dropped": totals.dropped,
    }
    if not unread:
        return ok("channels", "no message waits for long without a reader", detail, **numbers)
    lines = "; ".join(_line(one) for one in unread[:_LISTED])
    more = f"; and {len(unread) - _LISTED} more" if len(unread) > _LISTED else ""
    return warning(
        "channel-unread",
        f"{count(len(unread), 'channel')} with old messages that nobody waits for",
        f"{lines}{more}. {detail}",
        "start their readers, or see why they are busy; a channel that nobody is to read can be "
        f"emptied\n$ asgi-ipc flush --prefix {case.prefix} --channel NAME",
        names=[one.name for one in unread],
        **numbers,
    )


def _line(channel: Channel) -> str:
    refused = channel.full + sum(leaf.full for leaf in channel.leaves)
    return (
        f"{channel.name!r}: {count(channel.depth, 'message')}, the oldest for "
        f"{channel.oldest_age_s:.0f} s, {refused} refused"
    )


# -- clocks ------------------------------------------------------------------------------


def check_clock(case: Case) -> Iterator[Finding]:
    """Compare the clocks that messages and segments are stamped with."""
    problems = [*_namespaces(case), *_steps(case)]
    yield from problems
    if not problems:
        yield ok("clock", "the clocks agree", "of the attached processes, and of the segments")


def _namespaces(case: Case) -> Iterator[Finding]:
    mine = _time_namespace("self")
    others = [
        one.pid for one in case.users if mine and _time_namespace(str(one.pid)) not in (None, mine)
    ]
    if others:
        yield error(
            "clock-namespace",
            "processes of the site have another monotonic clock",
            f"processes {', '.join(map(str, others))} are in another time namespace than this one: "
            "what one side sends expires too early or too late for the other",
            "run all processes of a site in one time namespace (unshare --time and some container "
            "runtimes make new ones)",
            pids=list(others),
        )


def _steps(case: Case) -> Iterator[Finding]:
    for raw in case.segments:
        if not raw.is_sound:
            continue
        ahead_s = raw.word(L.CREATED) / 1e9 - time.time()
        if ahead_s > _SLACK_S:
            yield warning(
                "clock-stepped",
                f"{raw.name} was created {ahead_s:.0f} s in the future",
                "the wall clock was set back since; nothing depends on it but what is shown",
                "see that the clock is kept in time\n$ timedatectl",
                name=raw.name,
                ahead_s=ahead_s,
            )


def _time_namespace(pid: str) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/time").st_ino
    except OSError:
        return None  # ended, another user's, or a kernel without them
