"""The metrics by name: what each means, and how one look at a site becomes samples.

Every sample of a site has the label ``prefix``, so that one process can tell of several.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from .. import __version__
from .._operator.reading import Channel, Memory, Reading
from .._shm import layout as L

__all__ = ["OTHER", "STATES", "Families", "Shown", "pattern_of", "shown"]

OTHER = "(other)"
"""The label of all channels that are not shown by name; no channel can be called that."""

STATES = ("ok", "missing", "locked", "forbidden", "mismatch", "damaged", "unreadable")
"""What a site can be in; see ``asgi_ipc_site_state``."""

_SHM = "/dev/shm"  # noqa: S108  where POSIX shared memory is, not a place for files of ours

_CHANNEL = ("channel",)
_COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "messages_sent": ("Messages queued since the segment was made.", ()),
    "messages_received": ("Messages taken by a reader.", ()),
    "messages_expired": ("Messages that nobody had read when they expired.", ()),
    "messages_dropped": (
        "Messages dropped. group_send: a member's channel had no room, counted per member; "
        "flush: waiting when everything was flushed.",
        ("cause",),
    ),
    "sends_refused": (
        "Sends that raised ChannelFull. channel_full: the channel had its capacity; "
        "memory_full: the segment, or the filesystem behind it, had no room.",
        ("cause",),
    ),
    "channel_sent": ("Messages queued in a channel since its record was made.", _CHANNEL),
    "channel_received": ("Messages taken from a channel by a reader.", _CHANNEL),
    "channel_expired": ("Messages of a channel that expired.", _CHANNEL),
    "channel_refused": ("Sends that found a channel full.", _CHANNEL),
}
_GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "up": ("Whether the site could be read.", ()),
    "site_state": (
        "1 for the state the site is in. ok; missing: no process has made its segments; locked: "
        "a process holds a lock and is stopped; forbidden: another user's; mismatch: of another "
        "layout version; damaged; unreadable: the log says why.",
        ("state",),
    ),
    "messages_pending": ("Messages that wait in queues.", ()),
    "oldest_message_age_seconds": ("How long the oldest waiting message has waited.", ()),
    "channels": ("Queues: ordinary channels, and one for each process-specific home.", ()),
    "channel_depth": ("Messages that wait in a channel.", _CHANNEL),
    "channel_oldest_message_age_seconds": (
        "How long the first message of a channel has waited.",
        _CHANNEL,
    ),
    "channel_waiting_loops": ("Event loops asleep until a channel has a message.", _CHANNEL),
    "groups": ("Groups with at least one member.", ()),
    "group_members": ("Memberships of all groups.", ()),
    "largest_group_members": ("Members of the largest group.", ()),
    "loops": ("Event loops that receive; one that died counts until it is noticed.", ()),
    "loops_limit": ("Event loops that can receive at once.", ()),
    "processes": ("Processes with at least one such loop.", ()),
    "segment_size_bytes": ("Size of a segment, as its creator chose.", ("segment",)),
    "created_timestamp_seconds": ("When the site's messages segment was made.", ()),
    "memory_bytes": (
        "Memory for the content of a segment. used; free: to be used again; unbacked: not yet "
        "taken from the system.",
        ("segment", "state"),
    ),
    "largest_free_bytes": ("The largest piece that a message can still have.", ("segment",)),
    "scrape_duration_seconds": ("How long this look at the site took.", ()),
    "scrape_longest_hold_seconds": ("How long it held a lock of the site at most.", ()),
}


class Shown(NamedTuple):
    """One value of the label ``channel``, and the queues it stands for."""

    label: str
    queues: list[Channel]

    @property
    def depth(self) -> int:
        """Messages that wait in all of them."""
        return sum(queue.depth for queue in self.queues)

    @property
    def sent(self) -> int:
        """Messages sent to all of them."""
        return sum(queue.sent for queue in self.queues)


def pattern_of(name: str) -> str:
    """Return a queue's name without what is random in it: ``specific.*!``, ``reply?*``.

    The name of an ordinary channel is returned as it is.
    """
    if "?" in name:
        return name.partition("?")[0] + "?*"
    if not name.endswith("!"):
        return name
    kind, dot, _ = name.rpartition(".")
    return f"{kind}{dot}*!"


def shown(queues: Iterable[Channel], top: int) -> list[Shown]:
    """Return at most ``top`` channels by name, ``top`` patterns, and the rest as one.

    The deepest are chosen, among the equally deep the busiest; sorted by label.
    """
    by_label: dict[str, list[Channel]] = {}
    for queue in queues:
        by_label.setdefault(pattern_of(queue.name), []).append(queue)
    ranked = sorted(
        (Shown(label, some) for label, some in by_label.items()),
        key=lambda one: (-one.depth, -one.sent, one.label),
    )
    named = [one for one in ranked if "*" not in one.label]
    patterns = [one for one in ranked if "*" in one.label]
    chosen = named[:top] + patterns[:top]
    rest = [queue for one in named[top:] + patterns[top:] for queue in one.queues]
    if rest:
        chosen.append(Shown(OTHER, rest))
    return sorted(chosen)


class Families:
    """All metrics of one scrape, to be filled site by site."""

    def __init__(self) -> None:
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, (text, labels) in _COUNTERS.items():
            self._families[name] = CounterMetricFamily(
                f"asgi_ipc_{name}", text, labels=("prefix", *labels)
            )
        for name, (text, labels) in _GAUGES.items():
            self._families[name] = GaugeMetricFamily(
                f"asgi_ipc_{name}", text, labels=("prefix", *labels)
            )

    def __iter__(self) -> Iterator[Metric]:
        """Yield the metrics, those of the machine and the package last."""
        yield from self._families.values()
        yield from _machine()

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._families[name].add_metric(labels, value)

    def add_state(self, prefix: str, state: str, duration_s: float) -> None:
        """Say how a site was found."""
        self._set("up", state == "ok", prefix)
        for one in STATES:
            self._set("site_state", one == state, prefix, one)
        self._set("scrape_duration_seconds", duration_s, prefix)

    def add_site(self, found: Reading, top_channels: int) -> None:
        """Add what was found in a site."""
        prefix, totals = found.prefix, found.totals
        self._set("messages_sent", totals.sent, prefix)
        self._set("messages_received", totals.received, prefix)
        self._set("messages_expired", totals.expired, prefix)
        self._set("messages_dropped", totals.dropped, prefix, "group_send")
        self._set("messages_dropped", totals.flushed, prefix, "flush")
        self._set("sends_refused", totals.full, prefix, "channel_full")
        self._set("sends_refused", totals.memory_full, prefix, "memory_full")
        self._set("messages_pending", totals.pending, prefix)
        self._set("oldest_message_age_seconds", totals.oldest_age_s, prefix)
        self._set("channels", totals.channels, prefix)
        for one in shown(found.channels, top_channels):
            self._add_channel(prefix, one)
        sizes = [group.members for group in found.groups if group.members]
        self._set("groups", len(sizes), prefix)
        self._set("group_members", sum(sizes), prefix)
        self._set("largest_group_members", max(sizes, default=0), prefix)
        self._set("loops", len(found.loops), prefix)
        self._set("loops_limit", L.SLOT_COUNT, prefix)
        self._set("processes", len({loop.pid for loop in found.loops}), prefix)
        self._set("created_timestamp_seconds", found.created, prefix)
        for segment, memory in zip(("messages", "groups"), found.memory, strict=True):
            self._add_memory(prefix, segment, memory)
        self._set("scrape_longest_hold_seconds", found.longest_hold_s, prefix)

    def _add_channel(self, prefix: str, one: Shown) -> None:
        label, queues = one
        self._set("channel_depth", one.depth, prefix, label)
        oldest_s = max(queue.oldest_age_s for queue in queues)
        self._set("channel_oldest_message_age_seconds", oldest_s, prefix, label)
        waiting = sum(len(queue.parked) for queue in queues)
        self._set("channel_waiting_loops", waiting, prefix, label)
        if label != queues[0].name:
            return  # of several queues, which come and go: their sum would go down
        self._set("channel_sent", one.sent, prefix, label)
        self._set("channel_received", queues[0].received, prefix, label)
        self._set("channel_expired", queues[0].expired, prefix, label)
        self._set("channel_refused", queues[0].full, prefix, label)

    def _add_memory(self, prefix: str, segment: str, memory: Memory) -> None:
        unbacked = memory.size - memory.backed
        self._set("segment_size_bytes", memory.size, prefix, segment)
        self._set("memory_bytes", memory.used, prefix, segment, "used")
        self._set("memory_bytes", memory.free - memory.growth, prefix, segment, "free")
        self._set("memory_bytes", unbacked, prefix, segment, "unbacked")
        self._set("largest_free_bytes", memory.largest_free, prefix, segment)


def _machine() -> Iterator[Metric]:
    """Yield the filesystem that all segments are in, and who says all this."""
    try:
        room = os.statvfs(_SHM)
    except OSError:
        pass  # ENOENT: a system that keeps its shared memory elsewhere
    else:
        yield GaugeMetricFamily(
            "asgi_ipc_filesystem_size_bytes",
            "Size of the filesystem of shared memory.",
            value=room.f_frsize * room.f_blocks,
        )
        yield GaugeMetricFamily(
            "asgi_ipc_filesystem_available_bytes",
            "What is free of the filesystem of shared memory.",
            value=room.f_frsize * room.f_bavail,
        )
    yield InfoMetricFamily(
        "asgi_ipc_build",
        "The package that made these metrics.",
        value={"version": __version__, "layout": str(L.LAYOUT_VERSION)},
    )
