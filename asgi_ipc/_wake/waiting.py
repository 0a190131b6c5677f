"""How a wait goes, as a table; and who waits for what on one event loop.

*Wake, then pop*: being woken is only the news that there may be a message. The message leaves
the queue in the step that returns it, so a wait that ends early never holds one. What it does
hold is the loop's parked bits, and the news it was woken with; leaving gives back both.

A waiter is in one state, and what happens moves it to the next (``.``: it stays as it is):

    state      what it does                          told     rung   late   looked served took
    GONE       waits nowhere                         .        .      .      .      .      .
    LOOKING    looks for the first time, not parked  TOLD     RUNG   LATE   .      .      .
    ASLEEP     sleeps, and may be parked             TOLD     RUNG   LATE   .      SERVED TOOK
    TOLD       looks: there may be something for it  .        RUNG   LATE   .      SERVED TOOK
    RUNG       looks in its home, for whoever's it is  .      .      LATE   TOLD   .      TOOK
    LATE       looks for the last time               .        .      .      .      .      .
    SERVED     has what another look had put aside   .        .      .      .      .      .
    TOOK       has taken it from the queue           .        .      .      .      .      .

* *begins*: GONE to LOOKING. *sleeps*: to ASLEEP, right after it has looked under the lock and found
  nothing, without an ``await`` in between.
* *told*: a message was put aside for it, a waiter that leaves passes on its news, the port was
  closed, or the lock is busy (others may meanwhile leave it their parked bit).
* *rung*: somebody rang the loop for the home, and this one is chosen to look.
* *looked*: in the home, under the lock. *late*: its time is over.

What a waiter does when it leaves, wherever it comes from (cancelled, interrupted, done):

    LOOKING    nothing
    ASLEEP     takes the parked bits back, of homes that nobody else here waits in
    TOLD, RUNG, LATE  the same, and tells another waiter of each name; and the loop looks again
    SERVED     takes the bits back; if it waited for several names, passes on what else it was told
    TOOK       passes that on; the bits were seen to when it took

Every step can be done again: an exception in the middle of one, from a signal handler say, is
answered by doing it once more. So membership is what is stored, and every number is derived.

Pure: no socket, no shared memory, no clock, no lock. It belongs to the thread of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "ASLEEP",
    "GONE",
    "LATE",
    "LOOKING",
    "RUNG",
    "SERVED",
    "TOLD",
    "TOOK",
    "Waiter",
    "Waiting",
    "passes_on",
    "tells_others",
    "unparks",
]

GONE, LOOKING, ASLEEP, TOLD, RUNG, LATE, SERVED, TOOK = range(8)

# What follows, by the state it is in:
#              GONE  LOOKING  ASLEEP  TOLD    RUNG  LATE  SERVED  TOOK
_WHEN_TOLD = (GONE, TOLD, TOLD, TOLD, RUNG, LATE, SERVED, TOOK)
_WHEN_RUNG = (GONE, RUNG, RUNG, RUNG, RUNG, LATE, SERVED, TOOK)
_WHEN_LATE = (GONE, LATE, LATE, LATE, LATE, LATE, SERVED, TOOK)
_WHEN_LOOKED = (GONE, LOOKING, ASLEEP, TOLD, TOLD, LATE, SERVED, TOOK)
_WHEN_SERVED = (GONE, LOOKING, SERVED, SERVED, RUNG, LATE, SERVED, TOOK)
_WHEN_TOOK = (GONE, LOOKING, TOOK, TOOK, TOOK, LATE, SERVED, TOOK)

# What leaving does, by the state it leaves from.
unparks = frozenset({ASLEEP, TOLD, RUNG, LATE, SERVED})
tells_others = frozenset({TOLD, RUNG, LATE})
passes_on = frozenset({SERVED, TOOK})

_NO_CHANNEL = ("",)  # what a wait for no channel at all is listed under


class Waiter:
    """One receive that waits, or did.

    Attributes:
        keys: what it waits for: full process-specific names, and homes.
        homes: the queues those live in.
        state: see the module docstring.
        future: what it sleeps on.
    """

    __slots__ = ("future", "homes", "keys", "state")

    future: asyncio.Future[None]

    def __init__(self, keys: tuple[str, ...], homes: tuple[str, ...]) -> None:
        self.keys = keys
        self.homes = homes
        self.state = GONE

    def sleep_on(self, future: asyncio.Future[Any]) -> None:
        """Sleep until a future that nobody has resolved yet is."""
        self.future = future
        self.state = ASLEEP

    def wake(self) -> bool:
        """Tell it that there may be something; whether it was asleep.

        Who was cancelled in its sleep is not told: it is about to leave.
        """
        if self.state == ASLEEP:
            return self._resolve(TOLD)
        self.state = _WHEN_TOLD[self.state]
        return False

    def ring(self) -> bool:
        """Make it look in its home; False if it was cancelled in its sleep."""
        if self.state == ASLEEP:
            return self._resolve(RUNG)
        self.state = _WHEN_RUNG[self.state]
        return True

    def time_is_over(self) -> None:
        """Wake it for the last time."""
        if self.state == ASLEEP:
            self._resolve(LATE)
        else:
            self.state = _WHEN_LATE[self.state]

    def _resolve(self, state: int) -> bool:
        future = self.future
        if future.done():
            return False
        future.set_result(None)  # first: who is woken and not told looks all the same
        self.state = state
        del self.future  # from Python 3.14 on, it keeps the task that awaits it
        return True

    def has_looked(self) -> None:
        """It looked in its home under the lock, and what was there lies in the inboxes."""
        self.state = _WHEN_LOOKED[self.state]

    def was_served(self) -> None:
        """It has a message that a look, its own or another's, had put into an inbox."""
        self.state = _WHEN_SERVED[self.state]

    def has_taken(self) -> None:
        """It took a message from a queue, and that step saw to the parked bits."""
        self.state = _WHEN_TOOK[self.state]


