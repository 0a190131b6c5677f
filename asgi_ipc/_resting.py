"""What thousands of waiting receives do all day, straight-lined: rest, and be served.

A receive rests if it waits on asyncio and for ever for one full name below a process-specific
home, beside others, on a loop that is parked there; it is served with what was drained for it
when the loop was rung. These do what ``Port.add``, a look, ``Inboxes.pop`` and ``Port.remove``
do in the general case, and decline whatever is not ordinary; ``Reception`` then does the work.

Measured, per member of a group message for 2,000 in one process: 8.4 µs through the general case,
5.5 with these, of which asyncio's own resolve, schedule and resume is 1.7 and decoding 0.4.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from . import _codec
from . import _layout as L
from ._inbox import Inboxes
from ._port import Waiter
from ._site import Site

__all__ = ["give_up", "rest", "served"]

_EPOCH, _IDENT = L.EPOCH, L.IDENT
_SENT, _TAKEN, _PARKED = L.CH_SENT, L.CH_TAKEN, L.CH_PARKED


def rest(site: Site, inboxes: Inboxes, key: str, home: str, spin_rounds: int) -> Waiter | None:
    """Begin to wait for a name; ``None`` if there may be something, or this is not the place.

    Whoever gets a waiter awaits its future, then asks ``served``; if the await raises, ``give_up``.
    """
    store = site.messages
    known = store.records.known.get(home)
    words = store.segment.words
    if known is None or words is None:
        return None
    record, ident = known
    if words[record + _SENT] != words[record + _TAKEN]:
        return None
    loop = asyncio._get_running_loop()
    port = site.port_by_loop.get(id(loop))
    if loop is None or port is None or not port.fittings.open:
        return None
    homes = port.homes
    slot = port.slot
    # Read without the lock. Whoever takes the bit away rings the loop first, and that ring
    # is still to be answered by it: on this very thread, which is here now.
    if (
        not words[record + _PARKED + (slot >> 6)] >> (slot & 63) & 1
        or words[record + _IDENT] != ident
        or home not in homes
        or key in port.waiters
        or (spin_rounds and port.spin.is_due())  # last: being asked is counted
    ):
        return None
    if port.spare:  # making one anew takes a twentieth of a member's time
        waiter = port.spare.pop()
        waiter.keys = (key,)
        waiter.homes = (home,)
        waiter.was_woken = False
    else:
        waiter = Waiter((key,), (home,))
        waiter.parked = True
        waiter.port = port
    port.waiters[key] = waiter
    homes[home] += 1
    port.waiter_count += 1
    waiter.closings = site.closings
    waiter.future = loop.create_future()
    if inboxes.count and key in inboxes.by_name:
        waiter.wake()  # it lies there already
    return waiter


def served(site: Site, inboxes: Inboxes, waiter: Waiter, crowded_at: int) -> dict[str, Any] | None:
    """Return the message that woke one which rested; ``None``: it has to look for itself.

    Args:
        crowded_at: so much in the queue may be too much for the name: see ``Reception``.

    Raises:
        SegmentCorrupt: the message was damaged; the wait is over.
    """
    waiter.future = None
    key = waiter.keys[0]
    try:
        with site.mutex:
            store = site.messages
            words = store.segment.words
            if words is None or words[_EPOCH] != inboxes.epoch:
                return None
            known = store.records.known.get(waiter.homes[0])
            if known is None or words[known[0] + _SENT] - words[known[0] + _TAKEN] >= crowded_at:
                return None
            entry = inboxes.pop_alone(key, time.monotonic_ns())
        if entry is None:
            return None
        message = _codec.decode(entry.body)
    except BaseException:
        give_up(waiter)
        raise
    port = waiter.port
    home = entry.home
    homes = port.homes
    count = homes[home]
    if count == 1 or waiter.has_duty or port.waiters[key] is not waiter:
        waiter.found_in_inbox = True
        port.remove(waiter, got=False)
    else:  # nobody woke it for anything else: as good as new, but for having been woken
        port.spare.append(waiter)
        del port.waiters[key]
        homes[home] = count - 1
        port.waiter_count -= 1
    return message


def give_up(waiter: Waiter) -> None:
    """End the wait of one that rested: it was cancelled, say. What woke it is passed on."""
    waiter.future = None
    waiter.port.remove(waiter, got=False)
