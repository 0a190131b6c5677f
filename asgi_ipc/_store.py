"""The messages segment as operations: one method, one hold of the lock.

Every method may be called by ``Segment.transact`` only (the public ones do so
themselves), raises ``LockBusy`` before it has done anything, and says nothing to anybody
but through ``ring``. SYNC POINT "wake": a sender rings a parked loop *before* it commits,
while holding the lock; a woken loop takes the lock before it looks. So a kill leaves no
effect, a spurious ring, or a message with its ring; never a message without one.

Invariant: beside a message that somebody could take, at least one loop that could take it
is not parked on it (it was rung, or is running), unless that loop has died. For the dead,
``reap`` rings another, and the safety look of every parked loop is the net below that.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from typing import NamedTuple

from . import _fast
from . import _layout as L
from ._heap import HeapFull
from ._queues import Popped, Queues
from ._segment import LockBusy, Plan, Segment
from .exceptions import ChannelFull, TooManyLoops

__all__ = ["NOTHING", "Envelope", "MembersAt", "MessageStore", "Ring", "Statistics", "Taken"]

logger = logging.getLogger("asgi_ipc")

Ring = Callable[[int, int], bool]
"""``ring(slot, token)``: wake that loop; False when its process is known to be dead."""

Envelope = tuple[str, int, int]
"""A home that a group message goes to: its name, the membership version, its members."""

MembersAt = Callable[[str, str, int], Sequence[str]]
"""``members_at(group, home, version)``: whom an envelope is for."""

Statistics = dict[str, int]

IDLE_S = 60  # an empty channel keeps its record, and so its counters, at least this long
_IDLE_SINGLE_S = 1  # single-reader and process-specific names are used once and forgotten
_SWEEP_EVERY = 16  # one send in so many looks at other queues
_SWEEP_BUCKETS = 16
_GROWTH_BUCKETS = 64  # a send that makes a record looks at more than it makes
_GROWTH_RECORDS = 3
_PRESSURE_BUCKETS = 4096  # when the memory is full
_DROPS = 16  # expired messages dropped in one plan
_PLAN_ROOM = 400  # a plan of this many words is committed before it grows further
_BATCH_BYTES = 1 << 20
_ENVELOPE_FACTOR = 10  # queued messages of one group for one home, in capacities
_CACHE_LIMIT = 50_000
_COUNTED = ("sent", "received", "expired", "full", "pending", "max_age_ns")
_MASK_BYTES = 8 * L.PARKED_WORDS


class Taken(NamedTuple):
    """What ``take`` took.

    Attributes:
        home: where from.
        messages: in order; empty if there was none anywhere.
        more: the home has more.
    """

    home: str
    messages: Sequence[Popped]
    more: bool


NOTHING = Taken("", (), False)


class _Targets(NamedTuple):
    """Where a group message goes: ``(name to carry, record, leaf, version)`` each."""

    targets: list[tuple[str, int, int, int]]
    dead: list[str]
    skipped: int


class MessageStore:
    """Queues, slots and counters of one messages segment."""

    def __init__(self, segment: Segment, ring: Ring, members_at: MembersAt) -> None:
        self.segment = segment
        self.queues = Queues(segment)
        self._ring = ring
        self._members_at = members_at
        self._known: dict[str, tuple[int, int]] = {}
        self._name_at: dict[int, str] = {}
        self._hand = 0
        self._sends = 0
        self._dead: list[tuple[int, int]] = []
        segment.on_epoch = self.forget

    def forget(self) -> None:
        """Drop every remembered offset: the segment was flushed or replaced."""
        self._known.clear()
        self._name_at.clear()

    # -- sending -------------------------------------------------------------------------

    def send(
        self, name: str, home: str, body: bytes, capacity: int, expiry_ns: int, by_name: bool
    ) -> None:
        """Queue one message and wake one parked reader.

        Args:
            by_name: count capacity on ``name`` rather than on ``home``.

        Raises:
            ChannelFull: ``capacity`` messages wait, or the memory is full; nothing queued.
        """
        now = time.monotonic_ns()
        deadline = now + expiry_ns
        if len(body) <= _fast.LARGEST_BYTES:
            known = self._known.get(home)
            counted = by_name and name is not home
            leaf = self._known.get(name) if counted else None
            if (
                known is not None
                and (leaf is not None or not counted)
                and _fast.append(
                    self.segment,
                    known,
                    leaf,
                    "" if name is home else name,
                    body,
                    capacity,
                    now,
                    deadline,
                    self.wake_parked,
                )
            ):
                self._sends += 1
                if self._dead or not self._sends % _SWEEP_EVERY:
                    self._tidy_when_free()
                return
        self.segment.transact(self._send, name, home, body, capacity, now, deadline, by_name)

    def _send(
        self,
        name: str,
        home: str,
        body: bytes,
        capacity: int,
        now: int,
        deadline: int,
        by_name: bool,
    ) -> None:
        own_name = "" if name == home else name
        arguments = (name, home, own_name, body, capacity, now, deadline, by_name)
        try:
            created = self._append(*arguments)
        except (HeapFull, OSError) as exc:
            if not is_full(exc):
                raise
            self._make_room(now)
            try:
                created = self._append(*arguments)
            except (HeapFull, OSError) as again:
                if not is_full(again):
                    raise
                raise self._memory_full(name, len(body), again) from again
        self._afterwards(now, created)

    def _append(
        self,
        name: str,
        home: str,
        own_name: str,
        body: bytes,
        capacity: int,
        now: int,
        deadline: int,
        by_name: bool,
    ) -> bool:
        words = self.segment.words
        plan = Plan(words)
        record = self._find(home)
        created = not record
        if created:
            record = self.queues.create_channel(plan, home)
        leaf = 0
        if by_name and own_name:
            leaf = self._find(own_name, record)
            if not leaf:
                created = True
                leaf = self.queues.create_channel(plan, own_name, record)
        counted = leaf or record
        depth = words[counted + L.CH_SENT] - words[counted + L.CH_TAKEN]
        if depth >= capacity:
            depth = self._drop_for_room(record, counted, now)
            if leaf and words[leaf + L.LEAF_DEADLINE] <= now:
                depth = 0  # whatever it still counts has expired in some inbox
            if depth >= capacity:
                self.segment.commit({counted + L.CH_FULL: words[counted + L.CH_FULL] + 1})
                raise ChannelFull(
                    f"channel {name!r} is full: {depth} of {capacity} messages",
                    channel=name,
                    depth=depth,
                    capacity=capacity,
                )
            plan = Plan(words)
        self.queues.append(plan, record, leaf, own_name, body, now, deadline)
        self._wake(plan, record)
        self.segment.commit(plan)
        if created:
            self._remember(home, record)
            if leaf:
                self._remember(own_name, leaf)
        return created

    def _drop_for_room(self, record: int, counted: int, now: int) -> int:
        """Drop what has expired at the head of a full queue; return the depth that is left."""
        words = self.segment.words
        while True:
            plan = Plan(words)
            dropped = self.queues.drop_expired(plan, record, now, _DROPS)
            if dropped:
                self.segment.commit(plan)
            if dropped < _DROPS:
                depth: int = words[counted + L.CH_SENT] - words[counted + L.CH_TAKEN]
                return depth

    def send_group(
        self,
        group: str,
        body: bytes,
        envelopes: Sequence[Envelope],
        channels: Sequence[str],
        capacity_of: Callable[[str], int],
        expiry_ns: int,
    ) -> tuple[list[str], int]:
        """Queue one group message: an envelope for each home, a message for each channel.

        Full channels are skipped and counted, as the specification asks.

        Returns:
            Homes whose process has died, and how many members were skipped.
        """
        return self.segment.transact(
            self._send_group, group, body, envelopes, channels, capacity_of, expiry_ns
        )

    def _send_group(
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
                    self._make_room(now)
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
            self._wake(plan, record)
        if stored and not plan[stored + L.BODY_REFS]:
            self.queues.heap.free(plan, stored)
        if skipped:
            plan[L.COUNT_DROPPED] += skipped
        if plan:
            self.segment.commit(plan)
        self._afterwards(now, False)
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
            record = self._find(name) or self._make(name, must=must)
            if (
                record
                and words[record + L.CH_LOOP]
                and not self._is_live(words[record + L.CH_LOOP])
            ):
                found.dead.append(name)
                continue
            limit = capacity_of(name)
            leaf = 0
            if record and version:
                limit *= _ENVELOPE_FACTOR
                leaf = self._find(group, record) or self._make(group, record, must=must)
            counted = leaf if version else record
            if not counted or words[counted + L.CH_SENT] - words[counted + L.CH_TAKEN] >= limit:
                skipped += count
            else:
                found.targets.append((group if version else "", record, leaf, version))
        return found._replace(skipped=skipped)

    # -- receiving -----------------------------------------------------------------------

    def take(
        self,
        homes: Sequence[str],
        *,
        slot: int | None = None,
        token: int = 0,
        leave: Iterable[str] = (),
        stay: bool = False,
        limit: int = 1,
        wanted: Container[str] = (),
    ) -> Taken:
        """Take messages from the first home that has any; park on all of them if none has.

        Args:
            homes: queues, in the order to look at them.
            slot: the loop to park; ``None`` does not park.
            token: that loop's token.
            leave: homes to take the loop's parked bit back from when a message is returned.
            stay: park on the home that gave the messages if it is empty now.
            limit: how many messages a process-specific home may give at once; others give one.
            wanted: full names somebody waits for; a message of another name stays counted
                in its leaf until ``credit``.
        """
        return self.segment.transact(self._take, homes, slot, token, leave, stay, limit, wanted)

    def _take(
        self,
        homes: Sequence[str],
        slot: int | None,
        token: int,
        leave: Iterable[str],
        stay: bool,
        limit: int,
        wanted: Container[str],
    ) -> Taken:
        words = self.segment.words
        for home in homes:
            record = self._find(home)
            while record and words[record + L.CH_SENT] != words[record + L.CH_TAKEN]:
                plan = Plan(words)
                many = limit if home[-1] == "!" else 1
                popped = self._pop_some(plan, record, home, many, wanted)
                more = plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]
                if popped and slot is not None:
                    if leave:
                        self._leave(plan, slot, leave)
                    if stay and not more:
                        plan[record + L.CH_PARKED + (slot >> 6)] |= 1 << (slot & 63)
                self.segment.commit(plan)
                if popped:
                    self._reap_dead()
                    return Taken(home, popped, more)
        if slot is not None:
            for home in homes:
                self._park(home, slot, token)
        return NOTHING

    def take_one(self, home: str) -> bytes | None:
        """Take one ordinary message from an ordinary channel and return its body.

        ``None`` if there is none, or if ``take`` has to see to it.
        """
        known = self._known.get(home)
        if known is None:
            return None
        words = self.segment.words
        if words[known[0] + L.CH_SENT] == words[known[0] + L.CH_TAKEN]:
            return None  # seen without the lock, as `may_have`
        try:
            return _fast.pop(self.segment, known, time.monotonic_ns())
        except LockBusy:
            return None  # `take` waits for it

    def _pop_some(
        self, plan: Plan, record: int, home: str, limit: int, wanted: Container[str]
    ) -> list[Popped]:
        """Plan the removal of up to ``limit`` messages; expired ones are counted as such.

        A group envelope comes alone: its members are looked up with both locks held (in
        this order, never the other), so that nobody can leave between the two.
        """
        now = time.monotonic_ns()
        popped = _fast.drain(self.segment, plan, record, home, limit, now, wanted)
        if popped:
            return popped
        seen: set[str] = set()
        total_bytes = 0
        while (
            plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]
            and len(popped) < limit
            and total_bytes < _BATCH_BYTES
            and len(plan) < _PLAN_ROOM
        ):
            if popped and self.queues.head_is_envelope(plan, record):
                break
            message = self.queues.pop(plan, record, home)
            leaf, version = message.leaf, message.group_version
            if message.deadline_ns <= now:
                plan[record + L.CH_EXPIRED] += 1
                if leaf:
                    plan[leaf + L.CH_TAKEN] += 1
                continue
            if version:
                plan[leaf + L.CH_TAKEN] += 1
                members = self._members_at(message.name, home, version)
                return [message._replace(leaf=0, members=members)]
            if leaf and message.name in wanted and message.name not in seen:
                plan[leaf + L.CH_TAKEN] += 1
                seen.add(message.name)
                message = message._replace(leaf=0)
            popped.append(message)
            total_bytes += len(message.body)
        return popped

    def credit(self, leaves: Sequence[tuple[int, int]], dropped: int = 0) -> None:
        """Uncount messages that left an inbox, given as ``(leaf, ident)``.

        Args:
            dropped: group messages an inbox had no room for, to be counted.
        """
        self.segment.transact(self._credit, leaves, dropped)

    def _credit(self, leaves: Sequence[tuple[int, int]], dropped: int) -> None:
        plan = Plan(self.segment.words)
        if dropped:
            plan[L.COUNT_DROPPED] += dropped
        for leaf, ident in leaves:
            if self.segment.words[leaf + L.IDENT] == ident:  # else flushed meanwhile
                plan[leaf + L.CH_TAKEN] += 1
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan = Plan(self.segment.words)
        if plan:
            self.segment.commit(plan)

    # -- parking -------------------------------------------------------------------------

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
        one = self._name_at.get(hint) if hinted else None
        if one is not None and self._find(one) == hint:
            if one not in homes:
                self._withdraw(slot, (one,))
                return []
            homes = (one,)
        waiting = []
        for home in homes:
            depth = self._depth(home)
            if depth:
                waiting.append((home, depth))
            else:
                self._park(home, slot, token)
        return waiting

    def may_have(self, home: str) -> bool:
        """Whether a home seems to have messages; read without the lock, so only a hint."""
        known = self._known.get(home)
        if known is None:
            return True
        words = self.segment.words
        return bool(words[known[0] + L.CH_SENT] != words[known[0] + L.CH_TAKEN])

    def depth(self, home: str) -> int:
        """Return how many messages wait in a home."""
        return self.segment.transact(self._depth, home)

    def _depth(self, home: str) -> int:
        words = self.segment.words
        record = self._find(home)
        return words[record + L.CH_SENT] - words[record + L.CH_TAKEN] if record else 0

    def epoch(self) -> int:
        """Return the number a flush changes; read without the lock."""
        value: int = self.segment.words[L.EPOCH]
        return value

    def withdraw(self, slot: int, homes: Iterable[str]) -> None:
        """Take the loop's parked bits back; pass a ring on that it will not answer."""
        self.segment.transact(self._withdraw, slot, homes)

    def _withdraw(self, slot: int, homes: Iterable[str]) -> None:
        plan = Plan(self.segment.words)
        self._leave(plan, slot, homes)
        if plan:
            self.segment.commit(plan)
        self._reap_dead()

    def _park(self, home: str, slot: int, token: int) -> None:
        words = self.segment.words
        record = self._find(home) or self._make(home)
        if not record:
            return  # the memory is full: the safety look parks it later
        word = record + L.CH_PARKED + (slot >> 6)
        plan = {}
        if not words[word] >> (slot & 63) & 1:
            plan[word] = words[word] | 1 << (slot & 63)
        if home[-1] == "!" and words[record + L.CH_LOOP] != token:
            plan[record + L.CH_LOOP] = token
        if plan:
            self.segment.commit(plan)

    def _leave(self, plan: Plan, slot: int, homes: Iterable[str]) -> None:
        for home in homes:
            record = self._find(home)
            if not record:
                continue
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan.clear()
            word = record + L.CH_PARKED + (slot >> 6)
            bit = 1 << (slot & 63)
            if plan[word] & bit:
                plan[word] &= ~bit
            elif plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]:
                self._wake(plan, record)

    def _wake(self, plan: dict[int, int], record: int) -> None:
        """Ring one loop parked on a channel, if any, and plan its bit away."""
        start = 8 * (record + L.CH_PARKED)
        mask = int.from_bytes(self.segment.memory[start : start + _MASK_BYTES], "little")
        if mask:
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
            if self._ring(slot, token):  # SYNC POINT "wake": before the commit
                hint = plan.get(base + L.SLOT_HINT, words[base + L.SLOT_HINT])
                if hint != record:
                    plan[base + L.SLOT_HINT] = L.HINT_MANY if hint else record
                return
            self._dead.append((slot, token))

    # -- slots ---------------------------------------------------------------------------

    def claim_slot(self, random_token: int) -> tuple[int, int]:
        """Give a loop a slot; return it and the loop's token.

        Args:
            random_token: 48 random bits; the loop's socket is listening under them already.

        Raises:
            TooManyLoops: all slots belong to living loops.
        """
        return self.segment.transact(self._claim_slot, random_token)

    def _claim_slot(self, random_token: int) -> tuple[int, int]:
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
            if token and not self._ring(slot, token):
                self._dead.append((slot, token))
        self._reap_dead()

    def release_slot(self, slot: int, token: int, homes: Sequence[str]) -> None:
        """Give a slot back, unparked from ``homes``; pass on rings it has not answered."""
        self.segment.transact(self._release_slot, slot, token, homes)

    def _release_slot(self, slot: int, token: int, homes: Sequence[str]) -> None:
        words = self.segment.words
        base = L.SLOTS + L.SLOT_WORDS * slot
        if words[base + L.SLOT_TOKEN] != token:
            return
        plan = Plan(words)
        self._leave(plan, slot, homes)
        for home in homes:
            record = self._find(home)
            if record and words[record + L.CH_LOOP] == token:
                plan[record + L.CH_LOOP] = 0
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan = Plan(words)
        plan[base + L.SLOT_TOKEN] = 0
        self.segment.commit(plan)
        self._reap_dead()

    def _reap_dead(self) -> None:
        while self._dead:
            self._reap(*self._dead.pop())

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
        for record in list(self.queues.table.records()):
            plan = Plan(words)
            if words[record + parked] & bit:
                plan[record + parked] = words[record + parked] & ~bit
                self.segment.commit(plan)
            if words[record + L.CH_SENT] != words[record + L.CH_TAKEN] and self._parked(record):
                plan = Plan(words)
                self._wake(plan, record)
                self.segment.commit(plan)
        logger.info("reaped the slot of dead process %d", words[base + L.SLOT_PID])
        self.segment.commit({base + L.SLOT_TOKEN: 0, base + L.SLOT_HINT: 0})

    def _parked(self, record: int) -> bool:
        start = 8 * (record + L.CH_PARKED)
        mask: bytes = self.segment.memory[start : start + _MASK_BYTES]
        return any(mask)

    def _is_live(self, token: int) -> bool:
        return bool(self.segment.words[L.SLOTS + L.SLOT_WORDS * (token & 0xFF)] == token)

    # -- records -------------------------------------------------------------------------

    def _find(self, name: str, owner: int = 0) -> int:
        """Return a channel's record, or 0: from memory if its ident still holds."""
        words = self.segment.words
        known = self._known.get(name) if not owner or "!" in name else None
        if known is not None:
            record, ident = known
            if words[record + L.IDENT] == ident:
                return record
            del self._known[name]
        record = self.queues.find_channel(Plan(words), name, owner)
        if record and (not owner or "!" in name):
            self._remember(name, record)
        return record

    def _remember(self, name: str, record: int) -> None:
        if len(self._known) >= _CACHE_LIMIT:
            self.forget()
        self._known[name] = (record, self.segment.words[record + L.IDENT])
        self._name_at[record] = name

    def _make(self, name: str, owner: int = 0, *, must: bool = False) -> int:
        """Create a channel record at once.

        Args:
            must: raise what the heap raises when the memory is full; otherwise return 0.
        """
        plan = Plan(self.segment.words)
        try:
            record = self.queues.create_channel(plan, name, owner)
        except (HeapFull, OSError) as exc:
            if must or not is_full(exc):
                raise
            return 0
        self.segment.commit(plan)
        return record

    # -- housekeeping --------------------------------------------------------------------

    def _afterwards(self, now: int, created: bool) -> None:
        """What a send does for the others once its own message is in."""
        if self._dead:
            self._reap_dead()
        self._sends += 1
        if created:
            visited = 0
            for _ in range(_GROWTH_BUCKETS // _SWEEP_BUCKETS):
                visited += self._sweep(now, _SWEEP_BUCKETS)
                if visited >= _GROWTH_RECORDS:
                    break
        elif self._sends % _SWEEP_EVERY == 0:
            self._sweep(now, _SWEEP_BUCKETS)

    def _tidy_when_free(self) -> None:
        try:
            self.segment.transact(self._reap_and_sweep)
        except LockBusy:
            pass  # the next sender does it

    def _reap_and_sweep(self) -> None:
        self._reap_dead()
        self._sweep(time.monotonic_ns(), _SWEEP_BUCKETS)

    def _sweep(self, now: int, buckets: int) -> int:
        """Look at the next few buckets: drop what expired, forget idle channels.

        The hand is this process's own: where it stands need not be shared.

        Returns:
            How many records were looked at.
        """
        used, self._hand = self.queues.table.some_buckets(self._hand, buckets)
        visited = 0
        for bucket in used:
            for record in list(self.queues.table.chain(bucket)):
                self._tidy(record, now)
                visited += 1
        return visited

    def _tidy(self, record: int, now: int) -> None:
        words = self.segment.words
        owner = words[record + L.OWNER]
        if words[record + L.CH_SENT] != words[record + L.CH_TAKEN]:
            if owner:
                # Counting messages that died with an inbox: gone once they have expired, but
                # not before the last one queued in shared memory has let go of this record.
                if words[record + L.LEAF_DEADLINE] > now or (
                    words[owner + L.CH_SENT] != words[owner + L.CH_TAKEN]
                ):
                    return
            else:
                plan = Plan(words)
                if self.queues.drop_expired(plan, record, now, _DROPS):
                    self.segment.commit(plan)
                return
        if self._parked(record) or words[record + L.CH_LEAVES]:
            return
        sent = words[record + L.CH_SENT] & 0xFFFFFFFF
        seconds = now // 1_000_000_000
        mark = words[record + L.CH_MARK]
        if mark == 0 or mark & 0xFFFFFFFF != sent:
            self.segment.commit({record + L.CH_MARK: (seconds + 1) << 32 | sent})
            return
        name = self.queues.table.key_of(record, L.EXTENT_CHANNEL)
        single = owner or "?" in name
        if seconds - (mark >> 32) >= (_IDLE_SINGLE_S if single else IDLE_S):
            plan = Plan(words)
            self.queues.remove_channel(plan, record)
            self.segment.commit(plan)

    def _make_room(self, now: int) -> None:
        """Find memory: expired messages of all queues, then the quick lists."""
        total = self.segment.heap_start - L.BUCKETS
        for _ in range(0, min(total, _PRESSURE_BUCKETS), 64):
            self._sweep(now, 64)
        self.queues.heap.consolidate()

    def _memory_full(self, name: str, body_bytes: int, cause: Exception) -> ChannelFull:
        words = self.segment.words
        self.segment.commit({L.COUNT_MEMORY_FULL: words[L.COUNT_MEMORY_FULL] + 1})
        total = self.segment.size_bytes
        if isinstance(cause, OSError):
            text = (
                f"channel {name!r}: the shared-memory filesystem is full, so {self.segment.name} "
                f"cannot grow for a message of {body_bytes} bytes: free or enlarge it "
                "(df /dev/shm; in Docker --shm-size)"
            )
        else:
            text = (
                f"channel {name!r}: the memory of {self.segment.name} ({total} bytes) has no room "
                f"for a message of {body_bytes} bytes: raise message_memory (stop all processes, "
                "unlink the segment, start them with the new size), or read faster"
            )
        return ChannelFull(text, channel=name, needed_bytes=body_bytes, memory_bytes=total)

    # -- everything at once --------------------------------------------------------------

    def flush(self) -> None:
        """Drop every message and channel, for every process; parked loops park again."""
        self.segment.transact(self._flush)

    def _flush(self) -> None:
        words = self.segment.words
        totals = self._totals()
        plan = {
            L.EPOCH: words[L.EPOCH] + 1,
            L.COUNT_SENT: totals["sent"],
            L.COUNT_RECEIVED: totals["received"],
            L.COUNT_EXPIRED: totals["expired"],
            L.COUNT_FULL: totals["full"],
            L.COUNT_FLUSHED: totals["flushed"] + totals["pending"],
        }
        for slot in range(L.SLOT_COUNT):
            base = L.SLOTS + L.SLOT_WORDS * slot
            token = words[base + L.SLOT_TOKEN]
            if not token:
                continue
            if self._ring(slot, token):
                plan[base + L.SLOT_HINT] = L.HINT_MANY
            else:
                plan[base + L.SLOT_TOKEN] = 0
            if len(plan) == L.LOG_CAPACITY:  # pragma: no cover - 256 slots, 6 counters
                break
        self.segment.commit(plan, L.LOG_RESET)

    def statistics(self) -> Statistics:
        """Count everything since the segment was made; see ``aio.global_statistics``."""
        return self.segment.transact(self._totals)

    def _totals(self) -> Statistics:
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

    def channel_statistics(self, name: str, home: str) -> Statistics:
        """Count one channel since its record was made."""
        return self.segment.transact(self._channel_statistics, name, home)

    def _channel_statistics(self, name: str, home: str) -> Statistics:
        record = self._find(home)
        if record and name != home:
            record = self._find(name, record)
        if not record:
            return dict.fromkeys(
                ("sent", "received", "expired", "full", "pending", "max_age_ns"), 0
            )
        return self._count(record, time.monotonic_ns())

    def _count(self, record: int, now: int) -> Statistics:
        words = self.segment.words
        sent = words[record + L.CH_SENT]
        taken = words[record + L.CH_TAKEN]
        expired = words[record + L.CH_EXPIRED]
        age = 0
        if sent != taken and not words[record + L.OWNER]:
            head = self.queues.heap.check(words[record + L.CH_HEAD])
            age = max(0, now - words[head + L.MSG_SENT])
        return {
            "sent": sent,
            "received": taken - expired,
            "expired": expired,
            "full": words[record + L.CH_FULL],
            "pending": sent - taken,
            "max_age_ns": age,
        }


def is_full(exc: BaseException) -> bool:
    """Whether an error says that there is no memory, in the segment or behind it."""
    return isinstance(exc, HeapFull) or (isinstance(exc, OSError) and exc.errno == errno.ENOSPC)
