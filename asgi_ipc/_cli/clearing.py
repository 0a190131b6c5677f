"""The commands that take away: ``flush`` and ``unlink``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from .. import AsyncIPCChannelLayer
from .._operator import procfs
from .._operator.image import LockHeld, NoSite
from .._operator.inspect import Inspector
from .._operator.reading import Process
from .._wake.bell import bells_directory
from .._wake.blocking import drive
from .._wake.removing import names_of, remove_site
from ..exceptions import SegmentError
from ..names import check_channel, check_group, home_of
from . import documents, tables, words
from .attaching import layer_of
from .codes import Code
from .options import AsJson, Patience, Prefix, console, ending, fail, is_terminal, print_json

__all__ = ["flush", "unlink"]

_AT_ONCE = 64  # messages of a process-specific queue in one transaction


@ending
def flush(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    channel: Annotated[
        list[str] | None, typer.Option(help="Only this queue, 'a' or 'a!'. May be repeated.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Only this group's members. May be repeated.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    patience: Patience = 10.0,
) -> None:
    """Drop waiting messages and groups: all of a site, or some.

    All messages go in one step, then all groups; a kill cannot cut a step in two. Of one
    channel the messages that wait now are taken in small transactions, and count as received;
    of one group the members are discarded one by one.
    """
    channels, groups = channel or [], group or []
    _check_names(channels, groups, as_json=as_json)
    is_all = not channels and not groups
    if is_all and not yes:
        if not is_terminal(sys.stdin):
            fail(
                Code.USAGE,
                "this drops every message and group, and nobody can be asked here: repeat it with "
                "--yes, or name a --channel or --group",
                as_json=as_json,
            )
        typer.confirm(f"Drop every message and group of {prefix!r}?", abort=True, err=True)
    with layer_of(prefix, patience=patience) as layer:
        memberships = None
        if is_all:
            messages = int(layer.sync.global_statistics()["messages_pending"])
            layer.sync.flush()
        else:
            messages = sum(_drop_messages(layer, name) for name in channels)
            memberships = sum(_drop_members(layer, name) for name in groups)
    if as_json:
        report = {"all": is_all, "messages": messages, "memberships": memberships}
        print_json({"prefix": prefix, **report})
        return
    ended = "every group" if memberships is None else words.many(memberships, "membership")
    print(f"dropped {words.many(messages, 'message')} and {ended}")


def _check_names(channels: list[str], groups: list[str], *, as_json: bool) -> None:
    for name in channels:
        if home_of(check_channel(name)) != name:
            fail(
                Code.USAGE,
                f"the messages of {name!r} are in the queue of its process: flush "
                f"{home_of(name)!r} with everything below it",
                as_json=as_json,
            )
    for name in groups:
        check_group(name)


def _drop_messages(layer: AsyncIPCChannelLayer, home: str) -> int:
    """Take what waits in a queue now, in transactions of their own; return how many."""
    store = layer._site.messages
    left = drive(layer._run(store.depth, home))
    dropped = 0
    while left > 0:
        taken = drive(layer._run(store.take, (home,), limit=min(left, _AT_ONCE), wanted=None))
        if not taken.messages:
            break  # somebody else was faster, or what was left has expired
        left -= len(taken.messages)
        dropped += len(taken.messages)
    return dropped


def _drop_members(layer: AsyncIPCChannelLayer, group: str) -> int:
    """Discard the members that a group has now; return how many."""
    members = layer.sync.group_channels(group)
    for member in members:
        layer.sync.group_discard(group, member)
    return len(members)


@ending
def unlink(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while processes are attached.")
    ] = False,
) -> None:
    """Remove the segments and sockets of a site, with everything in them.

    Refuses while a process is attached, and says which. With --force those that are attached
    go on with what they have, notice it within seconds and attach to new, empty segments.
    """
    files = _files_of(prefix)
    if not names_of(prefix) and not os.path.lexists(bells_directory(prefix)):
        raise NoSite(f"there is nothing to remove: no segment and no socket of {prefix!r}")
    attached = _attached(prefix, files)
    if attached and not force:
        who = [documents.process_document(process) for process in attached]
        if not as_json:
            console().print(tables.processes_table(attached))
        fail(
            Code.ATTACHED,
            f"{words.many(len(attached), 'process')} attached to {prefix!r}: stop them first, or "
            "use --force",
            as_json=as_json,
            processes=who,
        )
    removed, strangers = remove_site(prefix)
    if as_json:
        who = [documents.process_document(process) for process in attached]
        print_json({"prefix": prefix, "removed": removed, "strangers": strangers, "processes": who})
        return
    print("removed " + (" ".join(removed) or "nothing"))
    if strangers:
        print("left, as none of ours: " + words.printable(" ".join(strangers)))


def _files_of(prefix: str) -> list[tuple[str, int]]:
    """Return name and inode of the segments that exist, whatever is in them."""
    found = []
    for path in names_of(prefix):
        with suppress(FileNotFoundError):  # gone meanwhile
            found.append((os.path.basename(path), os.lstat(path).st_ino))
    return found


def _attached(prefix: str, files: list[tuple[str, int]]) -> list[Process]:
    """Return who has a segment mapped, or owns a slot and may be alive elsewhere."""
    try:
        with Inspector(prefix) as inspector:
            try:
                loops = inspector.read().loops
            except LockHeld:
                loops = []  # whoever holds the lock is attached
            processes = inspector.processes(loops)
    except SegmentError:
        # Half a site, another layout version, damaged: then what has it mapped must do.
        processes = [
            Process(pid, True, True, procfs.state_of(pid), procfs.command_line(pid), ())
            for pid in sorted(procfs.mapping(files) - {os.getpid()})
        ]
    return [process for process in processes if process.alive is not False]
