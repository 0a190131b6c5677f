"""Loops that wait: their slots, parking on channels, and whom a sender rings.

SYNC POINT "wake": a sender rings a parked loop *before* it commits, while holding the
lock; a woken loop takes the lock before it looks. So a kill leaves no effect, a spurious
ring, or a message with its ring; never a message without one. Whether who was rung lives is
asked *after* the commit, without the lock (``settle``): so no death before the commit is missed,
and who dies after it is told of by the kernel when the message is there to be seen.

Invariant: beside a message that somebody could take, at least one loop that could take it
is not parked on it (it was rung, or is running), unless that loop has died. For the dead,
``reap_dead`` rings another. Below that is a net: the kernel tells every parked loop of the end of
a process, and it looks (``Port._on_event``); where it cannot be told it looks every few seconds.

Only a process that is *proven* dead (``_process/witness``) is reaped. Of whom nothing is known
the bit stays parked, and somebody else is rung as well. A process-specific home belongs to a
*process*, its owner, and not to one of its loops. An owner keeps it while it lives; the next one
who parks or polls takes over from the dead. Every step of reaping is repeatable: who is killed in
it does no harm.

Methods without a ``transact`` of their own are called with the lock held.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from .._process.witness import Life
from .._shm import layout as L
from .._shm.segment import LockBusy, Plan
from ..exceptions import IPCError, TooManyLoops
from . import queues_fast
from .records import Records

__all__ = ["Bells", "Slots"]


class Bells(Protocol):
    """Whom this process can ring, and what is known of others: a ``Ringer``."""

    def ring(self, slot: int, token: int, process: int) -> Life:
        """Wake that loop of that process, before the commit. ALIVE: it was rung."""
        ...

    def heard(self, slot: int, token: int, process: int) -> Life:
        """After the commit: whether a loop that was rung lives."""
        ...

    def ask(self, process: int) -> Life:
        """Whether the process with this token lives."""
        ...

    def token(self) -> int:
        """Return the token of this process, which proves that it lives."""
        ...

    def is_own(self, process: int) -> bool:
        """Whether a token is this process's, or was."""
        ...

    def forget(self, slot: int, token: int) -> None:
        """Tidy up after a loop that is reaped."""
        ...


_PLAN_ROOM = 400  # a plan of this many words is committed before it grows further
_MOST_STRANGERS = 1000
_HOMES_AT_ONCE = 64  # left in one plan: six words each at most
_ALL = (1 << 64) - 1
_MASK_BYTES = 8 * L.PARKED_WORDS
_ALIVE, _DEAD, _UNKNOWN = Life.ALIVE, Life.DEAD, Life.UNKNOWN


