"""Readings as tables for a terminal, shared by the commands that print once and by ``top``."""

from __future__ import annotations

import pwd
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .._operator.doctor import StandingSite
from .._operator.peek import Member
from .._operator.procfs import is_stopped
from .._operator.reading import Channel, Group, Loop, Memory, Process, Reading
from . import words
from .messages import dumps
from .rates import Rates

__all__ = [
    "channels_table",
    "groups_table",
    "members_table",
    "memory_table",
    "messages_table",
    "processes_table",
    "sites_table",
    "stats_view",
    "totals_table",
]

_BAR = 10  # cells
_WIDE = 500
_ROOM_FOR = {"sent": 100, "received": 100, "expired": 100, "rate": 50, "full": 60}
_OLD_S = 10.0  # a message that waits for longer, with nobody there to take it


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in which numbers keep their width and texts give way."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        is_number = column in right
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def _text(content: str, style: str = "") -> Text:
    """Return a cell that is cut off where its column ends."""
    return Text(words.printable(content), style=style, no_wrap=True, overflow="ellipsis")


def channels_table(
    channels: Iterable[Channel],
    loops: Iterable[Loop],
    rates: Rates | None = None,
    *,
    width: int = _WIDE,
) -> Table:
    """Return channels, one a line; who reads them by the processes of their loops.

    In a narrow window the counts since the beginning give way to the names.
    """
    numbers = ("depth", "rate", "sent", "received", "expired", "full", "oldest")
    shown = [one for one in numbers if width >= _ROOM_FOR.get(one, 0)]
    table = _table("channel", *shown, "read by", right=numbers)
    pids = {loop.slot: str(loop.pid) for loop in loops}
    for channel in channels:
        is_stuck = _is_stuck(channel, rates)
        depth_style = "bold red" if is_stuck else "bold" if channel.depth else "dim"
        cells: dict[str, Text | str] = {
            "depth": Text(words.count(channel.depth), style=depth_style),
            "rate": words.rate(rates.of_channel(channel.name)) if rates is not None else "",
            "sent": words.count(channel.sent),
            "received": words.count(channel.received),
            "expired": _alarming(channel.expired, "yellow"),
            "full": _alarming(channel.full + sum(leaf.full for leaf in channel.leaves), "red"),
            "oldest": words.age(channel.oldest_age_s) if channel.depth else "",
        }
        table.add_row(
            _text(channel.name),
            *(cells[one] for one in shown),
            _text(_readers(channel, pids, is_stuck), "red" if is_stuck else ""),
        )
    return table


def _is_stuck(channel: Channel, rates: Rates | None) -> bool:
    """Whether messages wait, and nobody seems to be there to take them."""
    if not channel.depth or channel.parked:
        return False
    grows = rates is not None and rates.grows_unread(channel)
    return grows or channel.oldest_age_s > _OLD_S


def _readers(channel: Channel, pids: dict[int, str], is_stuck: bool) -> str:
    if channel.parked:
        found = dict.fromkeys(pids.get(slot, "?") for slot in channel.parked)
        return _some(list(found))
    if channel.loop is not None:
        return f"({pids.get(channel.loop, '?')})"
    return "nobody" if is_stuck else ""


def _alarming(number: int, style: str) -> Text:
    return Text(words.count(number), style=style if number else "dim")


def groups_table(groups: Iterable[Group]) -> Table:
    """Return groups, one a line."""
    table = _table("group", "members", "queues", "version", right=("members", "queues", "version"))
    for group in groups:
        table.add_row(
            _text(group.name),
            words.count(group.members),
            words.count(len(group.homes)),
            str(group.version),
        )
    return table


def members_table(members: Iterable[Member]) -> Table:
    """Return the members of a group, one a line."""
    table = _table("member", "expires in", right=("expires in",))
    for member in members:
        table.add_row(_text(member.channel), words.age(member.expires_in_s))
    return table


def processes_table(processes: Iterable[Process]) -> Table:
    """Return processes, one a line, each followed by its loops."""
    table = _table("pid", "state", "loops", "since", "parked on", "command", right=("pid", "loops"))
    for process in processes:
        loops = process.loops
        table.add_row(
            str(process.pid),
            _state(process),
            words.count(len(loops)),
            words.age(max(0.0, time.time() - min(loop.since for loop in loops))) if loops else "",
            _text(_some([name for loop in loops for name in loop.parked_on])),
            _text(process.command or ""),
        )
    return table


