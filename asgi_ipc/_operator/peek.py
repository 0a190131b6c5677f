"""Looking into one queue, or one group: nothing is taken, nothing is changed.

A queue is read by planning to pop from it and never committing the plan. The lock is held
for about ``HOLD_S``: a linked list cannot be left in the middle and resumed, so what is
deeper in a long queue is out of reach, and the answer says so. Some are looked at whatever the
time: a process that is preempted with the lock in its hands has not looked at less for it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from .._shm import layout as L
from .._shm.segment import Plan
from .._store.groups import Groups
from .._store.queues import Queues
from ..names import home_of
from .image import Image
from .survey import HOLD_S

__all__ = ["Mark", "Member", "News", "Peek", "Peeked", "members", "news", "peek"]

_AT_LEAST = 100  # messages or members: 0.3 ms
_AT_LEAST_BYTES = 1 << 20  # of messages: 0.3 ms as well


class Peeked(NamedTuple):
    """One waiting message.

    Attributes:
        position: in its queue, from 1.
        channel: the full name it was sent to; the queue's own for a group message.
        group: the group it was sent to, if several members of one process share it.
        body: the encoded message.
        age_s: how long it has waited.
        expires_in_s: when it will be dropped; negative: it is to be dropped when met.
    """

    position: int
    channel: str
    group: str | None
    body: bytes
    age_s: float
    expires_in_s: float


class Peek(NamedTuple):
    """What was found in a queue.

    Attributes:
        depth: how many messages wait in the whole queue.
        messages: the first ones.
        searched: how many messages of the queue were looked at.
    """

    depth: int
    messages: list[Peeked]
    searched: int


class Mark(NamedTuple):
    """How far a queue was seen: its record's ident, and how many it had been sent."""

    ident: int
    sent: int


class News(NamedTuple):
    """What was sent to a queue between two looks.

    Attributes:
        mark: for the next look.
        messages: those that still wait.
        missed: how many were sent and taken meanwhile, or are behind too many others.
    """

    mark: Mark
    messages: list[Peeked]
    missed: int


class Member(NamedTuple):
    """One membership; ``expires_in_s`` is when it ends unless it is renewed."""

    channel: str
    expires_in_s: float


def peek(image: Image, channel: str, limit: int) -> Peek:
    """Return the first messages of a channel; of a full name ``a!b``, those sent to it.

    Raises:
        LockHeld: the lock could not be had.
        SegmentCorrupt: the queue contradicts itself.
    """
    return image.transact(_peek, image, channel, limit)


def _peek(image: Image, channel: str, limit: int) -> Peek:
    queues = Queues(image)
    plan = Plan(image.words)
    home = home_of(channel)
    record = queues.find_channel(plan, home)
    if not record:
        return Peek(0, [], 0)
    now = time.monotonic_ns()
    give_up = time.perf_counter() + HOLD_S
    depth = plan[record + L.CH_SENT] - plan[record + L.CH_TAKEN]
    found: list[Peeked] = []
    position = copied = 0
    while position < depth and len(found) < limit:
        is_some = position >= _AT_LEAST or copied >= _AT_LEAST_BYTES
        if is_some and time.perf_counter() > give_up:
            break
        position += 1
        peeked = _next(image, queues, plan, record, home, position, now)
        copied += len(peeked.body)
        if _is_for(peeked, channel, home):
            found.append(peeked)
    return Peek(depth, found, position)


def _next(
    image: Image, queues: Queues, plan: Plan, record: int, home: str, position: int, now: int
) -> Peeked:
    sent_ns = image.words[queues.heap.check(plan[record + L.CH_HEAD]) + L.MSG_SENT]
    popped = queues.pop(plan, record, home)
    group = popped.name if popped.group_version else None
    return Peeked(
        position,
        home if group else popped.name,
        group,
        bytes(popped.body),
        (now - sent_ns) / 1e9,
        (popped.deadline_ns - now) / 1e9,
    )


def _is_for(peeked: Peeked, channel: str, home: str) -> bool:
    return channel == home or (peeked.group is None and peeked.channel == channel)


def news(image: Image, channel: str, mark: Mark | None) -> News:
    """Return what was sent to a channel since an earlier look, as far as it still waits.

    Args:
        mark: of the look before; ``None``: this is the first, which finds nothing.

    Raises:
        LockHeld: the lock could not be had.
        SegmentCorrupt: the queue contradicts itself.
    """
    return image.transact(_news, image, channel, mark)


def _news(image: Image, channel: str, mark: Mark | None) -> News:
    queues = Queues(image)
    plan = Plan(image.words)
    home = home_of(channel)
    record = queues.find_channel(plan, home)
    if not record:
        return News(Mark(0, 0), [], 0)
    sent = plan[record + L.CH_SENT]
    here = Mark(plan[record + L.IDENT], sent)
    if mark is None:
        return News(here, [], 0)
    fresh = sent - (mark.sent if mark.ident == here.ident else 0)
    depth = sent - plan[record + L.CH_TAKEN]
    now = time.monotonic_ns()
    give_up = time.perf_counter() + HOLD_S
    for passed in range(max(0, depth - fresh)):
        if passed % _AT_LEAST == _AT_LEAST - 1 and time.perf_counter() > give_up:
            return News(here, [], fresh)  # what is new is behind too much that is not
        extent = queues.heap.check(plan[record + L.CH_HEAD])
        plan[record + L.CH_HEAD] = image.words[extent + L.MSG_NEXT]
    found: list[Peeked] = []
    waiting = min(depth, fresh)
    for position in range(1, waiting + 1):
        if position > _AT_LEAST and time.perf_counter() > give_up:
            break  # the rest is for the next look
        found.append(_next(image, queues, plan, record, home, position, now))
    wanted = [peeked for peeked in found if _is_for(peeked, channel, home)]
    seen = here._replace(sent=sent - (waiting - len(found)))
    return News(seen, wanted, fresh - waiting)


def members(image: Image, group: str, limit: int) -> tuple[list[Member], bool] | None:
    """Return members of a group, and whether those are all; ``None``: no such group.

    Raises:
        LockHeld: the lock could not be had.
        SegmentCorrupt: the group contradicts itself.
    """
    return image.transact(_members, image, group, limit)


def _members(image: Image, group: str, limit: int) -> tuple[list[Member], bool] | None:
    groups = Groups(image)
    record = groups.find_group(Plan(image.words), group)
    if not record:
        return None
    now = time.monotonic_ns()
    give_up = time.perf_counter() + HOLD_S
    found: list[Member] = []
    for home in groups.homes(record):
        for name, member in groups.members(home):
            if len(found) >= limit or (len(found) >= _AT_LEAST and time.perf_counter() > give_up):
                return found, False
            if not member.left and member.deadline_ns > now:
                found.append(Member(name, (member.deadline_ns - now) / 1e9))
    return found, True
