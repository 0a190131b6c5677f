"""Messages on their last few centimetres: taken from a home, not yet asked for.

The queue of a process-specific home carries the messages of many full names. Whoever
drains it puts each where its reader will look. Bounded: a message sent directly stays
counted against its name's capacity until it leaves here and ``read`` has been settled, and a
group message for a name that has as many of them as its capacity is dropped and counted.
Everything expires here as elsewhere.

A group message for thousands of members is one ``Entry`` that lies under all their names:
what is allocated for each of them is a place in two containers and nothing else.

Pure: no lock, no loop, no clock. ``aio`` holds its mutex around every call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

__all__ = ["Entry", "Inboxes"]

_COMPACT_AT = 64
_NEVER_NS = 1 << 63
_EXPIRE_NS = 2000  # ten times what one message costs


class Entry:
    """One message; of a group, the same for all its members in one home.

    Attributes:
        is_counted: in shared memory too: it was sent to its name directly.
    """

    __slots__ = ("body", "deadline_ns", "home", "is_counted")

    def __init__(self, home: str, body: bytes, deadline_ns: int, is_counted: bool = False) -> None:
        self.home = home
        self.body = body
        self.deadline_ns = deadline_ns
        self.is_counted = is_counted


class _Arrivals:
    """What came for one home, in order, as ``(entry, names it is for, the first one last)``.

    What was read by its full name stays listed until its turn comes, or until there is more
    of that than of anything else.
    """

    __slots__ = ("batches", "listed", "live")

    def __init__(self) -> None:
        self.batches: deque[tuple[Entry, list[str]]] = deque()
        self.listed = 0
        self.live = 0


class Inboxes:
    """Entries by full name, and by home in the order they came.

    Attributes:
        count: how many there are.
        epoch: of the segment they were drained from; for whoever holds this.
        read: names that a counted message left, read or expired; whoever settles that clears it.
        read_count: how many messages those were.
        due_ns: when to look for counted ones that have expired.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Entry | deque[Entry]] = {}  # alone, or in order
        self._by_home: dict[str, _Arrivals] = {}
        self.count = 0
        self.epoch = 0
        self.read: set[str] = set()
        self.read_count = 0
        self.due_ns = _NEVER_NS

    def depth(self, name: str) -> int:
        """Return how many messages wait for a full name."""
        queue = self.by_name.get(name)
        if queue is None:
            return 0
        return 1 if isinstance(queue, Entry) else len(queue)

    def held(self, name: str) -> int:
        """Return how many counted messages lie here for a full name."""
        queue = self.by_name.get(name)
        if queue is None:  # nearly always
            return 0
        return sum(entry.is_counted for entry in self._all(name))

    def group_depth(self, name: str, now_ns: int) -> int:
        """Return how many group messages that live wait for a full name."""
        return sum(not entry.is_counted and entry.deadline_ns > now_ns for entry in self._all(name))

    def _all(self, name: str) -> Iterable[Entry]:
        queue = self.by_name.get(name, ())
        return (queue,) if isinstance(queue, Entry) else queue

    def next_name(self, home: str) -> str | None:
        """Return the name of the oldest message of a home."""
        arrived = self._by_home.get(home)
        for entry, names in arrived.batches if arrived is not None else ():
            for name in reversed(names):
                queue = self.by_name.get(name)
                if queue is not None and first_of(queue) is entry:
                    return name
        return None

    def has(self, key: str) -> bool:
        """Whether anything waits for a full name, or for a whole home."""
        return key in self.by_name or key in self._by_home

    def names(self) -> list[str]:
        """Return the full names that have messages here."""
        return list(self.by_name)

    def homes(self) -> list[tuple[str, int]]:
        """Return the homes that have messages here, and how many."""
        return [(home, arrived.live) for home, arrived in self._by_home.items()]

    def put(self, entry: Entry, names: Sequence[str]) -> None:
        """Add a message for each of some names of its home, behind the others of that name."""
        by_name = self.by_name
        for name in names:
            queue = by_name.get(name)
            if queue is None:
                by_name[name] = entry
            elif isinstance(queue, Entry):
                by_name[name] = deque((queue, entry))
            else:
                queue.append(entry)
        arrived = self._by_home.get(entry.home)
        if arrived is None:
            arrived = self._by_home[entry.home] = _Arrivals()
        arrived.batches.append((entry, list(reversed(names))))
        arrived.listed += len(names)
        arrived.live += len(names)
        self.count += len(names)
        if entry.is_counted and entry.deadline_ns < self.due_ns:
            self.due_ns = entry.deadline_ns
        if arrived.listed > _COMPACT_AT and arrived.listed > 2 * arrived.live:
            self._compact(arrived)

    def _compact(self, arrived: _Arrivals) -> None:
        batches = [
            (entry, [name for name in names if self._lies_under(name, entry)])
            for entry, names in arrived.batches
        ]
        arrived.batches = deque(batch for batch in batches if batch[1])
        arrived.listed = arrived.live

    def _lies_under(self, name: str, entry: Entry) -> bool:
        queue = self.by_name.get(name)
        return queue is entry or (isinstance(queue, deque) and entry in queue)

    def pop(self, name: str, now_ns: int) -> Entry | None:
        """Return the first message for a full name."""
        while (queue := self.by_name.pop(name, None)) is not None:
            entry = self._shift(name, queue)
            if entry.deadline_ns > now_ns:
                return entry
        return None

    def pop_alone(self, name: str, now_ns: int) -> Entry | None:
        """Return the message for a full name if it is the only one and lives."""
        entry = self.by_name.get(name)
        if not isinstance(entry, Entry) or entry.deadline_ns <= now_ns:
            return None
        del self.by_name[name]
        self.count -= 1
        if entry.is_counted:
            self.read.add(name)
            self.read_count += 1
        arrived = self._by_home[entry.home]
        arrived.live -= 1
        if not arrived.live:
            del self._by_home[entry.home]
        return entry

    def pop_home(self, home: str, now_ns: int) -> tuple[str, Entry] | None:
        """Return the first message of a whole home and the name it is for; as ``pop``."""
        while (arrived := self._by_home.get(home)) is not None:
            entry, names = arrived.batches[0]
            name = names.pop()
            arrived.listed -= 1
            if not names:
                arrived.batches.popleft()
            queue = self.by_name.get(name)
            # The oldest of its home is the oldest of its name, or was read by that name.
            if queue is None or (queue is not entry and first_of(queue) is not entry):
                continue
            self._shift(name, self.by_name.pop(name))
            if entry.deadline_ns > now_ns:
                return name, entry
        return None

    def _shift(self, name: str, queue: Entry | deque[Entry]) -> Entry:
        """Take the first of what lay under a name, and put the others back."""
        if isinstance(queue, Entry):
            entry = queue
        else:
            entry = queue.popleft()
            if queue:
                self.by_name[name] = queue
        self._went(name, entry)
        return entry

    def _went(self, name: str, entry: Entry) -> None:
        self.count -= 1
        if entry.is_counted:
            self.read.add(name)
            self.read_count += 1
        arrived = self._by_home[entry.home]
        arrived.live -= 1
        if not arrived.live:
            del self._by_home[entry.home]

    def expire(self, now_ns: int) -> None:
        """Remove every expired message.

        ``due_ns`` is then so late that looking at all of them takes a tenth of the time at most.
        """
        first_ns = _NEVER_NS
        for name, queue in list(self.by_name.items()):
            old = [queue] if isinstance(queue, Entry) else list(queue)
            kept = deque(entry for entry in old if entry.deadline_ns > now_ns)
            for entry in kept:
                if entry.is_counted and entry.deadline_ns < first_ns:
                    first_ns = entry.deadline_ns
            if len(kept) == len(old):
                continue
            if kept:
                self.by_name[name] = kept
            else:
                del self.by_name[name]
            for entry in old:
                if entry.deadline_ns <= now_ns:
                    self._went(name, entry)
        self.due_ns = max(first_ns, now_ns + _EXPIRE_NS * self.count)

    def clear(self) -> None:
        """Forget everything."""
        self.by_name.clear()
        self._by_home.clear()
        self.count = 0
        self.read.clear()
        self.read_count = 0
        self.due_ns = _NEVER_NS


def first_of(queue: Entry | deque[Entry]) -> Entry:
    return queue if isinstance(queue, Entry) else queue[0]
