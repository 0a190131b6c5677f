"""A group message into the queues: one body, one envelope for each home.

Members that are ordinary channels get a message of their own that shares the body. Full
channels are skipped and counted, as the specification asks; nothing here raises because
something is full.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .._memory.heap import HeapFull
from .._shm import layout as L
from .._shm.segment import Plan
from .records import Records, is_full
from .slots import Slots

__all__ = ["Drop", "Envelope", "Fanout", "GroupMessage", "GroupSent"]


class Envelope(NamedTuple):
    """Where a group message goes: a home, or an ordinary channel.

    Attributes:
        name: of the home or the channel.
        version: the membership it is sent to; 0 for an ordinary channel.
        members: how many receive it.
        excluded: names that do not, each with a NUL before it.
    """

    name: str
    version: int
    members: int
    excluded: bytes = b""


class GroupMessage(NamedTuple):
    """One group message; ``capacity_of`` tells a channel's capacity."""

    group: str
    body: bytes
    envelopes: Sequence[Envelope]
    capacity_of: Callable[[str], int]
    expiry_ns: int


class Drop(NamedTuple):
    """Group messages that were skipped.

    Attributes:
        channel: the member, or the process-specific home of several.
        members: how many did not get it.
        depth: messages that waited there.
        capacity: messages it may hold; 0 when it was the memory that was full.
        cause: ``"channel full"`` or ``"memory full"``.
        group: whose message it was.
    """

    channel: str
    members: int
    depth: int
    capacity: int
    cause: str
    group: str


class GroupSent(NamedTuple):
    """How many members a group message reached: what ``group_send`` returns.

    It is false, as the ``None`` of other channel layers: whoever hands it on, out of an
    ``__aexit__`` or as a handler's answer, says nothing by it. Ask for its counts.

    Attributes:
        reached: members that it was queued for.
        skipped: members that it was not queued for, because they or the memory were full. A member
            that is found full later, when its process takes what is queued for all of its channels,
            is told to ``on_drop`` there.
    """

    reached: int
    skipped: int

    def __bool__(self) -> bool:
        return False


_SLICE = 24  # envelopes in one transaction: about 16 words each, of a log of 512

_UNKNOWN = (0, 0)
_RECORD = struct.Struct(f"<{L.CH_PARKED + L.PARKED_WORDS - L.IDENT}Q").unpack_from
_RECORD_START = 8 * L.IDENT
_BODY_HEAD = struct.Struct("<2Q").pack
_HEAD = struct.Struct(f"<{L.MSG_DATA - L.DATA + 2}Q").pack
_ENVELOPE_BYTES = 8 * L.MSG_DATA + 16
_IS_ENVELOPE = L.MSG_FLAG_GROUP << L.MSG_FLAG_SHIFT
_BELOW_KIND = (1 << L.KIND_SHIFT) - 1


class _Target(NamedTuple):
    name: str
    members: int
    record: int
    leaf: int
    version: int
    excluded: bytes


class _Targets(NamedTuple):
    """Where a group message goes, which homes are dead, and what is skipped."""

    targets: list[_Target]
    dead: list[str]
    drops: list[Drop]


class _Planned(NamedTuple):
    """A planned slice, rung for already; ``stored`` is the body's extent."""

    plan: Plan
    found: _Targets
    stored: int


