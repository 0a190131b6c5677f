"""Counts of the messages segment, kept by the operations themselves at no cost of their own.

A channel record counts for its channel; what a record counted that is gone is in the
header. Every method is called with the lock held.
"""

from __future__ import annotations

import time

from .._shm import layout as L
from .records import Records

__all__ = ["Counts", "Statistics"]

Counts = dict[str, int]

_COUNTED = ("sent", "received", "expired", "full", "pending", "max_age_ns")


class Statistics:
    """What one messages segment has seen since it was made."""

    def __init__(self, records: Records) -> None:
        self.segment = records.segment
        self.queues = records.queues
        self.records = records

    def totals(self) -> Counts:
        words = self.segment.words
        now = time.monotonic_ns()
        totals = {
            "sent": words[L.COUNT_SENT],
            "received": words[L.COUNT_RECEIVED],
            "expired": words[L.COUNT_EXPIRED],
            "full": words[L.COUNT_FULL],
            "memory_full": words[L.COUNT_MEMORY_FULL],
            "dropped": words[L.COUNT_DROPPED],
            "flushed": words[L.COUNT_FLUSHED],
            "pending": 0,
            "channels": 0,
            "max_age_ns": 0,
        }
        for record in self.queues.table.records():
            one = self._count(record, now)
            totals["full"] += one["full"]
            if words[record + L.OWNER]:
                continue
            for key in ("sent", "received", "expired", "pending"):
                totals[key] += one[key]
            totals["channels"] += 1
            totals["max_age_ns"] = max(totals["max_age_ns"], one["max_age_ns"])
        return totals

    def of_channel(self, name: str, home: str) -> Counts:
        record = self.records.find(home)
        if record and name != home:
            record = self.records.find(name, record)
        if not record:
            return dict.fromkeys(
                ("sent", "received", "expired", "full", "pending", "max_age_ns"), 0
            )
        return self._count(record, time.monotonic_ns())

    def _count(self, record: int, now: int) -> Counts:
        words = self.segment.words
        sent = words[record + L.CH_SENT]
        taken = words[record + L.CH_TAKEN]
        expired = words[record + L.CH_EXPIRED]
        pending = sent - taken
        if words[record + L.OWNER] and not self.records.holds(record, now):
            pending = sent - words[record + L.LEAF_DRAINED]  # what was drained was written off
        age = 0
        if sent != taken and not words[record + L.OWNER]:
            head = self.queues.heap.check(words[record + L.CH_HEAD])
            age = max(0, now - words[head + L.MSG_SENT])
        return {
            "sent": sent,
            "received": taken - expired,
            "expired": expired,
            "full": words[record + L.CH_FULL],
            "pending": pending,
            "max_age_ns": age,
        }
