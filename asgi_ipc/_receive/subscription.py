"""Subscriptions: join, receive, leave, as one ``async with``.

A subscription stands on what a layer offers to everybody: it adds when to join, when to renew, and
that leaving happens whatever ends the block.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from .._store.fanout import Drop
from ..exceptions import IPCError
from ..names import check_group, home_of

__all__ = ["Subscription", "Subscriptions"]

_Message = dict[str, Any]


class _Layer(Protocol):
    group_expiry: Any
    lock_timeout: Any

    def check_name(self, channel: object) -> str: ...
    def new_channel(self) -> Coroutine[Any, Any, str]: ...
    def group_add(self, group: str, channel: str) -> Coroutine[Any, Any, None]: ...
    def group_discard(self, group: str, channel: str) -> Coroutine[Any, Any, None]: ...
    def receive_within(
        self, channel: str, deadline: float | None
    ) -> Coroutine[Any, Any, _Message | None]: ...


class _Site(Protocol):
    closings: int


class Subscriptions:
    """Those of one layer, to be told of drops."""

    def __init__(self) -> None:
        self._by_home: dict[str, set[Subscription]] = {}

    def add(self, one: Subscription) -> None:
        """Tell it from now on."""
        self._by_home.setdefault(home_of(one.channel), set()).add(one)

    def remove(self, one: Subscription) -> None:
        """Tell it no more."""
        home = home_of(one.channel)
        others = self._by_home.get(home, set())
        others.discard(one)
        if not others:
            self._by_home.pop(home, None)

    def note(self, drops: Iterable[Drop]) -> None:
        """Count what was skipped for each of them, alone or with all of its home."""
        for drop in drops:
            for one in tuple(self._by_home.get(home_of(drop.channel), ())):
                if drop.group in one.groups and drop.channel in (one.channel, home_of(one.channel)):
                    one.dropped += 1


class Subscription(AsyncIterator[_Message]):
    """What ``layer.subscribe`` returns: enter it with ``async with``, and iterate over messages.

    It joins its groups when it is entered, renews the memberships in good time, and leaves whatever
    ends the block. A message is taken when it is asked for, as by ``receive``: an iteration that is
    cancelled loses nothing. For a slow reader up to ``capacity`` messages wait; what comes then is
    skipped.

    Attributes:
        channel: where it receives; empty until it is entered, if it is to be a new one.
        groups: which it joins.
        dropped: group messages that found no room, as far as this process knows: those that it
            had taken from the queue, and those that it sent itself. Other senders have theirs from
            ``group_send``.
    """

    def __init__(
        self,
        layer: _Layer,
        site: _Site,
        subscriptions: Subscriptions,
        groups: Iterable[str],
        channel: str | None,
    ) -> None:
        """Prepare one; ``None``: a channel of its own."""
        self.groups: tuple[str, ...] = tuple(dict.fromkeys(check_group(group) for group in groups))
        self.channel: str = "" if channel is None else layer.check_name(channel)
        self.dropped: int = 0
        self._layer = layer
        self._site = site
        self._subscriptions = subscriptions
        self._closings = 0
        self._renew_at = 0.0
        self._state = "new"

    async def __aenter__(self) -> Self:
        """Join.

        Raises:
            ChannelFull: the memory for groups is full. No group was joined.
        """
        if self._state != "new":
            raise IPCError("a subscription is entered once: call subscribe() again")
        self._state = "entered"
        self.channel = self.channel or await self._layer.new_channel()
        self._closings = self._site.closings
        self._subscriptions.add(self)
        try:
            await self._join()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave; a cancellation meanwhile is raised when that is done."""
        await self._leave()

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> _Message:
        """Return the next message, waiting for ever.

        Raises:
            LayerClosed: the layer was closed.
            StopAsyncIteration: the block was left.
        """
        if self._state == "new":
            raise IPCError("enter the subscription before you iterate: async with ... as messages")
        while self._state == "entered":
            deadline = None
            if self.groups:
                if time.monotonic() >= self._renew_at:
                    await self._join()
                deadline = self._renew_at
            message = await self._layer.receive_within(self.channel, deadline)
            if message is not None:
                return message
        raise StopAsyncIteration

    async def _join(self) -> None:
        """Join, or renew."""
        for group in self.groups:
            await self._layer.group_add(group, self.channel)
        self._renew_at = time.monotonic() + self._layer.group_expiry / 2

    async def _leave(self) -> None:
        """Leave every group, unless the layer was closed: then its memberships have ended."""
        self._state = "left"
        self._subscriptions.remove(self)
        if self._site.closings != self._closings:
            return
        interrupt: asyncio.CancelledError | None = None
        give_up = time.monotonic() + self._layer.lock_timeout
        for group in self.groups:
            while True:  # cancelled only while the lock is busy, with nothing done
                try:
                    await self._layer.group_discard(group, self.channel)
                    break
                except asyncio.CancelledError as exc:
                    interrupt = exc
                    if time.monotonic() > give_up:
                        break
        if interrupt is not None:
            raise interrupt
