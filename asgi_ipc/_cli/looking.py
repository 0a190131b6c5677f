"""The commands that only look: ``stats``, ``channels``, ``groups``, ``processes``, ``peek``."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from .._operator import peek as peek_module
from .._operator.inspect import Inspector
from .._operator.reading import Channel, Group, Process, Reading
from ..names import check_channel, check_group
from . import documents, tables
from .codes import Code
from .options import AsJson, Limit, Patience, Prefix, console, ending, fail, print_json
from .rates import Rates

__all__ = [
    "ChannelOrder",
    "by_size",
    "channels",
    "groups",
    "matching",
    "ordered",
    "peek",
    "processes",
    "stats",
]

Pattern = Annotated[
    str,
    typer.Option("--filter", "-f", metavar="GLOB", help="Only names that match, like 'http.*'."),
]


class ChannelOrder(StrEnum):
    """What channels can be sorted by; all but the name largest first."""

    depth = "depth"
    rate = "rate"
    sent = "sent"
    age = "age"
    full = "full"
    name = "name"


def ordered(channels: Iterable[Channel], order: ChannelOrder, rates: Rates) -> list[Channel]:
    """Return channels in an order; equals by name."""
    key: dict[ChannelOrder, Callable[[Channel], float]] = {
        ChannelOrder.depth: lambda channel: channel.depth,
        ChannelOrder.rate: lambda channel: rates.of_channel(channel.name) or 0,
        ChannelOrder.sent: lambda channel: channel.sent,
        ChannelOrder.age: lambda channel: channel.oldest_age_s,
        ChannelOrder.full: lambda channel: channel.full + sum(leaf.full for leaf in channel.leaves),
        ChannelOrder.name: lambda _: 0,
    }
    return sorted(channels, key=lambda channel: (-key[order](channel), channel.name))


def matching(names: Iterable[Any], pattern: str) -> list[Any]:
    """Return what has a name that matches a glob; everything if it is empty."""
    return [one for one in names if not pattern or fnmatch.fnmatchcase(one.name, pattern)]


def _first(rows: Sequence[Any], limit: int) -> Sequence[Any]:
    return rows[:limit] if limit else rows


def by_size(groups: Iterable[Group]) -> list[Group]:
    """Return groups, the largest first."""
    return sorted(groups, key=lambda group: (-group.members, group.name))


@ending
def stats(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    limit: Limit = 20,
    pattern: Pattern = "",
    watch: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Print again after so long, with rates; 0: once."
        ),
    ] = 0,
    count: Annotated[int, typer.Option(min=0, help="With --watch: how often; 0: for ever.")] = 0,
    patience: Patience = 1.0,
) -> None:
    """Print counts, drops by cause, memory, channels, groups and processes of a site.

    Rates per second need two readings: see --watch. In JSON each reading is one line.
    """
    rates = Rates()
    with Inspector(prefix, patience=patience) as inspector:
        printed = 0
        while True:
            inspector.follow()
            reading = inspector.read()
            rates.add(reading)
            chosen = ordered(matching(reading.channels, pattern), ChannelOrder.depth, rates)
            _print_stats(
                reading,
                rates,
                _first(chosen, limit),
                _first(by_size(matching(reading.groups, pattern)), limit),
                inspector.processes(reading.loops),
                as_json=as_json,
            )
            printed += 1
            if not watch or printed == count:
                return
            time.sleep(watch)


def _print_stats(
    reading: Reading,
    rates: Rates,
    channels: Sequence[Channel],
    groups: Sequence[Group],
    processes: Sequence[Process],
    *,
    as_json: bool,
) -> None:
    if as_json:
        print_json(documents.stats_document(reading, rates, channels, groups, processes))
    else:
        out = console()
        out.print(tables.stats_view(reading, rates, channels, groups, processes, out.width))


@ending
def channels(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    sort: Annotated[ChannelOrder, typer.Option(help="Order.")] = ChannelOrder.depth,
    pattern: Pattern = "",
    limit: Limit = 0,
    patience: Patience = 1.0,
) -> None:
    """Print the channels of a site: depth, counts, oldest message, who waits for it."""
    with Inspector(prefix, patience=patience) as inspector:
        reading = inspector.read()
    rows = _first(ordered(matching(reading.channels, pattern), sort, Rates()), limit)
    if as_json:
        rest = {"channels": [documents.channel_document(channel) for channel in rows]}
        print_json(documents.frame(reading) | rest)
    else:
        out = console()
        out.print(tables.channels_table(rows, reading.loops, width=out.width))


@ending
def groups(
    group: Annotated[str, typer.Argument(help="Print the members of this one.")] = "",
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    pattern: Pattern = "",
    limit: Limit = 0,
    patience: Patience = 1.0,
) -> None:
    """Print the groups of a site by size, or the members of one group."""
    if group:
        check_group(group)
    with Inspector(prefix, patience=patience) as inspector:
        reading = inspector.read()
        if group:
            found = peek_module.members(inspector.groups, group, limit or 1 << 62)
    if group:
        row = next((one for one in reading.groups if one.name == group), Group(group, 0, 0, ()))
        members, is_complete = found or ([], True)
        if as_json:
            print_json(documents.members_document(reading, row, members, is_complete))
        else:
            console().print(tables.members_table(members))
        return
    rows = _first(by_size(matching(reading.groups, pattern)), limit)
    if as_json:
        rest = {"groups": [documents.group_document(one) for one in rows]}
        print_json(documents.frame(reading) | rest)
    else:
        console().print(tables.groups_table(rows))


@ending
def processes(prefix: Prefix = "asgi", as_json: AsJson = False, patience: Patience = 1.0) -> None:
    """Print the processes of a site: loops that receive, what they wait for, who is dead."""
    with Inspector(prefix, patience=patience) as inspector:
        reading = inspector.read()
        rows = inspector.processes(reading.loops)
    if as_json:
        rest = {"processes": [documents.process_document(process) for process in rows]}
        print_json(documents.frame(reading) | rest)
    else:
        console().print(tables.processes_table(rows))


@ending
def peek(
    channel: Annotated[str, typer.Argument(help="A channel, 'a!', or a full name 'a!b'.")],
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    limit: Limit = 10,
    patience: Patience = 1.0,
) -> None:
    """Print the first messages of a channel; they stay where they are."""
    check_channel(channel)
    with Inspector(prefix, patience=patience) as inspector:
        found = peek_module.peek(inspector.messages, channel, limit or 1 << 62)
    document = documents.peek_document(prefix, channel, found)
    if as_json:
        print_json(document)
        return
    if found.messages:
        console().print(tables.messages_table(document["messages"]))
    if found.searched < found.depth:
        console().print(f"looked at {found.searched} of {found.depth} waiting messages")
    elif not found.messages:
        fail(Code.OK, f"no message waits in {channel}", as_json=False)