def sites_table(sites: Iterable[StandingSite]) -> Table:
    """Return the sites of a machine, one a line."""
    numbers = ("processes", "memory", "age")
    table = _table("prefix", "owner", *numbers, "state", "note", right=numbers)
    styles = {"alive": "green", "stale": "yellow", "unknown": "dim"}
    for one in sites:
        age_s = None if one.created is None else max(0.0, time.time() - one.created)
        table.add_row(
            _text(one.prefix),
            _text(_user(one.owner)),
            words.count(len(one.pids)),
            words.size(one.backed_bytes),
            words.age(age_s),
            Text(one.state, style=styles[one.state]),
            _text(one.note),
        )
    return table


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # of a container, say: no name for it here


def _state(process: Process) -> Text:
    if process.alive is False:
        return Text("dead", style="red")
    if is_stopped(process.state):
        return Text("stopped", style="red")
    if process.alive is None:
        return Text("unknown", style="yellow")
    return Text("alive" if process.attached else "alive, elsewhere", style="green")


def _some(names: list[str], limit: int = 3) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def memory_table(memory: Iterable[Memory]) -> Table:
    """Return the memory of both segments."""
    numbers = ("size", "backed", "used", "free", "largest")
    table = _table("memory", *numbers, right=numbers)
    table.add_column("", no_wrap=True)
    for one in memory:
        share = one.used / (one.used + one.free)
        style = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
        filled = min(_BAR, round(share * _BAR))
        table.add_row(
            one.segment.rpartition("-")[2],
            words.size(one.size),
            words.size(one.backed),
            words.size(one.used),
            words.size(one.free),
            words.size(one.largest_free),
            Text("#" * filled + "." * (_BAR - filled) + f" {share:.0%}", style=style),
        )
    return table


def totals_table(reading: Reading, rates: Rates) -> Table:
    """Return the counts since the segment was made, and how fast they grow."""
    totals, per_second = reading.totals, rates.totals or {}
    table = _table("", "total", "per second", right=("total", "per second"))
    for label, name, style in (
        ("messages sent", "messages", ""),
        ("deliveries, of groups each member", "deliveries", ""),
        ("taken from queues", "received", ""),
        ("refused: channel full", "full", "red"),
        ("refused: memory full", "memory_full", "red"),
        ("group members skipped: full", "dropped", "red"),
        ("expired unread", "expired", "yellow"),
        ("flushed", "flushed", "yellow"),
    ):
        number = getattr(totals, name)
        table.add_row(
            Text(label),
            Text(words.count(number), style=style if number else ""),
            words.rate(per_second.get(name)),
        )
    return table


def stats_view(
    reading: Reading,
    rates: Rates,
    channels: Sequence[Channel],
    groups: Sequence[Group],
    processes: Sequence[Process],
    width: int = _WIDE,
) -> RenderableType:
    """Return everything about a site."""
    totals = reading.totals
    oldest = f", the oldest for {words.age(totals.oldest_age_s)}" if totals.pending else ""
    up = words.age(max(0.0, reading.taken_at - reading.created))
    parts: list[RenderableType] = [
        Text.assemble(
            (reading.prefix, "bold"),
            f"  made {up} ago, {words.many(totals.channels, 'channel')}, "
            f"{words.many(len(reading.groups), 'group')}, "
            f"{words.many(totals.pending, 'message')} waiting{oldest}",
        )
    ]
    if reading.pending_log:
        parts.append(
            Text(
                "a process was killed in the middle of an operation: the next one that uses the "
                "site finishes it (or asgi-ipc repair)",
                style="yellow",
            )
        )
    parts += ["", totals_table(reading, rates), "", memory_table(reading.memory)]
    shown = f" (the first {len(channels)} by depth)" if len(channels) < totals.channels else ""
    for title, rows, table in (
        (f"channels{shown}", channels, channels_table(channels, reading.loops, rates, width=width)),
        ("groups", groups, groups_table(groups)),
        ("processes", processes, processes_table(processes)),
    ):
        if rows:
            parts += ["", Text(title, style="bold"), table]
    return Stack(*parts)


def _readable(message: Any) -> str:
    """Return JSON that people read: letters as they are, but nothing that moves the cursor."""
    text = dumps(message, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def messages_table(messages: Iterable[dict[str, Any]]) -> Table:
    """Return peeked messages, as ``peek_document`` has them."""
    numbers = ("#", "bytes", "age", "expires in")
    table = _table("#", "channel", "bytes", "age", "expires in", "message", right=numbers)
    table.columns[-1].overflow = "fold"
    for one in messages:
        to = f"{one['channel']} (group {one['group']})" if one["group"] else one["channel"]
        expires = one["expires_in_s"]
        table.add_row(
            str(one["position"]),
            _text(to),
            words.count(one["bytes"]),
            words.age(one["age_s"]),
            words.age(expires) if expires > 0 else Text("expired", style="yellow"),
            Text(words.printable(one.get("damage") or _readable(one["message"]))),
        )
    return table
