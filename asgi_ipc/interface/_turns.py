"""Fair shares of ``websocket.receive``, which all websockets send into and workers read in order.

A socket may have a few frames there that no worker has taken yet, and only one while the
channel is not nearly empty; beyond that its client is not read. So who floods waits for
himself, and the others' frames find a short queue.

The layer does not say who took which frame. It counts how many were sent into the channel and
how many are gone from it: since the channel is read in order, a frame is gone once as many
are gone as had been sent when it was there already.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ..aio import AsyncIPCChannelLayer

__all__ = ["CHANNEL", "Frames", "Turns"]

CHANNEL = "websocket.receive"
_MOST = 8  # frames of one socket that no worker has taken
_CALM = 8  # with more than 1/8 of the capacity waiting, each socket may have one
_FRESH_S = 0.05  # what was counted may be so old, where it need not be exact
_SHORT_S, _LONG_S = 0.0005, 0.05  # between looks


class Frames:
    """What is known of the channel; one for all sockets of an event loop.

    Attributes:
        sent: frames ever sent into it, by all processes.
        gone: those that were taken from it, or have expired.
        pending: frames in it, at the latest look and sent by us since.
        looks: how often it was looked at.
    """

    def __init__(self, layer: AsyncIPCChannelLayer) -> None:
        self.sent = self.gone = self.pending = self.looks = 0
        self._layer = layer
        self._limit = max(1, layer.get_capacity(CHANNEL) // _CALM)
        self._looked_at = 0.0

    async def look(self) -> None:
        """Count."""
        counts = await self._layer.channel_statistics(CHANNEL)
        self.sent = int(counts["messages_count"])
        self.pending = int(counts["messages_pending"])
        self.gone = self.sent - self.pending
        self.looks += 1
        self._looked_at = asyncio.get_running_loop().time()

    def is_older(self, seconds: float) -> bool:
        """Whether the latest look was that long ago."""
        return asyncio.get_running_loop().time() - self._looked_at >= seconds

    @property
    def is_calm(self) -> bool:
        """Whether few frames wait."""
        return self.pending <= self._limit


class Turns:
    """When one socket may send its next frame."""

    __slots__ = ("_frames", "_looks", "_marks", "_sent_at", "_unmarked", "_unread")

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._unread = 0  # frames that may be in the channel
        self._unmarked = 0  # of those, sent since the latest look
        self._looks = 0  # when the latest was sent
        self._sent_at = 0.0
        # The others: how many had been sent into the channel when they were in it.
        self._marks: deque[tuple[int, int]] | None = None

    def sent(self) -> None:
        """Note that a frame was sent."""
        self._unread += 1
        self._unmarked += 1
        self._looks = self._frames.looks
        self._frames.pending += 1
        self._sent_at = asyncio.get_running_loop().time()

    async def wait(self, at_most_s: float) -> None:
        """Wait until the socket's client may be heard again.

        Args:
            at_most_s: after the latest frame; all have expired then.
        """
        frames = self._frames
        if frames.is_older(_FRESH_S):
            await frames.look()
        pause = _SHORT_S
        while not self._may_send():
            if frames.looks == self._looks or frames.is_older(pause / 2):
                await frames.look()
            self._forget_what_is_gone()
            if self._may_send():
                return
            if asyncio.get_running_loop().time() - self._sent_at > at_most_s:
                self._unread = self._unmarked = 0
                self._marks = None
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONG_S)

    def _may_send(self) -> bool:
        return not self._unread or (self._unread < _MOST and self._frames.is_calm)

    def _forget_what_is_gone(self) -> None:
        frames = self._frames
        marks = self._marks
        if self._unmarked and frames.looks > self._looks:
            if marks is None:
                marks = self._marks = deque()
            marks.append((frames.sent, self._unmarked))
            self._unmarked = 0
        # Counts that began anew say less than a mark: the channel was empty, or flushed.
        while marks and not frames.gone < marks[0][0] <= frames.sent:
            self._unread -= marks.popleft()[1]
        if not marks:
            self._marks = None
