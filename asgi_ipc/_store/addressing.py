"""Whom a group message goes to, as envelopes: one for each home, one for each ordinary channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .fanout import Drop, Envelope, GroupSent
from .membership import Snapshot
from .queues import EXCLUDED_LIMIT

__all__ = ["all_of", "but_for", "to_all", "to_others"]


def to_all(snapshot: Snapshot) -> list[Envelope]:
    """Address every member."""
    envelopes = [Envelope(home, snapshot.version, count) for home, count in snapshot.homes]
    envelopes += [Envelope(channel, 0, 1) for channel in snapshot.channels]
    return envelopes


def to_others(
    snapshot: Snapshot,
    excluded: Mapping[str, Sequence[str]],
    count_members: Callable[[str, Sequence[str]], int],
) -> list[Envelope]:
    """Address every member but some.

    Args:
        excluded: those, by their homes.
        count_members: how many names below a home are members.

    Raises:
        ValueError: too many below one home.
    """
    envelopes = []
    for home, count in snapshot.homes:
        names = excluded.get(home, ())
        without = "".join("\0" + name for name in names).encode("ascii")
        if len(without) > EXCLUDED_LIMIT:
            raise ValueError(
                f"exclude names {len(names)} channels of {home!r}, {len(without)} bytes, and at "
                f"most {EXCLUDED_LIMIT} bytes fit: use a group of its own"
            )
        if names:
            count -= count_members(home, names)
        if count > 0:
            envelopes.append(Envelope(home, snapshot.version, count, without))
    envelopes += [
        Envelope(channel, 0, 1) for channel in snapshot.channels if channel not in excluded
    ]
    return envelopes


def all_of(envelopes: Sequence[Envelope]) -> GroupSent:
    """Return what is reached if nothing is in the way."""
    return GroupSent(sum(envelope.members for envelope in envelopes), 0)


def but_for(
    sent: GroupSent, envelopes: Sequence[Envelope], dead: Sequence[str], drops: Sequence[Drop]
) -> GroupSent:
    """Return what was reached, but for homes of the dead and what was skipped."""
    skipped = sum(drop.members for drop in drops)
    gone = sum(envelope.members for envelope in envelopes if envelope.name in dead)
    return GroupSent(sent.reached - skipped - gone, skipped)
