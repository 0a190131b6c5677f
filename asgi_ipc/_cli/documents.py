"""Readings as JSON documents; ``schema.json`` describes them, and the tests hold both together."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from .._operator.doctor import StandingSite
from .._operator.peek import Member, Peek
from .._operator.reading import Channel, Group, Loop, Memory, Process, Reading
from .._store.codec import PLAIN
from ..exceptions import SegmentCorrupt
from .messages import to_json
from .rates import Rates

__all__ = [
    "channel_document",
    "frame",
    "group_document",
    "members_document",
    "peek_document",
    "process_document",
    "site_document",
    "stats_document",
]

_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def frame(reading: Reading) -> dict[str, Any]:
    """Return what every document about a site begins with."""
    return {
        "prefix": reading.prefix,
        "taken_at": _moment(reading.taken_at),
        "pending_log": reading.pending_log,
        "longest_hold_s": reading.longest_hold_s,
    }


def stats_document(
    reading: Reading,
    rates: Rates,
    channels: Iterable[Channel],
    groups: Iterable[Group],
    processes: Iterable[Process],
) -> dict[str, Any]:
    """Return everything about a site, with the channels and groups that were chosen."""
    totals = reading.totals
    return {
        **frame(reading),
        "created": _moment(reading.created),
        "totals": {
            **totals._asdict(),
            "messages": totals.messages,
            "deliveries": totals.deliveries,
        },
        "per_second": rates.totals,
        "drops": {
            "channel_full": totals.full,
            "memory_full": totals.memory_full,
            "group_member_full": totals.dropped,
            "expired": totals.expired,
            "flushed": totals.flushed,
        },
        "memory": [_memory(memory) for memory in reading.memory],
        "groups_count": len(reading.groups),
        "channels": [channel_document(channel, rates) for channel in channels],
        "groups": [group_document(group) for group in groups],
        "processes": [process_document(process) for process in processes],
    }


def channel_document(channel: Channel, rates: Rates | None = None) -> dict[str, Any]:
    """Return one channel."""
    return {
        **channel._asdict(),
        "parked": list(channel.parked),
        "leaves": [leaf._asdict() for leaf in channel.leaves],
        "sent_per_second": rates.of_channel(channel.name) if rates is not None else None,
    }


def group_document(group: Group) -> dict[str, Any]:
    """Return one group."""
    return {**group._asdict(), "homes": [home._asdict() for home in group.homes]}


def members_document(
    reading: Reading, group: Group, members: list[Member], is_complete: bool
) -> dict[str, Any]:
    """Return one group with its members."""
    return {
        **frame(reading),
        "group": group_document(group),
        "members": [member._asdict() for member in members],
        "truncated": not is_complete,
    }


def process_document(process: Process) -> dict[str, Any]:
    """Return one process."""
    return {**process._asdict(), "loops": [_loop(loop) for loop in process.loops]}


def site_document(site: StandingSite) -> dict[str, Any]:
    """Return one site of the machine."""
    created = None if site.created is None else _moment(site.created)
    return {**site._asdict(), "created": created}


def peek_document(prefix: str, channel: str, peek: Peek) -> dict[str, Any]:
    """Return the first messages of a queue."""
    messages = []
    for peeked in peek.messages:
        document = peeked._asdict()
        body = document.pop("body")
        document["bytes"] = len(body)
        try:
            document["message"] = to_json(PLAIN.decode(body))
        except SegmentCorrupt as exc:
            document["message"], document["damage"] = None, str(exc)
        messages.append(document)
    return {
        "prefix": prefix,
        "channel": channel,
        "depth": peek.depth,
        "searched": peek.searched,
        "truncated": peek.searched < peek.depth,
        "messages": messages,
    }


def _loop(loop: Loop) -> dict[str, Any]:
    return {
        "slot": loop.slot,
        "since": _moment(loop.since),
        "parked_on": list(loop.parked_on),
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "segment": memory.segment,
        "size_bytes": memory.size,
        "backed_bytes": memory.backed,
        "used_bytes": memory.used,
        "free_bytes": memory.free,
        "growth_bytes": memory.growth,
        "largest_free_bytes": memory.largest_free,
        "is_exact": memory.is_exact,
    }


def _moment(seconds: float) -> str:
    """Return a wall-clock time as ISO 8601 in UTC; a damaged one as the end of time."""
    return datetime.fromtimestamp(min(seconds, _LATEST), UTC).isoformat(timespec="milliseconds")