class Slots:
    """The slots of one messages segment."""

    def __init__(self, records: Records, bells: Bells) -> None:
        self.segment = records.segment
        self.records = records
        self.ring = bells.ring
        self.heard = bells.heard
        self.ask = bells.ask
        self.forget = bells.forget
        self.token = bells.token
        self.is_own = bells.is_own
        self.rung: list[tuple[int, int, int]] = []  # to be asked for, see `settle`
        self.dead: list[tuple[int, int]] = []  # rung in vain, to be reaped
        self.dead_homes: set[str] = set()  # whose owner is dead: their members are to be dropped
        self._strangers: set[str] = set()  # homes of other processes that was warned of
        records.is_kept = self._is_kept
        records.ask = bells.ask

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
            base = L.SLOTS + L.SLOT_WORDS * slot
            token = words[base + L.SLOT_TOKEN]
            life = _DEAD
            if token:  # SYNC POINT "wake": before the commit
                life = self.ring(slot, token, words[base + L.SLOT_PROCESS])
                if life is _UNKNOWN:
                    continue  # it stays parked, and somebody else is rung as well
            word = record + L.CH_PARKED + (slot >> 6)
            plan[word] = plan.get(word, words[word]) & ~(1 << (slot & 63))
            if life is _ALIVE:
                hint = plan.get(base + L.SLOT_HINT, words[base + L.SLOT_HINT])
                if hint != record:
                    plan[base + L.SLOT_HINT] = L.HINT_MANY if hint else record
                self.rung.append((slot, token, words[base + L.SLOT_PROCESS]))
                return
            if token:
                self.dead.append((slot, token))

    def leave(self, plan: Plan, slot: int, homes: Iterable[str]) -> None:
        """Plan to take the loop's parked bits back, of a few homes; pass rings on."""
        words = self.segment.words
        word, bit = L.CH_PARKED + (slot >> 6), 1 << (slot & 63)
        for home in homes:
            record = self.records.find(home)
            if not record:
                continue
            parked = plan.get(record + word)
            if parked is None:
                parked = words[record + word]
            if parked & bit:
                plan[record + word] = parked & ~bit
            elif plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]:
                self.wake(plan, record)

    def leave_many(self, slot: int, homes: Iterable[str]) -> None:
        """Do the same at once, of any number of homes; call it with nothing planned."""
        rest = iter(homes)
        while some := list(itertools.islice(rest, _HOMES_AT_ONCE)):
            plan = Plan(self.segment.words)
            self.leave(plan, slot, some)
            if plan:
                self.segment.commit(plan)

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
                owner = words[record + L.CH_OWNER]
                if owner != token:
                    if owner and self.ask(owner) is _ALIVE:
                        self._note_stranger(home, owner)
                    else:
                        plan[record + L.CH_OWNER] = token
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan = {}
        if plan:
            self.segment.commit(plan)

    def _note_stranger(self, home: str, owner: int) -> None:
        """Say once that somebody waits here for what another living process owns."""
        if home in self._strangers or self.is_own(owner):
            return
        if len(self._strangers) >= _MOST_STRANGERS:
            self._strangers.clear()
        self._strangers.add(home)
        words = self.segment.words
        bases = range(L.SLOTS, L.BUCKETS, L.SLOT_WORDS)
        pids = [words[at + L.SLOT_PID] for at in bases if words[at + L.SLOT_PROCESS] == owner]
        self.segment.note(
            logging.WARNING,
            "receive-of-another",
            "a receive waits below %r, which %s owns and receives from as well: what is sent there "
            "is for that process. Receive from what new_channel() returned in this process (%d)",
            home,
            f"process {pids[0]}" if pids else "another process",
            os.getpid(),
        )

    def is_to_be_owned(self, record: int) -> bool:
        """Whether a process-specific home has no owner, or one that is proven dead."""
        owner = self.segment.words[record + L.CH_OWNER]
        return not self.is_own(owner) and (not owner or self.ask(owner) is _DEAD)

    def own(self, homes: Iterable[str]) -> None:
        """Become the owner of homes that have none: who only ever polls owns what it polls."""
        for home in homes:
            if home[-1] == "!":
                record = self.records.find(home) or self.records.make(home)
                if record and self.is_to_be_owned(record) and (token := self.token_if_any()):
                    self.segment.commit({record + L.CH_OWNER: token})

    def token_if_any(self) -> int:
        """Return the token of this process, 0 if it cannot have one: it owns nothing, then."""
        try:
            return self.token()
        except IPCError:
            return 0

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
            return queues_fast.park(self.segment, known, slot, token if home[-1] == "!" else 0)
        except LockBusy:
            return False

    def are_kept(self, homes: Iterable[str], token: int) -> bool:
        """Whether homes have records, and process-specific ones name this process; a hint."""
        words = self.segment.words
        for home in homes:
            known = self.records.known.get(home)
            if words is None or known is None or words[known[0] + L.IDENT] != known[1]:
                return False
            if home[-1] == "!" and words[known[0] + L.CH_OWNER] != token:
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
        found = self.segment.transact(self._look, slot, token, homes, hinted)
        self.settle()
        return found

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
        self.settle()

    def _withdraw(self, slot: int, homes: Iterable[str]) -> None:
        self.leave_many(slot, homes)
        self.reap_dead()

    # -- owning a slot ------------------------------------------------------------------

    def claim(self, random_token: int, process: int) -> tuple[int, int]:
        """Give a loop a slot; return it and the loop's token.

        Args:
            random_token: 48 random bits; the loop's socket is listening under them already.
            process: token of its process, whose byte is locked already.

        Raises:
            TooManyLoops: all slots belong to processes that live.
        """
        return self.segment.transact(self._claim, random_token, process)

    def _claim(self, random_token: int, process: int) -> tuple[int, int]:
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
                            base + L.SLOT_PROCESS: process,
                        }
                    )
                    return slot, token
            if attempt == 0:
                self._reap_all()
        raise TooManyLoops(
            f"all {L.SLOT_COUNT} slots for event loops that receive from {self.segment.name} are "
            "taken: receive from fewer loops and threads, or split the site by prefix"
        )

    def owns(self, slot: int, token: int) -> bool:
        """Whether a slot is still the loop's; read without the lock, under nobody's but its own."""
        words = self.segment.words
        return words is None or bool(words[L.SLOTS + L.SLOT_WORDS * slot] == token)

    def release(self, slot: int, token: int, homes: Sequence[str]) -> None:
        """Give a slot back, unparked from ``homes``; pass on rings it has not answered."""
        self.segment.transact(self._release, slot, token, homes)
        self.settle()

    def _release(self, slot: int, token: int, homes: Sequence[str]) -> None:
        word = L.SLOTS + L.SLOT_WORDS * slot + L.SLOT_TOKEN
        words = self.segment.words
        if words[word] != token:
            return
        self._withdraw(slot, homes[_HOMES_AT_ONCE:])
        plan = Plan(words)
        self.leave(plan, slot, homes[:_HOMES_AT_ONCE])
        plan[word] = 0
        self.segment.commit(plan)
        self.reap_dead()

    # -- the dead -----------------------------------------------------------------------

    def reap_all(self) -> None:
        """Free the slots of all who are proven dead; without the lock if there are none."""
        if self.segment.alone(self._dead_slots):  # so that no thread closes it meanwhile
            self.segment.transact(self._reap_all)
            self.settle()

    def _reap_all(self) -> None:
        self.dead += self._dead_slots()
        self.reap_dead()

    def _dead_slots(self) -> list[tuple[int, int]]:
        words = self.segment.words
        if words is None:
            return []
        slots = words[L.SLOTS : L.BUCKETS].tolist()
        processes = slots[L.SLOT_PROCESS :: L.SLOT_WORDS]
        taken = [
            (slot, token, processes[slot])
            for slot, token in enumerate(slots[L.SLOT_TOKEN :: L.SLOT_WORDS])
            if token
        ]
        dead = {process for process in {one[2] for one in taken} if self.ask(process) is _DEAD}
        return [(slot, token) for slot, token, process in taken if process in dead]

    def reap_dead(self) -> None:
        """Reap whoever was rung in vain."""
        while self.dead:
            self._reap(*self.dead.pop())

    def _reap(self, slot: int, token: int) -> None:
        """Free a dead loop's slot and ring others in its place; note which homes it leaves.

        Every step is repeatable, so whoever is killed in here is repeated by the next.
        """
        words = self.segment.words
        base = L.SLOTS + L.SLOT_WORDS * slot
        if words[base + L.SLOT_TOKEN] != token:
            return
        process = words[base + L.SLOT_PROCESS]
        is_dead = self.ask(process) is _DEAD  # else it is a loop that its own process has dropped
        table = self.records.queues.table
        for record in list(table.records()):
            if is_dead and words[record + L.CH_OWNER] == process and not words[record + L.OWNER]:
                self.dead_homes.add(table.key_of(record, L.EXTENT_CHANNEL))
            self._ring_another(record, L.CH_PARKED + (slot >> 6), 1 << (slot & 63))
        self.segment.note(
            logging.INFO,
            "process-reaped",
            "reaped the slot of dead process %d",
            words[base + L.SLOT_PID],
        )
        self.forget(slot, token)
        self.segment.commit({base + L.SLOT_TOKEN: 0, base + L.SLOT_HINT: 0})

    def _ring_another(self, record: int, parked: int = 0, bit: int = 0) -> None:
        """Ring one who is parked beside a message; take a dead loop's bit away before."""
        words = self.segment.words
        if bit and words[record + parked] & bit:
            self.segment.commit({record + parked: words[record + parked] & ~bit})
        if words[record + L.CH_SENT] != words[record + L.CH_TAKEN] and self.records.is_parked(
            record
        ):
            plan = Plan(words)
            self.wake(plan, record)
            if plan:  # else nothing is known of those who are parked there
                self.segment.commit(plan)

    def settle(self) -> None:
        """Ask whether those who were rung live; reap who does not, and ring others in their place.

        Called after each transaction that may have rung, with no lock held.
        """
        while self.rung:
            with self.segment.guard:
                is_unknown = self._ask_who_was_rung()
            if self.segment.news:
                self.segment.tell()  # a finaliser that ran in there has put off what it does
            if not self.dead and not is_unknown:
                return
            try:
                self.segment.transact(self._ring_others if is_unknown else self.reap_dead)
            except LockBusy:
                return  # who is dead is reaped with the next ring, or when inotify tells of it

    def _ask_who_was_rung(self) -> bool:
        """Note who is dead; whether it is unknown of one of them."""
        rung, self.rung = self.rung, []
        is_unknown = False
        for slot, token, process in rung:
            life = self.heard(slot, token, process)
            is_unknown |= life is _UNKNOWN
            if life is _DEAD:
                self.dead.append((slot, token))
        return is_unknown

    def _ring_others(self) -> None:
        self.reap_dead()
        for record in list(self.records.queues.table.records()):
            if not self.segment.words[record + L.OWNER]:
                self._ring_another(record)

    def is_dead(self, record: int) -> bool:
        """Whether a home's owner is proven dead, and nobody who may live is parked there."""
        words = self.segment.words
        owner = words[record + L.CH_OWNER]
        if not owner or self.ask(owner) is not _DEAD:
            return False
        start = 8 * (record + L.CH_PARKED)
        mask = int.from_bytes(self.segment.memory[start : start + _MASK_BYTES], "little")
        while mask:
            base = L.SLOTS + L.SLOT_WORDS * ((mask & -mask).bit_length() - 1)
            if words[base + L.SLOT_TOKEN] and self.ask(words[base + L.SLOT_PROCESS]) is not _DEAD:
                return False  # it takes over when it parks again
            mask &= mask - 1
        return True

    def _is_kept(self, record: int) -> bool:
        """Whether an idle home is not to be forgotten yet: its members are to be dropped first."""
        if not self.is_dead(record):
            return False
        self.dead_homes.add(self.records.queues.table.key_of(record, L.EXTENT_CHANNEL))
        return True

    def owners_of_dead(self, homes: Iterable[str]) -> dict[str, int]:
        """Return those of the homes whose owner is proven dead, with that owner."""
        found = {}
        for home in homes:
            record = self.records.find(home)
            if record and self.is_dead(record):
                found[home] = self.segment.words[record + L.CH_OWNER]
        return found

    def find_dead_homes(self) -> None:
        """Note every home whose owner is proven dead: for who looks at everything."""
        table = self.records.queues.table
        for record in table.records():
            if not self.segment.words[record + L.OWNER] and self.is_dead(record):
                self.dead_homes.add(table.key_of(record, L.EXTENT_CHANNEL))

    def disown(self, owners: dict[str, int]) -> None:
        """Take homes from their dead owners, once that has been dealt with."""
        words = self.segment.words
        for home, owner in owners.items():
            record = self.records.find(home)
            if record and words[record + L.CH_OWNER] == owner:
                self.segment.commit({record + L.CH_OWNER: 0})
