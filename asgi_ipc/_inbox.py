"""Messages on their last few centimetres: taken from a home, not yet asked for.

The queue of a process-specific home carries the messages of many full names. Whoever
drains it puts each where its reader will look. Bounded: a message sent directly stays
counted against its name's capacity until it leaves here, and a group message for a name
whose capacity is used up is dropped and counted. Everything expires here as elsewhere.

Pure: no lock, no loop, no clock. ``aio`` holds its mutex around every call.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Entry", "Inboxes"]

_COMPACT_AT = 64


class Entry:
    """One message for one full name."""

    __slots__ = ("body", "deadline_ns", "gone", "home", "leaf", "leaf_ident", "name")

    def __init__(
        self, home: str, name: str, body: bytes, deadline_ns: int, leaf: int, leaf_ident: int
    ) -> None:
        self.home = home
        self.name = name
        self.body = body
        self.deadline_ns = deadline_ns
        self.leaf = leaf
        self.leaf_ident = leaf_ident
        self.gone = False


class Inboxes:
    """Entries by full name, and by home in the order they came."""

    def __init__(self) -> None:
        self._by_name: dict[str, deque[Entry]] = {}
        self._by_home: dict[str, deque[Entry]] = {}
        self.count = 0

    def depth(self, name: str) -> int:
        """Return how many messages wait for a full name."""
        queue = self._by_name.get(name)
        return len(queue) if queue else 0

    def has(self, key: str) -> bool:
        """Whether anything waits for a full name, or for a whole home."""
        return key in self._by_name or key in self._by_home

    def names(self) -> list[str]:
        """Return the full names that have messages here."""
        return list(self._by_name)

    def put(self, entry: Entry) -> None:
        """Add a message behind the others of its name."""
        self.count += 1
        queue = self._by_name.get(entry.name)
        if queue is None:
            queue = self._by_name[entry.name] = deque()
        queue.append(entry)
        arrived = self._by_home.get(entry.home)
        if arrived is None:
            arrived = self._by_home[entry.home] = deque()
        arrived.append(entry)
        if len(arrived) > _COMPACT_AT and len(arrived) > 2 * self.count:
            self._by_home[entry.home] = deque(item for item in arrived if not item.gone)

    def pop(self, name: str, now_ns: int, dropped: list[Entry]) -> Entry | None:
        """Return the first message for a full name, or for a whole home (``name`` ends in ``!``).

        Args:
            dropped: receives the expired messages that were met on the way.
        """
        if name[-1] == "!":
            return self._pop_home(name, now_ns, dropped)
        queue = self._by_name.get(name)
        while queue:
            entry = queue.popleft()
            self._went(entry, queue)
            if entry.deadline_ns > now_ns:
                return entry
            dropped.append(entry)
        return None

    def _pop_home(self, home: str, now_ns: int, dropped: list[Entry]) -> Entry | None:
        arrived = self._by_home.get(home)
        while arrived:
            entry = arrived.popleft()
            if entry.gone:
                continue
            queue = self._by_name[entry.name]
            queue.popleft()  # the oldest of its home is the oldest of its name
            self._went(entry, queue)
            if entry.deadline_ns > now_ns:
                return entry
            dropped.append(entry)
        return None

    def _went(self, entry: Entry, queue: deque[Entry]) -> None:
        entry.gone = True
        self.count -= 1
        if not queue:
            del self._by_name[entry.name]
        arrived = self._by_home.get(entry.home)
        while arrived and arrived[0].gone:
            arrived.popleft()
        if arrived is not None and not arrived:
            del self._by_home[entry.home]

    def expire(self, now_ns: int) -> list[Entry]:
        """Remove and return every expired message."""
        dropped = [
            entry
            for queue in self._by_name.values()
            for entry in queue
            if entry.deadline_ns <= now_ns
        ]
        for entry in dropped:
            queue = self._by_name[entry.name]
            queue.remove(entry)
            self._went(entry, queue)
        return dropped

    def clear(self) -> None:
        """Forget everything."""
        self._by_name.clear()
        self._by_home.clear()
        self.count = 0
