"""A group message into the queues: one body, one envelope for each home.

Members that are ordinary channels get a message of their own that shares the body. Full
channels are skipped and counted, as the specification asks; nothing here raises because
something is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import _layout as L
from ._heap import HeapFull
from ._records import Records, is_full
from ._segment import Plan
from ._slots import Slots

__all__ = ["Envelope", "Fanout"]

Envelope = tuple[str, int, int]
"""A home that a group message goes to: its name, the membership version, its members."""

_ENVELOPE_FACTOR = 10  # queued messages of one group for one home, in capacities
_PLAN_ROOM = 400  # a plan of this many words is committed before it grows further


class _Targets(NamedTuple):
    """Where a group message goes: ``(name to carry, record, leaf, version)`` each."""

    targets: list[tuple[str, int, int, int]]
    dead: list[str]
    skipped: int


class Fanout:
    """Group sends into one messages segment; called with its lock held."""

    def __init__(self, records: Records, slots: Slots) -> None:
        self.segment = records.segment
        self.queues = records.queues
        self.records = records
        self.slots = slots

    def send(
        self,
        group: str,
        body: bytes,
        envelopes: Sequence[Envelope],
        channels: Sequence[str],
        capacity_of: Callable[[str], int],
        expiry_ns: int,
    ) -> tuple[list[str], int]:
        now = time.monotonic_ns()
        words = self.segment.words
        members = [*envelopes, *((name, 0, 1) for name in channels)]
        for making_room in (True, False):
            # Making room removes idle records, so nothing found before it may be used after.
            try:
                found = self._find_targets(group, members, capacity_of, must=making_room)
                plan = Plan(words)
                stored = self.queues.store_body(plan, body, 0) if found.targets else 0
                break
            except (HeapFull, OSError) as exc:
                if not is_full(exc):
                    raise
                if making_room:
                    self.records.make_room(now)
        else:
            found = found._replace(skipped=found.skipped + len(found.targets), targets=[])
            plan, stored = Plan(words), 0
        skipped = found.skipped
        for name, record, leaf, version in found.targets:
            if len(plan) > _PLAN_ROOM and plan[stored + L.BODY_REFS]:
                self.segment.commit(plan)
                plan = Plan(words)
            try:
                self.queues.append_shared(
                    plan, record, leaf, name, stored, len(body), version, now, now + expiry_ns
                )
            except (HeapFull, OSError) as exc:  # it planned nothing
                if not is_full(exc):
                    raise
                skipped += 1
                continue
            plan[stored + L.BODY_REFS] += 1
            self.slots.wake(plan, record)
        if stored and not plan[stored + L.BODY_REFS]:
            self.queues.heap.free(plan, stored)
        if skipped:
            plan[L.COUNT_DROPPED] += skipped
        if plan:
            self.segment.commit(plan)
        return found.dead, skipped

    def _find_targets(
        self,
        group: str,
        members: Sequence[Envelope],
        capacity_of: Callable[[str], int],
        *,
        must: bool,
    ) -> _Targets:
        """Find or make the records a group message goes to.

        Args:
            must: raise when a record cannot be made; otherwise skip that member.
        """
        words = self.segment.words
        found = _Targets([], [], 0)
        skipped = 0
        for name, version, count in members:
            record = self.records.find(name) or self.records.make(name, must=must)
            if (
                record
                and words[record + L.CH_LOOP]
                and not self.slots.is_live(words[record + L.CH_LOOP])
            ):
                found.dead.append(name)
                continue
            limit = capacity_of(name)
            leaf = 0
            if record and version:
                limit *= _ENVELOPE_FACTOR
                leaf = self.records.find(group, record) or self.records.make(
                    group, record, must=must
                )
            counted = leaf if version else record
            if not counted or words[counted + L.CH_SENT] - words[counted + L.CH_TAKEN] >= limit:
                skipped += count
            else:
                found.targets.append((group if version else "", record, leaf, version))
        return found._replace(skipped=skipped)
