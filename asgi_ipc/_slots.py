"""Loops that wait: their slots, parking on channels, and whom a sender rings.

SYNC POINT "wake": a sender rings a parked loop *before* it commits, while holding the
lock; a woken loop takes the lock before it looks. So a kill leaves no effect, a spurious
ring, or a message with its ring; never a message without one.

Invariant: beside a message that somebody could take, at least one loop that could take it
is not parked on it (it was rung, or is running), unless that loop has died. For the dead,
``reap_dead`` rings another. Below that is a net: the kernel tells every parked loop of the end of
a process, and it looks (``Port._on_event``); where it cannot be told it looks every few seconds.
Methods without a ``transact`` of their own are called with the lock held.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from . import _fast
from . import _layout as L
from ._records import Records
from ._segment import LockBusy, Plan
from .exceptions import TooManyLoops

__all__ = ["Ring", "Slots"]

Ring = Callable[[int, int], bool]
"""``ring(slot, token)``: wake that loop; False when its process is known to be dead."""

_PLAN_ROOM = 400  # a plan of this many words is committed before it grows further
_ALL = (1 << 64) - 1
_MASK_BYTES = 8 * L.PARKED_WORDS


class Slots:
    """The slots of one messages segment."""

    def __init__(self, records: Records, ring: Ring) -> None:
        self.segment = records.segment
        self.records = records
        self.ring = ring
        self.holder = 0  # what `CH_HOLDER` says for this process; 0: it is not told from others
        self.dead: list[tuple[int, int]] = []

    # -- waking --------------------------------------------------------------------------

    def wake(self, plan: dict[int, int], record: int) -> None:
        """Ring one loop parked on a channel, if any, and plan its bit away."""
        start = 8 * (record + L.CH_PARKED)
        mask = int.from_bytes(self.segment.memory[start : start + _MASK_BYTES], "little")
        if not mask:
            return
        for part in range(L.PARKED_WORDS):  # who was rung by this plan is parked no more
            planned = plan.get(record + L.CH_PARKED + part)
            if planned is not None:
                mask = mask & ~(_ALL << 64 * part) | planned << 64 * part
        self.wake_parked(plan, record, mask)

    def wake_parked(self, plan: dict[int, int], record: int, mask: int) -> None:
        """Ring one of the loops whose bits are set in ``mask``, and plan its bit away."""
        words = self.segment.words
        turn = words[record + L.CH_SENT]
        while mask:
            rest = mask
            for _ in range(turn % mask.bit_count()):
                rest &= rest - 1  # rotate: each send rings another one of the parked
            bit = rest & -rest
            mask ^= bit
            slot = bit.bit_length() - 1
            word = record + L.CH_PARKED + (slot >> 6)
            plan[word] = plan.get(word, words[word]) & ~(1 << (slot & 63))
            base = L.SLOTS + L.SLOT_WORDS * slot
            token = words[base + L.SLOT_TOKEN]
            if not token:
                continue
            if self.ring(slot, token):  # SYNC POINT "wake": before the commit
                hint = plan.get(base + L.SLOT_HINT, words[base + L.SLOT_HINT])
                if hint != record:
                    plan[base + L.SLOT_HINT] = L.HINT_MANY if hint else record
                return
            self.dead.append((slot, token))

    def leave(self, plan: Plan, slot: int, homes: Iterable[str]) -> None:
        words = self.segment.words
        word, bit = L.CH_PARKED + (slot >> 6), 1 << (slot & 63)
        for home in homes:
            record = self.records.find(home)
            if not record:
                continue
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan.clear()
            parked = plan.get(record + word)
            if parked is None:
                parked = words[record + word]
            if parked & bit:
                plan[record + word] = parked & ~bit
            elif plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]:
                self.wake(plan, record)

    # -- parking -------------------------------------------------------------------------

    def park(self, homes: Collection[str], slot: int, token: int) -> None:
        found = [self.records.find(home) for home in homes]
        if not all(found):
            for home in homes:
                if not self.records.find(home):
                    self.records.make(home)  # may make room, so nothing found before it is kept
            found = [self.records.find(home) for home in homes]
        words = self.segment.words
        word, bit = L.CH_PARKED + (slot >> 6), 1 << (slot & 63)
        plan = {}
        for home, record in zip(homes, found, strict=True):
            if not record:
                continue  # the memory is full: a later look parks it
            parked = words[record + word]
            if not parked & bit:
                plan[record + word] = parked | bit
            if home[-1] == "!":
                if words[record + L.CH_LOOP] != token:
                    plan[record + L.CH_LOOP] = token
                if words[record + L.CH_HOLDER] != self.holder:
                    plan[record + L.CH_HOLDER] = self.holder
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan = {}
        if plan:
            self.segment.commit(plan)

    def park_one(self, home: str, slot: int, token: int) -> bool:
        """Park on a home that is empty; False if ``take`` has to see to it."""
        known = self.records.known.get(home)
        if known is None:
            return False
        words = self.segment.words
        if words is None:
            return False  # closed by another thread
        # Read without the lock. Whoever takes the bit away rings the loop first, and that ring
        # is still to be answered by it: on this very thread, which is here now.
        record, ident = known
        if words[record + L.CH_SENT] != words[record + L.CH_TAKEN]:
            return False
        if (
            words[record + L.CH_PARKED + (slot >> 6)] >> (slot & 63) & 1
            and words[record + L.IDENT] == ident
        ):
            return True  # for another waiter of the loop
        try:
            if home[-1] != "!":
                return _fast.park(self.segment, known, slot, 0, 0)
            return _fast.park(self.segment, known, slot, token, self.holder)
        except LockBusy:
            return False

    def are_kept(self, homes: Iterable[str], token: int) -> bool:
        """Whether homes have records, and process-specific ones name this loop; a hint."""
        words = self.segment.words
        for home in homes:
            known = self.records.known.get(home)
            if words is None or known is None or words[known[0] + L.IDENT] != known[1]:
                return False
            if home[-1] == "!" and words[known[0] + L.CH_LOOP] != token:
                return False
        return True

    def rests(self, slot: int, homes: Iterable[str]) -> bool:
        """Whether a loop is parked on homes that are all empty; read without the lock: a hint."""
        words = self.segment.words
        if words is None or words[L.LOG_N]:
            return False
        known_of = self.records.known.get
        word, bit = L.CH_PARKED + (slot >> 6), 1 << (slot & 63)
        for home in homes:
            known = known_of(home)
            if known is None:
                return False
            record, ident = known
            if (
                words[record + L.IDENT] != ident
                or not words[record + word] & bit
                or words[record + L.CH_SENT] != words[record + L.CH_TAKEN]
            ):
                return False
        return True

    def look(
        self, slot: int, token: int, homes: Collection[str], *, hinted: bool
    ) -> list[tuple[str, int]]:
        """Say how many messages wait in each home that has any; park on those without.

        Args:
            hinted: if the loop was rung for one home only since it last looked, look at
                that one alone; and if it is none of ``homes``, pass the ring on.
        """
        return self.segment.transact(self._look, slot, token, homes, hinted)

    def _look(
        self, slot: int, token: int, homes: Collection[str], hinted: bool
    ) -> list[tuple[str, int]]:
        words = self.segment.words
        word = L.SLOTS + L.SLOT_WORDS * slot + L.SLOT_HINT
        hint = words[word]
        if hint:
            self.segment.commit({word: 0})
        one = self.records.name_at.get(hint) if hinted else None
        if one is not None and self.records.find(one) == hint:
            if one not in homes:
                self._withdraw(slot, (one,))
                return []
            homes = (one,)
        waiting = [(home, depth) for home in homes if (depth := self.records.depth(home))]
        full = {home for home, _ in waiting}
        self.park([home for home in homes if home not in full], slot, token)
        return waiting

    def withdraw(self, slot: int, homes: Iterable[str]) -> None:
        """Take the loop's parked bits back; pass a ring on that it will not answer."""
        self.segment.transact(self._withdraw, slot, homes)

    def _withdraw(self, slot: int, homes: Iterable[str]) -> None:
        plan = Plan(self.segment.words)
        self.leave(plan, slot, homes)
        if plan:
            self.segment.commit(plan)
        self.reap_dead()

    # -- owning a slot ------------------------------------------------------------------

    def claim(self, random_token: int) -> tuple[int, int]:
        """Give a loop a slot; return it and the loop's token.

        Args:
            random_token: 48 random bits; the loop's socket is listening under them already.

        Raises:
            TooManyLoops: all slots belong to living loops.
        """
        return self.segment.transact(self._claim, random_token)

    def _claim(self, random_token: int) -> tuple[int, int]:
        words = self.segment.words
        for attempt in range(2):
            for slot in range(L.SLOT_COUNT):
                base = L.SLOTS + L.SLOT_WORDS * slot
                if words[base + L.SLOT_TOKEN] == 0:
                    token = random_token << 8 | slot
                    self.segment.commit(
                        {
                            base + L.SLOT_TOKEN: token,
                            base + L.SLOT_PID: os.getpid(),
                            base + L.SLOT_HINT: 0,
                            base + L.SLOT_SINCE: time.time_ns(),
                        }
                    )
                    return slot, token
            if attempt == 0:
                self._probe_all()
        raise TooManyLoops(
            f"all {L.SLOT_COUNT} slots for event loops that receive from {self.segment.name} are "
            "taken: receive from fewer loops and threads, or split the site by prefix"
        )

    def _probe_all(self) -> None:
        for slot in range(L.SLOT_COUNT):
            token = self.segment.words[L.SLOTS + L.SLOT_WORDS * slot]
            if token and not self.ring(slot, token):
                self.dead.append((slot, token))
        self.reap_dead()

    def release(self, slot: int, token: int, homes: Sequence[str], anchor: int) -> None:
        """Give a slot back, unparked from ``homes``; pass on rings it has not answered.

        Args:
            anchor: token of the process, which still has the process-specific ones.
        """
        self.segment.transact(self._release, slot, token, homes, anchor)

    def _release(self, slot: int, token: int, homes: Sequence[str], anchor: int) -> None:
        words = self.segment.words
        base = L.SLOTS + L.SLOT_WORDS * slot
        if words[base + L.SLOT_TOKEN] != token:
            return
        plan = Plan(words)
        self.leave(plan, slot, homes)
        for home in homes:
            record = self.records.find(home)
            if record and words[record + L.CH_LOOP] == token:
                plan[record + L.CH_LOOP] = anchor
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan = Plan(words)
        plan[base + L.SLOT_TOKEN] = 0
        self.segment.commit(plan)
        self.reap_dead()

    def reap_dead(self) -> None:
        while self.dead:
            self._reap(*self.dead.pop())

    def _reap(self, slot: int, token: int) -> None:
        """Free a dead loop's slot and ring others in its place.

        Every step is repeatable, so whoever is killed in here is repeated by the next.
        """
        words = self.segment.words
        base = L.SLOTS + L.SLOT_WORDS * slot
        if words[base + L.SLOT_TOKEN] != token:
            return
        parked = L.CH_PARKED + (slot >> 6)
        bit = 1 << (slot & 63)
        for record in list(self.records.queues.table.records()):
            plan = Plan(words)
            if words[record + parked] & bit:
                plan[record + parked] = words[record + parked] & ~bit
                self.segment.commit(plan)
            if words[record + L.CH_SENT] != words[record + L.CH_TAKEN] and self.records.is_parked(
                record
            ):
                plan = Plan(words)
                self.wake(plan, record)
                self.segment.commit(plan)
        self.segment.note(
            logging.INFO,
            "process-reaped",
            "reaped the slot of dead process %d",
            words[base + L.SLOT_PID],
        )
        self.segment.commit({base + L.SLOT_TOKEN: 0, base + L.SLOT_HINT: 0})

    def found_dead(self, token: int) -> bool:
        """Whether a loop was rung in vain and not reaped yet."""
        return any(token == dead for _, dead in self.dead)

    def lives(self, token: int, record: int) -> bool:
        """Whether the loop that receives for a home is not known to be dead.

        One that is neither parked there nor has taken what waits may have been killed in
        between: it is asked, by a ring that does no harm.
        """
        if token & L.ANCHOR:
            return self.ring(-1, token)
        slot = token & 0xFF
        if self.segment.words[L.SLOTS + L.SLOT_WORDS * slot] != token:
            return False
        if self.records.is_parked(record) or not self.records.depth_of(record):
            return True
        if self.ring(slot, token):
            return True
        self.dead.append((slot, token))
        return False
