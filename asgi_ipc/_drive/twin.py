"""The blocking twin of an async layer: the same operations on the same object.

For views, management commands and tasks that have no event loop: nothing of asyncio is
involved but for a receive that has to wait, which runs on a private loop of the thread.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from .._store.fanout import GroupSent
from .._wake.blocking import drive
from .._wake.port import HostLoop
from .poll_loop import PrivateLoops

__all__ = ["SyncTwin"]

R = TypeVar("R")
_Op = Coroutine[Any, Any, R]
_Message = dict[str, Any]


class _Layer(Protocol):
    def send(self, channel: str, message: _Message, *, expiry: float | None) -> _Op[None]: ...
    def send_many(
        self, messages: Iterable[tuple[str, _Message]], *, expiry: float | None
    ) -> _Op[None]: ...
    def receive(self, channel: str) -> _Op[_Message]: ...
    def receive_within(
        self, channel: str, deadline: float | None, *, loop: HostLoop | None
    ) -> _Op[_Message | None]: ...
    def new_channel(self, prefix: str) -> _Op[str]: ...
    def group_add(self, group: str, channel: str) -> _Op[None]: ...
    def group_discard(self, group: str, channel: str) -> _Op[None]: ...
    def group_send(
        self, group: str, message: _Message, *, exclude: Iterable[str], expiry: float | None
    ) -> _Op[GroupSent]: ...
    def group_channels(self, group: str) -> _Op[list[str]]: ...
    def group_count(self, group: str) -> _Op[int]: ...
    def flush(self) -> _Op[None]: ...
    def global_statistics(self) -> _Op[dict[str, float]]: ...
    def channel_statistics(self, channel: str) -> _Op[dict[str, float]]: ...


class SyncTwin:
    """Blocking versions of a layer's coroutines; each raises what its coroutine raises.

    May be used by any number of threads at once, also on a thread whose event loop is
    running: only ``receive`` ever waits.
    """

    def __init__(self, layer: _Layer) -> None:
        self._layer = layer
        self._loops = PrivateLoops()

    def close(self) -> None:
        """Let go of the private loops."""
        self._loops.close()

    def send(self, channel: str, message: _Message, *, expiry: float | None = None) -> None:
        """Queue a message."""
        drive(self._layer.send(channel, message, expiry=expiry))

    def send_many(
        self, messages: Iterable[tuple[str, _Message]], *, expiry: float | None = None
    ) -> None:
        """Queue several messages in one transaction."""
        drive(self._layer.send_many(messages, expiry=expiry))

    def receive(self, channel: str, timeout: float | None = None) -> _Message | None:
        """Return the next message of a channel, ``None`` if none came in time.

        Args:
            timeout: seconds to wait at most; ``None``: for ever, 0: not at all.
        """
        if timeout is not None and timeout <= 0:
            return drive(self._layer.receive_within(channel, 0.0, loop=None))
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._loops.run(
            lambda loop: self._layer.receive_within(channel, deadline, loop=loop)
        )

    def new_channel(self, prefix: str = "specific") -> str:
        """Return a channel name nobody uses."""
        return drive(self._layer.new_channel(prefix))

    def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member, or renew its membership."""
        drive(self._layer.group_add(group, channel))

    def group_discard(self, group: str, channel: str) -> None:
        """End a membership."""
        drive(self._layer.group_discard(group, channel))

    def group_send(
        self,
        group: str,
        message: _Message,
        *,
        exclude: Iterable[str] = (),
        expiry: float | None = None,
    ) -> GroupSent:
        """Send to every member of a group; return how many were reached, and skipped."""
        return drive(self._layer.group_send(group, message, exclude=exclude, expiry=expiry))

    def group_channels(self, group: str) -> list[str]:
        """Return the members of a group."""
        return drive(self._layer.group_channels(group))

    def group_count(self, group: str) -> int:
        """Return how many members a group has."""
        return drive(self._layer.group_count(group))

    def flush(self) -> None:
        """Drop every message and group, for every process."""
        drive(self._layer.flush())

    def global_statistics(self) -> dict[str, float]:
        """Return counts over all channels."""
        return drive(self._layer.global_statistics())

    def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the counts of one channel."""
        return drive(self._layer.channel_statistics(channel))
