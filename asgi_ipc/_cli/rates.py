"""How fast counters grow: the difference of two readings over the time between them."""

from __future__ import annotations

from .._operator.reading import Channel, Reading

__all__ = ["RATED", "Rates"]

RATED = (
    "messages", "deliveries", "sent", "received", "expired", "full", "memory_full", "dropped",
    "flushed",
)  # fmt: skip


class Rates:
    """Per-second rates between the two latest readings it was given.

    A counter that went down, of a channel that was forgotten or a segment that was made
    anew, counts from zero.
    """

    def __init__(self) -> None:
        self._before: Reading | None = None
        self.totals: dict[str, float] | None = None
        self._channels: dict[str, float] = {}
        self._taken: dict[str, int] = {}

    def add(self, reading: Reading) -> None:
        """Take the next reading."""
        before, self._before = self._before, reading
        if before is None or before.created != reading.created:
            self.totals, self._channels, self._taken = None, {}, {}
            return
        elapsed_s = reading.taken_s - before.taken_s
        if elapsed_s <= 0:
            return
        self.totals = {
            name: _grown(getattr(reading.totals, name), getattr(before.totals, name)) / elapsed_s
            for name in RATED
        }
        if reading.totals.messages < before.totals.messages:
            self.totals["messages"] = 0.0  # a little behind: see there
        sent = {channel.name: channel.sent for channel in before.channels}
        self._channels = {
            channel.name: _grown(channel.sent, sent.get(channel.name, 0)) / elapsed_s
            for channel in reading.channels
        }
        taken = {channel.name: channel.received for channel in before.channels}
        self._taken = {
            channel.name: _grown(channel.received, taken.get(channel.name, 0))
            for channel in reading.channels
        }

    def grows_unread(self, channel: Channel) -> bool:
        """Whether messages were sent to a channel and none was taken, since the reading before."""
        return bool(self.of_channel(channel.name)) and not self._taken.get(channel.name)

    def of_channel(self, name: str) -> float | None:
        """Return messages sent to a channel per second; ``None`` before there are two readings."""
        return self._channels.get(name, 0.0) if self.totals is not None else None


def _grown(now: int, before: int) -> int:
    return now - before if now >= before else now
