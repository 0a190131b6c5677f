"""Messages on their last few centimetres: taken from a home, not yet asked for.

The queue of a process-specific home carries the messages of many full names. Whoever
drains it puts each where its reader will look. Bounded: a message sent directly stays
counted against its name's capacity until it leaves here and ``read`` has been settled, and a
group message for a name that has as many of them as its capacity is dropped and counted.
Everything expires here as elsewhere.

A group message for thousands of members is one ``Entry`` that lies under all their names:
what is allocated for each of them is a place in one container and nothing else.

*Nothing is taken out and put back*, and nothing is counted that could be asked: each message
comes and goes in one statement, so an exception in between, from a signal handler say, leaves
every other message where it is. Putting one can be done again: it is not put twice. That one is
read is noted *before* it goes: what is said of it then is how many are still here.

Pure: no lock, no loop, no clock. ``aio`` holds its mutex around every call.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

__all__ = ["Entry", "Inboxes"]

_NEVER_NS = 1 << 63
_EXPIRE_NS = 2000  # ten times what one message costs


class Entry:
    """One message; of a group, the same for all its members in one home.

    Attributes:
        is_counted: in shared memory too: it was sent to its name directly.
        is_group: it was sent to a group. What Channels 1 sends is neither: it counts on the home.
        number: in the order of arrival.
    """

    __slots__ = ("body", "deadline_ns", "home", "is_counted", "is_group", "number")

    def __init__(
        self,
        home: str,
        body: bytes,
        deadline_ns: int,
        is_counted: bool = False,
        is_group: bool = False,
    ) -> None:
        self.home = home
        self.body = body
        self.deadline_ns = deadline_ns
        self.is_counted = is_counted
        self.is_group = is_group
        self.number = 0


Queue = Entry | deque[Entry]
"""One message alone, or several in order; never none."""


class Inboxes:
    """Entries by the home they came from and the full name they are for.

    Attributes:
        by_home: homes, and below each the names that have messages; an empty one is none.
        epoch: of the segment they were drained from; for whoever holds this.
        read: the name of each counted message that left, read or expired, since that was settled;
            whoever settles it removes it.
        due_ns: when to look for counted ones that have expired.
    """

    def __init__(self) -> None:
        self.by_home: dict[str, dict[str, Queue]] = {}
        self.epoch = 0
        self.read: list[str] = []
        self.due_ns = _NEVER_NS
        self._numbers = itertools.count(1)
        # Of homes that are read as a whole: the numbers and names that lay there once, the oldest
        # last. Whatever came since is younger; what is not there any more is passed over.
        self._listed: dict[str, list[tuple[int, str]]] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(count for _, count in self.homes())

    def depth(self, name: str) -> int:
        """Return how many messages wait for a full name."""
        return len(_all_of(self._below(name).get(name, ())))

    def held(self, name: str) -> int:
        """Return how many counted messages lie here for a full name."""
        return sum(entry.is_counted for entry in _all_of(self._below(name).get(name, ())))

    def group_depth(self, name: str, now_ns: int) -> int:
        """Return how many group messages that live wait for a full name."""
        return sum(
            entry.is_group and entry.deadline_ns > now_ns
            for entry in _all_of(self._below(name).get(name, ()))
        )

    def has(self, key: str) -> bool:
        """Whether anything waits for a full name, or for a whole home."""
        if key[-1] == "!":
            return bool(self.by_home.get(key))
        return key in self._below(key)

    def _below(self, name: str) -> dict[str, Queue]:
        return self.by_home.get(name[: name.find("!") + 1]) or {}

    def names(self) -> list[str]:
        """Return the full names that have messages here."""
        return [name for below in self.by_home.values() for name in below]

    def homes(self) -> list[tuple[str, int]]:
        """Return the homes that have messages here, and how many."""
        return [
            (home, sum(len(_all_of(queue)) for queue in below.values()))
            for home, below in self.by_home.items()
            if below
        ]

    def put(self, entry: Entry, names: Sequence[str]) -> None:
        """Add a message for each of some names of its home, behind the others of that name."""
        entry.number = entry.number or next(self._numbers)
        if entry.is_counted and entry.deadline_ns < self.due_ns:
            self.due_ns = entry.deadline_ns
        below = self.by_home.setdefault(entry.home, {})
        for name in names:
            queue = below.get(name)
            if queue is None:
                below[name] = entry
            elif isinstance(queue, Entry):
                if queue is not entry:
                    below[name] = deque((queue, entry))
            elif queue[-1] is not entry:
                queue.append(entry)

    def pop(self, name: str, now_ns: int) -> Entry | None:
        """Return the first message for a full name; drop those before it that have expired."""
        below = self._below(name)
        while (queue := below.get(name)) is not None:
            entry = self._shift(below, name, queue)
            if entry.deadline_ns > now_ns:
                return entry
        return None

    def pop_alone(self, home: str, name: str, now_ns: int) -> Entry | None:
        """Return the message for a full name if it is the only one and lives."""
        below = self.by_home.get(home)
        if below is None:
            return None
        entry = below.get(name)
        if not isinstance(entry, Entry) or entry.deadline_ns <= now_ns:
            return None
        if entry.is_counted:
            self.read.append(name)
        if len(below) == 1:
            del self.by_home[home]
        else:
            del below[name]
        return entry

    def pop_home(self, home: str, now_ns: int) -> tuple[str, Entry] | None:
        """Return the first message of a whole home and the name it is for; as ``pop``."""
        while (name := self.next_name(home)) is not None:
            below = self.by_home[home]
            entry = self._shift(below, name, below[name])
            if entry.deadline_ns > now_ns:
                return name, entry
        return None

    def pop_first(self, keys: tuple[str, ...], now_ns: int) -> tuple[str, Entry] | None:
        """Return the message for the first of these names and homes that has one; as ``pop``."""
        for key in keys:
            if key[-1] == "!":
                found = self.pop_home(key, now_ns)
            else:
                entry = self.pop(key, now_ns)
                found = None if entry is None else (key, entry)
            if found is not None:
                return found
        return None

    def next_name(self, home: str) -> str | None:
        """Return the name of the oldest message of a home."""
        while below := self.by_home.get(home):
            listed = self._listed.get(home)
            if not listed:
                listed = self._listed[home] = _oldest_last(below)
            number, name = listed[-1]
            queue = below.get(name)
            if queue is not None and _all_of(queue)[0].number == number:
                return name
            listed.pop()  # it was there, and is not any more
        self._listed.pop(home, None)
        return None

    def _shift(self, below: dict[str, Queue], name: str, queue: Queue) -> Entry:
        """Take the first of what lies under a name."""
        entry = _all_of(queue)[0]
        if entry.is_counted:
            self.read.append(name)
        if not isinstance(queue, Entry) and len(queue) > 1:
            return queue.popleft()
        self._remove(below, name, entry.home)
        return entry

    def _remove(self, below: dict[str, Queue], name: str, home: str) -> None:
        if len(below) == 1:
            del self.by_home[home]
        del below[name]

    def expire(self, now_ns: int) -> None:
        """Remove every expired message.

        ``due_ns`` is then so late that looking at all of them takes a tenth of the time at most.
        """
        first_ns = _NEVER_NS
        for home, below in list(self.by_home.items()):
            for name, queue in list(below.items()):
                kept = deque(entry for entry in _all_of(queue) if entry.deadline_ns > now_ns)
                gone = [entry for entry in _all_of(queue) if entry.deadline_ns <= now_ns]
                self.read += [name for entry in gone if entry.is_counted]
                if gone and kept:
                    below[name] = kept
                elif gone:
                    self._remove(below, name, home)
                counted_ns = [entry.deadline_ns for entry in kept if entry.is_counted]
                first_ns = min(first_ns, *counted_ns) if counted_ns else first_ns
        self.due_ns = max(first_ns, now_ns + _EXPIRE_NS * self.count)

    def clear(self) -> None:
        """Forget everything."""
        self.by_home.clear()
        self._listed.clear()
        self.read.clear()
        self.due_ns = _NEVER_NS


def _all_of(queue: Queue | tuple[()]) -> Sequence[Entry]:
    return (queue,) if isinstance(queue, Entry) else queue


def _oldest_last(below: dict[str, Queue]) -> list[tuple[int, str]]:
    found = [(entry.number, name) for name, queue in below.items() for entry in _all_of(queue)]
    found.sort(reverse=True)
    return found
