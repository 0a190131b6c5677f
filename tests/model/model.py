"""A channel layer as deques in a dict: what the real one is compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from asgi_ipc.names import home_of


class Sent(NamedTuple):
    """A message in a queue; all copies of one group message have one ``order``."""

    order: int
    name: str
    deadline_ns: int
    is_direct: bool


class Model:
    """Queues by home, groups by name, and a clock that somebody else sets."""

    def __init__(self, capacity_of: Callable[[str], int], by_name: bool = True) -> None:
        self.queues: dict[str, deque[Sent]] = {}
        self.groups: dict[str, dict[str, int]] = {}
        self.now_ns = 0
        self.order = 0
        self.capacity_of = capacity_of
        self.by_name = by_name

    def live(self, key: str) -> list[Sent]:
        """Return what is there for a full name, or for a home and all below it."""
        queue = self.queues.get(home_of(key), ())
        whole = key == home_of(key)
        return [
            one for one in queue if one.deadline_ns > self.now_ns and (whole or one.name == key)
        ]

    def send(self, name: str, expiry_ns: int) -> bool:
        """Queue the next message; False if the channel is full."""
        counted = name if self.by_name else home_of(name)
        if self._is_full(counted, True):
            return False
        self._put(name, expiry_ns, True)
        return True

    def _is_full(self, counted: str, is_direct: bool) -> bool:
        """Whether a channel has its capacity of either kind; an ordinary one, of both together."""
        waiting = self.live(counted)
        if "!" in counted:
            waiting = [one for one in waiting if one.is_direct == is_direct]
        return len(waiting) >= self.capacity_of(counted)

    def group_send(self, group: str, expiry_ns: int) -> None:
        """Queue one message for every member that has room."""
        for name, deadline_ns in self.groups.get(group, {}).items():
            if deadline_ns > self.now_ns and not self._is_full(name, False):
                self._put(name, expiry_ns, False)

    def _put(self, name: str, expiry_ns: int, is_direct: bool) -> None:
        sent = Sent(self.order, name, self.now_ns + expiry_ns, is_direct)
        self.queues.setdefault(home_of(name), deque()).append(sent)

    def next_of(self, keys: list[str]) -> set[tuple[str, int]]:
        """Return every ``(name, order)`` a receive of these keys may give now."""
        found: set[tuple[str, int]] = set()
        for key in keys:
            live = self.live(key)
            found |= {(one.name, one.order) for one in live if one.order == live[0].order}
        return found

    def take(self, name: str, order: int) -> None:
        """Remove what a receive gave."""
        queue = self.queues[home_of(name)]
        queue.remove(next(one for one in queue if (one.name, one.order) == (name, order)))

    def members(self, group: str) -> set[str]:
        """Return who is in a group."""
        members = self.groups.get(group, {})
        return {name for name, deadline_ns in members.items() if deadline_ns > self.now_ns}