Entries = dict[str, Waiter | dict[Waiter, None]]
"""One waiter alone, or several in the order they came."""


class Waiting:
    """Who waits on one loop.

    Attributes:
        by_key: by what they wait for.
        by_home: by the queue that lies in.
    """

    def __init__(self) -> None:
        self.by_key: Entries = {}
        self.by_home: Entries = {}

    def add(self, waiter: Waiter) -> None:
        """List a waiter; whoever calls this calls ``remove``, whatever happens."""
        waiter.state = LOOKING
        _enter(self.by_key, waiter.keys or _NO_CHANNEL, waiter)
        _enter(self.by_home, waiter.homes, waiter)

    def remove(self, waiter: Waiter) -> None:
        """List it no more; it may never have been, or only in part."""
        _strike(self.by_key, waiter.keys or _NO_CHANNEL, waiter)
        _strike(self.by_home, waiter.homes, waiter)

    def is_alone(self, home: str) -> bool:
        """Whether exactly one waits in a home."""
        found = self.by_home.get(home, ())
        return isinstance(found, Waiter) or len(found) == 1

    def only_by(self, waiter: Waiter) -> list[str]:
        """Return those of a waiter's homes that nobody else waits in."""
        return [home for home in waiter.homes if self.is_alone(home)]

    def only_one(self) -> Waiter | None:
        """Return the waiter, if there is exactly one that waits in any home."""
        only = None
        for home, found in self.by_home.items():
            if not self.is_alone(home):
                return None
            (waiter,) = _all_of(found)
            if only is not None and waiter is not only:
                return None
            only = waiter
        return only

    def wake(self, key: str, count: int) -> None:
        """Wake up to ``count`` of those who wait for a name."""
        for waiter in _all_of(self.by_key.get(key, ())):
            if waiter.wake():
                count -= 1
                if not count:
                    return

    def wake_each(self, keys: Iterable[str]) -> None:
        """Wake one who waits for each of these names."""
        find = self.by_key.get
        for key in keys:
            found: Any = find(key)
            if found is None:
                continue
            if found.__class__ is dict:
                self.wake(key, 1)
            elif found.state == ASLEEP:  # `Waiter.wake`, written out for thousands of them
                future = found.future
                if not future.done():
                    future.set_result(None)
                    found.state = TOLD
                    del found.future
            else:
                found.wake()

    def wake_all(self) -> None:
        """Wake everybody."""
        for found in self.by_key.values():
            for waiter in _all_of(found):
                waiter.wake()

    def ring(self, home: str) -> None:
        """Make one of those who wait in a home look there, unless all are cancelled."""
        for waiter in _all_of(self.by_home.get(home, ())):
            if waiter.ring():
                return


def _all_of(found: Waiter | Iterable[Waiter]) -> Iterable[Waiter]:
    return (found,) if isinstance(found, Waiter) else found


def _enter(entries: Entries, names: Sequence[str], waiter: Waiter) -> None:
    for name in names:
        found = entries.setdefault(name, waiter)
        if found is waiter:
            continue
        if isinstance(found, Waiter):
            entries[name] = {found: None, waiter: None}
        else:
            found[waiter] = None


def _strike(entries: Entries, names: Sequence[str], waiter: Waiter) -> None:
    for name in names:
        found = entries.get(name)
        if found is waiter:
            del entries[name]
        elif isinstance(found, dict):
            found.pop(waiter, None)
            if not found:
                del entries[name]