class Fanout:
    """Group sends into one messages segment; called with its lock held."""

    def __init__(self, records: Records, slots: Slots) -> None:
        self.segment = records.segment
        self.queues = records.queues
        self.records = records
        self.slots = slots

    def send(self, message: GroupMessage) -> tuple[list[str], list[Drop]]:
        """Queue a group message; see ``MessageStore.send_group``."""
        now = time.monotonic_ns()
        dead = self._send_straight(message, now)
        if dead is None and self._stock(message):
            dead = self._send_straight(message, now)
        if dead is not None:
            return dead, []
        dead = []
        drops: list[Drop] = []
        stored = places = 0
        for first in range(0, len(message.envelopes), _SLICE):
            part = message.envelopes[first : first + _SLICE]
            planned = self._plan_with_room(message, part, stored, now)
            stored = planned.stored
            dead += planned.found.dead
            drops += planned.found.drops
            plan = planned.plan
            if served := planned.found.targets:
                plan[L.COUNT_COPIES] += len(served) - (not places)
                plan[L.COUNT_SHARED] += sum(target.members for target in served) - len(served)
                places += len(served)
            if planned.found.drops:
                plan[L.COUNT_DROPPED] += sum(drop.members for drop in planned.found.drops)
            if plan:
                self.segment.commit(plan)
            if self.slots.dead:  # rung in vain
                dead += [
                    target.name
                    for target in planned.found.targets
                    if target.version and self.slots.is_dead(target.record)
                ]
        return dead, drops

    def _send_straight(self, message: GroupMessage, now: int) -> list[str] | None:
        """Do in a straight line what is ordinary; ``None``, with nothing changed, if this is not.

        Ordinary are process-specific homes that this process knows, none of them full or known to
        be dead, and quick lists that have all the extents. What is written then is exactly what the
        general case writes, which needs twice as many instructions.

        Returns:
            Homes that turned out to be dead.
        """
        if not 0 < len(message.envelopes) <= _SLICE:
            return None
        words, memory = self.segment.words, self.segment.memory
        start, end = self.segment.heap_start, self.segment.backed_end
        group, body = message.group, message.body
        size = len(body)
        deadline = now + message.expiry_ns
        plan: dict[int, int] = {}
        stored = self._extent(plan, 8 * L.BODY_DATA + size, L.EXTENT_BODY)
        if not stored:
            return None
        known, known_below = self.records.known, self.records.known_below
        name = group.encode("ascii")
        targets = []
        addressed = 0
        for home, version, members, excluded in message.envelopes:
            addressed += members
            record, ident = known.get(home, _UNKNOWN)
            if not record:
                return None
            # A channel that is a member itself has none below it.
            leaf, leaf_ident = known_below.get((group, record), _UNKNOWN)
            extent = self._extent(
                plan, _ENVELOPE_BYTES + len(name) + len(excluded), L.EXTENT_MESSAGE
            )
            if not leaf or not extent or words[leaf + L.IDENT] != leaf_ident:
                return None
            ident_now, _, _, _, tail, sent, taken, p0, p1, p2, p3 = _RECORD(
                memory, 8 * record + _RECORD_START
            )
            parked = p0 | p1 << 64 | p2 << 128 | p3 << 192
            owner = words[record + L.CH_OWNER]
            link = record + L.CH_HEAD
            if sent != taken:
                if tail & 3 or not start <= tail < end:
                    return None
                link = tail + L.MSG_NEXT
            counted = words[leaf + L.CH_SENT]
            if (
                ident_now != ident
                or counted - words[leaf + L.CH_TAKEN] >= message.capacity_of(home)
                or (owner and not parked and self.slots.is_dead(record))
            ):
                return None
            targets.append((record, leaf, extent, link, sent, counted, parked, version, excluded))
        for record, _, _, _, _, _, parked, _, _ in targets:
            if parked:  # before the rest is prepared: whoever is rung needs longer to get here
                self.slots.wake_parked(plan, record, parked)
        plan[L.COUNT_COPIES] = words[L.COUNT_COPIES] + len(targets) - 1
        plan[L.COUNT_SHARED] = words[L.COUNT_SHARED] + addressed - len(targets)
        at = 8 * (stored + L.BODY_REFS)
        memory[at : at + 16] = _BODY_HEAD(len(targets), size)
        memory[at + 16 : at + 16 + size] = body
        for record, leaf, extent, link, sent, counted, _, version, excluded in targets:
            lengths = len(excluded) << L.MSG_EXCLUDED_SHIFT | len(name) << L.MSG_NAME_SHIFT | size
            head = _HEAD(0, deadline, now, leaf, lengths | _IS_ENVELOPE, stored, version)
            envelope = head + name + excluded
            at = 8 * (extent + L.DATA)
            memory[at : at + len(envelope)] = envelope
            plan[link] = plan[record + L.CH_TAIL] = extent
            plan[record + L.CH_SENT] = sent + 1
            plan[leaf + L.CH_SENT] = counted + 1
        self.segment.commit(plan)
        if not self.slots.dead:
            return []
        found = zip(message.envelopes, targets, strict=True)
        return [one.name for one, (record, *_) in found if self.slots.is_dead(record)]

    def _stock(self, message: GroupMessage) -> bool:
        """Fill the quick lists that a message empties; whether any was."""
        heap = self.queues.heap
        body = heap.stock(8 * L.BODY_DATA + len(message.body), L.EXTENT_BODY)
        size_bytes = _ENVELOPE_BYTES + len(message.group)
        return heap.stock(size_bytes, L.EXTENT_MESSAGE) or body

    def _extent(self, plan: dict[int, int], size_bytes: int, kind: int) -> int:
        """Plan to take an extent from its quick list; 0 if there is none."""
        granules = (size_bytes + L.GRANULE_BYTES - 1) >> 5
        if granules > L.LARGEST_QUICK:
            return 0
        words = self.segment.words
        quick = L.QUICK_FOR[granules]
        entry = plan.get(quick)
        if entry is None:
            entry = words[quick]
        extent: int = entry & L.OFFSET_MASK
        if extent & 3 or not self.segment.heap_start <= extent < self.segment.backed_end:
            return 0
        header = words[extent]
        if header >> L.KIND_SHIFT != kind:
            plan[extent] = kind << L.KIND_SHIFT | header & _BELOW_KIND
        left = (entry >> L.COUNT_SHIFT) - 1
        plan[quick] = (
            left << L.COUNT_SHIFT | words[extent + L.FREE_NEXT] & L.OFFSET_MASK if left else 0
        )
        return extent

    def _plan_with_room(
        self, message: GroupMessage, part: Sequence[Envelope], stored: int, now: int
    ) -> _Planned:
        try:
            return self.records.fit(
                lambda: self._plan(message, part, stored, now, self.records.make_now), now
            )
        except (HeapFull, OSError) as exc:
            if not is_full(exc):
                raise
        # No more room to be had: whoever still fits gets it, the others are dropped.
        return self._plan(message, part, stored, now, make=None)

    def _plan(
        self,
        message: GroupMessage,
        part: Sequence[Envelope],
        stored: int,
        now: int,
        make: Callable[..., int] | None,
    ) -> _Planned:
        """Find the targets and plan everything for them: anew each time it is called.

        Args:
            stored: the body's extent, 0 if it is not stored yet.
            make: makes a channel's record; ``None``: what finds no memory is dropped.
        """
        found = self._find_targets(message, part, now, make=make or (lambda *_: 0))
        plan = Plan(self.segment.words)
        for target in found.targets:
            # Before the rest is prepared: whoever is rung needs longer to get here.
            self.slots.wake(plan, target.record)
        size = len(message.body)
        fresh = not stored and bool(found.targets)
        try:
            if fresh:
                stored = self.queues.store_body(plan, message.body, 0)
        except HeapFull:
            if make is not None:
                raise
            found.drops.extend(_out_of_memory(message, target) for target in found.targets)
            return _Planned(plan, found._replace(targets=[]), 0)
        served = []
        for target in found.targets:
            name = message.group if target.version else ""
            try:
                self.queues.append_shared(
                    plan,
                    target.record,
                    target.leaf,
                    name,
                    stored,
                    size,
                    target.version,
                    now,
                    now + message.expiry_ns,
                    target.excluded,
                )
            except HeapFull:  # it planned nothing
                if make is not None:
                    raise
                found.drops.append(_out_of_memory(message, target))
                continue
            plan[stored + L.BODY_REFS] += 1
            served.append(target)
        if fresh and not served:
            self.queues.heap.free(plan, stored)
            stored = 0
        return _Planned(plan, found._replace(targets=served), stored)

    def _find_targets(
        self, message: GroupMessage, part: Sequence[Envelope], now: int, make: Callable[..., int]
    ) -> _Targets:
        """Find or make the records a group message goes to; drop what has expired of the full ones.

        Commits, so nothing may be planned.

        Args:
            make: makes one; what it returns 0 for is skipped.
        """
        words = self.segment.words
        found = _Targets([], [], [])
        for name, version, members, excluded in part:
            record = self.records.find(name) or make(name)
            if (
                record
                and words[record + L.CH_OWNER]
                and not self.records.is_parked(record)  # who is parked is rung, and that tells
                and self.slots.is_dead(record)
            ):
                found.dead.append(name)
                continue
            limit = message.capacity_of(name)
            leaf = 0
            if record and version:
                leaf = self.records.find(message.group, record) or make(message.group, record)
            counted = leaf if version else record
            target = _Target(name, members, record, leaf, version, excluded)
            if not counted:
                found.drops.append(_out_of_memory(message, target))
                continue
            if self.records.depth_of(counted) >= limit:
                self.records.drop_expired(record, now)
            depth = self.records.depth_of(counted)
            if depth >= limit:
                found.drops.append(Drop(name, members, depth, limit, "channel full", message.group))
            else:
                found.targets.append(target)
        return found


def _out_of_memory(message: GroupMessage, target: _Target) -> Drop:
    return Drop(target.name, target.members, 0, 0, "memory full", message.group)
