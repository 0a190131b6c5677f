"""The messages segment as operations: one method, one hold of the lock.

The public methods take the lock themselves and raise ``LockBusy`` before they have done
anything. Whom they wake is said in ``_store/slots``, what they leave behind in ``_store/records``.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple

from .._memory.heap import HeapFull
from .._process.witness import Life
from .._shm import layout as L
from .._shm.segment import LockBusy, Plan, Segment
from ..exceptions import ChannelFull
from . import queues_fast
from .fanout import Drop, Fanout, GroupMessage
from .queues import Popped
from .records import Records, is_full
from .slots import Bells, Slots
from .statistics import Counts, Statistics
from .throttle import Throttle

__all__ = ["MANY", "NOTHING", "Letter", "MembersAt", "MessageStore", "Settled", "Taken"]

MembersAt = Callable[[str, str, int], Sequence[str]]
"""``members_at(group, home, version)``: whom an envelope is for."""

_SWEEP_EVERY = 16  # one send in so many looks at other queues
_SWEEP_BUCKETS = 16
_GROWTH_BUCKETS = 64  # a send that makes a record looks at more than it makes
_GROWTH_RECORDS = 3
_UNKNOWN = (0, 0)
_PLAN_ROOM = 400  # a plan of this many words is committed before it grows further
_FEW = 12  # homes that are left in one plan with what is taken: six words each at most


MANY = 40
"""Messages that surely fit one transaction (about 10 words each, of a log of 512)."""


class Letter(NamedTuple):
    """One message of a batch; the arguments of ``MessageStore.send``."""

    name: str
    home: str
    body: bytes
    capacity: int
    expiry_ns: int
    by_name: bool


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


class Settled(NamedTuple):
    """What the inboxes of a process still hold of what was drained.

    A statement, not a difference: it may be made twice, by one who was interrupted.

    Attributes:
        held: messages sent directly, by full name; of names that something was read of.
        dropped: group messages an inbox had no room for, to be counted.
        epoch: when they were drained; nothing of it is left after a flush.
        read_count: messages that were read, for whoever says it.
    """

    held: Mapping[str, int]
    dropped: int = 0
    epoch: int = 0
    read_count: int = 0


NOTHING_SETTLED = Settled({})


class MessageStore:
    """Queues, slots and counters of one messages segment.

    Attributes:
        in_hand: what ``take`` took from process-specific homes, as ``(home, message)``, listed
            before the commit that takes it: an interrupted caller finds it here. Whoever takes
            holds the site's mutex, and empties this.
    """

    def __init__(self, segment: Segment, bells: Bells, members_at: MembersAt) -> None:
        self.segment = segment
        self.records = Records(segment)
        self.queues = self.records.queues
        self.slots = Slots(self.records, bells)
        self._fanout = Fanout(self.records, self.slots)
        self._statistics = Statistics(self.records)
        self._members_at = members_at
        self._sends = 0
        self._fulls = Throttle()
        self.on_dead_homes: Callable[[], None] = lambda: None  # with no lock held
        self.in_hand: deque[Any] = deque()

    def forget(self) -> None:
        """Drop every remembered offset: the segment was flushed or replaced."""
        self.records.forget()

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
        if len(body) <= queues_fast.LARGEST_BYTES:
            known = self.records.known.get(home)
            counted = by_name and name is not home
            leaf = self.records.known.get(name) if counted else None
            if (
                known is not None
                and (leaf is not None or not counted)
                and queues_fast.append(
                    self.segment,
                    known,
                    leaf,
                    "" if name is home else name,
                    body,
                    capacity,
                    now,
                    deadline,
                    self.slots.wake_parked,
                )
            ):
                self._sends += 1
                if self.slots.rung:
                    self._settle()
                if self.slots.dead or not self._sends % _SWEEP_EVERY:
                    self._tidy_when_free()
                return
        self.segment.transact(self._send, name, home, body, capacity, now, deadline, by_name)
        self._settle()

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
        size = self.queues.message_bytes(own_name, len(body))
        self.queues.heap.stock(size, L.EXTENT_MESSAGE)
        try:
            created = self.records.fit(lambda: self._append(*arguments), now)
        except (HeapFull, OSError) as exc:
            if not is_full(exc):
                raise
            raise self._memory_full(name, len(body), exc) from exc
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
        record = self.records.find(home)
        created = not record
        if created:
            record = self.queues.create_channel(plan, home)
        leaf = 0
        if by_name and own_name:
            leaf = self.records.find(own_name, record)
            if not leaf:
                created = True
                leaf = self.queues.create_channel(plan, own_name, record)
        if self.records.depth_of(leaf or record) >= capacity:  # so both were there before
            depth = self._depth_at_least(record, leaf, now)
            if depth >= capacity:
                raise self._channel_full(name, leaf or record, depth, capacity)
            plan = Plan(words)
        self.queues.append(plan, record, leaf, own_name, body, now, deadline)
        self.slots.wake(plan, record)
        self.segment.commit(plan)
        if created:
            self.records.remember(home, record)
            if leaf:
                self.records.remember(own_name, leaf)
        return created

    def _depth_at_least(self, record: int, leaf: int, now: int) -> int:
        """Return how much a full channel holds without what has expired or nobody holds any more.

        Commits, so nothing may be planned.
        """
        self.records.drop_expired(record, now)
        if leaf and not self.records.holds(leaf, now):
            self.records.write_off(leaf)
        return self.records.depth_of(leaf or record)

    def send_many(self, letters: Sequence[Letter]) -> None:
        """Queue several messages in one transaction: all or none, up to ``MANY`` of them.

        Raises:
            ChannelFull: one of them has no room; none was queued.
        """
        self.segment.transact(self._send_many, letters)
        self._settle()

    def _send_many(self, letters: Sequence[Letter]) -> None:
        now = time.monotonic_ns()
        try:
            plan = self.records.fit(lambda: self._plan_many(letters, now), now)
        except (HeapFull, OSError) as exc:
            if not is_full(exc):
                raise
            largest = max(letters, key=lambda letter: len(letter.body))
            raise self._memory_full(largest.name, len(largest.body), exc) from exc
        for letter in letters:  # each message wakes a reader of its own
            self.slots.wake(plan, self.records.find(letter.home))
        self.segment.commit(plan)
        self._afterwards(now, True)

    def _plan_many(self, letters: Sequence[Letter], now: int) -> Plan:
        found = []
        for name, home, _, _, _, by_name in letters:
            record = self.records.find(home) or self.records.make_now(home)
            leaf = 0
            if by_name and name != home:
                leaf = self.records.find(name, record) or self.records.make_now(name, record)
            found.append((record, leaf))
        before: Counter[int] = Counter()  # what earlier letters add to a record
        for (name, _, _, capacity, _, _), (record, leaf) in zip(letters, found, strict=True):
            counted = leaf or record
            if self.records.depth_of(counted) + before[counted] >= capacity:
                depth = self._depth_at_least(record, leaf, now) + before[counted]
                if depth >= capacity:
                    raise self._channel_full(name, counted, depth, capacity)
            before[counted] += 1
        plan = Plan(self.segment.words)  # from here on nothing is committed
        for (name, home, body, _, expiry_ns, _), (record, leaf) in zip(letters, found, strict=True):
            own_name = "" if name == home else name
            self.queues.append(plan, record, leaf, own_name, body, now, now + expiry_ns)
        return plan

    def send_group(self, message: GroupMessage) -> tuple[list[str], list[Drop]]:
        """Queue one group message: an envelope for each home, a message for each channel.

        Returns:
            Homes whose process has died, and what was skipped because it is full.
        """
        result = self.segment.transact(self._send_group, message)
        self._settle()
        return result

    def _send_group(self, message: GroupMessage) -> tuple[list[str], list[Drop]]:
        result = self._fanout.send(message)
        self._afterwards(time.monotonic_ns(), False)
        return result

    def _afterwards(self, now: int, created: bool) -> None:
        """What a send does for the others once its own message is in."""
        if self.slots.dead:
            self.slots.reap_dead()
        self._sends += 1
        if created:
            visited = 0
            for _ in range(_GROWTH_BUCKETS // _SWEEP_BUCKETS):
                visited += self.records.sweep(now, _SWEEP_BUCKETS)
                if visited >= _GROWTH_RECORDS:
                    break
        elif self._sends % _SWEEP_EVERY == 0:
            self.records.sweep(now, _SWEEP_BUCKETS)

    def _tidy_when_free(self) -> None:
        try:
            self.segment.transact(self._reap_and_sweep)
        except LockBusy:
            return  # the next sender does it
        self._settle()

    def _settle(self) -> None:
        """Do what may be due after a ring, now that no lock is held."""
        self.slots.settle()
        if self.slots.dead_homes:
            self.on_dead_homes()

    def _reap_and_sweep(self) -> None:
        self.slots.reap_dead()
        self.records.sweep(time.monotonic_ns(), _SWEEP_BUCKETS)

    def _channel_full(self, name: str, counted: int, depth: int, capacity: int) -> ChannelFull:
        word = counted + L.CH_FULL
        self.segment.commit({word: self.segment.words[word] + 1})
        return ChannelFull(
            f"channel {name!r} is full: {depth} of {capacity} messages",
            channel=name,
            depth=depth,
            capacity=capacity,
        )

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
        if count := self._fulls.add():
            self.segment.note(
                logging.WARNING,
                "memory-full",
                "%d sends refused since the last such line, for lack of memory; the latest: %s",
                count,
                text,
            )
        return ChannelFull(text, channel=name, needed_bytes=body_bytes, memory_bytes=total)

    # -- receiving -----------------------------------------------------------------------

    def take(
        self,
        homes: Sequence[str],
        *,
        slot: int | None = None,
        token: int = 0,
        leave: Collection[str] = (),
        stay: bool = False,
        limit: int = 1,
        wanted: Container[str] | None = (),
        settled: Settled = NOTHING_SETTLED,
    ) -> Taken:
        """Take messages from the first home that has any; park on all of them if none has.

        Args:
            homes: queues, in the order to look at them.
            slot: the loop to park; ``None`` does not park.
            token: of its process; 0: it is asked for when something is to be held.
            leave: homes to take the loop's parked bit back from when a message is returned.
            stay: park on the home that gave the messages if it is empty now and not left.
            limit: how many messages a process-specific home may give at once; others give one.
            wanted: names, or homes, of which the first message is returned to who asks for it:
                it is read. Everything else is held, and counted, until it is settled. ``None``:
                all are read, by who is not to own the home: it only empties it.
            settled: what was read since the last time, as for ``note_settled``, in the same hold.
        """
        taken = self.segment.transact(
            self._take, homes, slot, token, leave, stay, limit, wanted, settled
        )
        if self.slots.rung:
            self.slots.settle()
        return taken

    def _take(
        self,
        homes: Sequence[str],
        slot: int | None,
        token: int,
        leave: Collection[str],
        stay: bool,
        limit: int,
        wanted: Container[str] | None,
        settled: Settled,
    ) -> Taken:
        words = self.segment.words
        if settled.held or settled.dropped:
            self._note_settled(settled)
        for home in homes:
            record = self.records.find(home)
            while record and words[record + L.CH_SENT] != words[record + L.CH_TAKEN]:
                few = leave
                if slot is not None and len(leave) > _FEW:  # before anything is planned: it commits
                    self.slots.leave_many(slot, [other for other in leave if other != home])
                    few = [home] if home in leave else []
                plan = Plan(words)
                many = limit if home[-1] == "!" else 1
                popped = self._pop_some(plan, record, home, many, wanted, token)
                more = plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]
                if popped and slot is None and home[-1] == "!" and wanted is not None:
                    if self.slots.is_to_be_owned(record) and (own := self.slots.token_if_any()):
                        plan[record + L.CH_OWNER] = own
                elif popped and slot is not None:
                    if few:
                        self.slots.leave(plan, slot, few)
                    if stay and not more and home not in leave:
                        plan[record + L.CH_PARKED + (slot >> 6)] |= 1 << (slot & 63)
                if plan:
                    self._commit_taken(plan, record, home, popped)
                if popped:
                    self.slots.reap_dead()
                    return Taken(home, popped, more)
        if slot is not None:
            self.slots.park(homes, slot, token)
        elif wanted is not None:
            self.slots.own(homes)
        return NOTHING

    def _commit_taken(self, plan: Plan, record: int, home: str, popped: Sequence[Popped]) -> None:
        words = self.segment.words
        before = words[record + L.CH_TAKEN]
        try:
            if home[-1] == "!":
                self.in_hand.extend([(home, message) for message in popped])
            self.segment.commit(plan)
        except BaseException:  # a signal handler's: was it before the commit point, or after it?
            if not words[L.LOG_N] and words[record + L.CH_TAKEN] == before:
                self.in_hand.clear()
            raise

    def take_one(
        self, home: str, name: str | None = "", *, rung: bool = False
    ) -> tuple[str, bytes | memoryview] | None:
        """Take one ordinary message and return its body, behind its name if that was open.

        ``None`` if there is none, or if ``take`` has to see to it. A large body comes in memory
        that ``_memory.scratch.give_back`` wants when it was decoded.

        Args:
            name: the full name it must bear, ``""`` for the home's own; ``None``: any.
            rung: there should be one. Whoever rang has perhaps not committed yet, so the lock is
                waited for; otherwise a queue that looks empty without it is left alone.
        """
        known = self.records.known.get(home)
        if known is None:
            return None
        words = self.segment.words
        if words is None:
            return None  # closed by another thread
        if home[-1] == "!" and self.slots.is_to_be_owned(known[0]):
            return None  # `take` sees to it
        if not rung and words[known[0] + L.CH_SENT] == words[known[0] + L.CH_TAKEN]:
            return None
        wanted = None if name is None else name.encode("ascii")
        try:
            return queues_fast.pop(self.segment, known, wanted, time.monotonic_ns(), self._pop_head)
        except LockBusy:
            return None  # `take` waits for it

    def _pop_head(self, record: int, extent: int) -> None:
        """Take the head of a queue, an ordinary message that was checked; with the lock held."""
        plan = Plan(self.segment.words)
        leaf = plan[extent + L.MSG_LEAF]
        if leaf:
            self.queues.uncount(plan, leaf)
        self.queues.remove_head(plan, record, extent)
        self.segment.commit(plan)

    def _pop_some(
        self,
        plan: Plan,
        record: int,
        home: str,
        limit: int,
        wanted: Container[str] | None,
        holder: int,
    ) -> list[Popped]:
        """Plan the removal of up to ``limit`` messages; expired ones are counted as such.

        A group envelope comes alone: its members are looked up with both locks held (in
        this order, never the other), so that nobody can leave between the two.
        """
        now = time.monotonic_ns()
        if home[-1] == "!" and wanted is not None and (limit > 1 or home not in wanted):
            holder = holder or self.slots.token()
        popped = queues_fast.drain(self.segment, plan, record, home, limit, now, wanted, holder)
        if popped:
            return popped
        envelope = queues_fast.open_envelope(self.segment, plan, record, now)
        if envelope is not None:
            members = self._members_at(envelope.name, home, envelope.group_version)
            return [envelope._replace(members=members)]
        total_bytes = 0
        while (
            plan[record + L.CH_SENT] != plan[record + L.CH_TAKEN]
            and len(popped) < limit
            and total_bytes < queues_fast.BATCH_BYTES
            and len(plan) < _PLAN_ROOM
        ):
            if popped and self.queues.head_is_envelope(plan, record):
                break
            message = self.queues.pop(plan, record, home)
            leaf, version = message.leaf, message.group_version
            if message.deadline_ns <= now:
                plan[record + L.CH_EXPIRED] += 1
                if leaf:
                    self.queues.uncount(plan, leaf)
                continue
            if version:
                self.queues.uncount(plan, leaf)
                members = self._members_at(message.name, home, version)
                if message.excluded:
                    members = [name for name in members if name not in message.excluded]
                return [message._replace(leaf=0, members=members)]
            if leaf and (
                wanted is None or (not popped and (message.name in wanted or home in wanted))
            ):
                self.queues.uncount(plan, leaf)
                message = message._replace(leaf=0)
            elif leaf:
                self.queues.drain(plan, record, leaf, holder, message.deadline_ns)
            popped.append(message)
            total_bytes += len(message.body)
        return popped

    def note_settled(self, settled: Settled) -> None:
        """Say what an inbox still holds: what it held beyond that was read, and counts no more."""
        self.segment.transact(self._note_settled, settled)

    def _note_settled(self, settled: Settled) -> None:
        words = self.segment.words
        plan = Plan(words)
        if settled.dropped:
            plan[L.COUNT_DROPPED] += settled.dropped
        known_of, is_own = self.records.known.get, self.slots.is_own
        held_now = settled.held if words[L.EPOCH] == settled.epoch else {}
        for name, held in held_now.items():
            leaf, ident = known_of(name, _UNKNOWN)  # as `find_leaf`, written out for thousands
            if not leaf or words[leaf + L.IDENT] != ident:
                leaf = self.records.find_leaf(name)
            if not leaf or not is_own(words[leaf + L.LEAF_HOLDER]):
                continue  # forgotten, or another process has drained below the home since
            taken = words[leaf + L.LEAF_DRAINED] - held
            if taken > words[leaf + L.CH_TAKEN]:
                plan[leaf + L.CH_TAKEN] = taken
            if len(plan) > _PLAN_ROOM:
                self.segment.commit(plan)
                plan = Plan(self.segment.words)
        if plan:
            self.segment.commit(plan)

    def may_have(self, home: str) -> bool:
        """Whether a home seems to have messages; read without the lock, so only a hint."""
        known = self.records.known.get(home)
        if known is None:
            return True
        words = self.segment.words
        return words is None or bool(words[known[0] + L.CH_SENT] != words[known[0] + L.CH_TAKEN])

    def depth(self, home: str) -> int:
        """Return how many messages wait in a home."""
        return self.segment.transact(self.records.depth, home)

    def owners(self, homes: Sequence[str]) -> list[int]:
        """Return who owns these homes, of those that are owned.

        Without the lock as far as this process knows their records.
        """
        words = self.segment.words
        found = []
        for home in homes:
            record, ident = self.records.known.get(home, (0, 0))
            if words is None or not record or words[record + L.IDENT] != ident:
                return self.segment.transact(self._owners, homes)
            found.append(words[record + L.CH_OWNER])
        return [owner for owner in found if owner]

    def _owners(self, homes: Sequence[str]) -> list[int]:
        records = [self.records.find(home) for home in homes]
        found = [self.segment.words[record + L.CH_OWNER] for record in records if record]
        return [owner for owner in found if owner]

    def epoch(self) -> int:
        """Return the number a flush changes; read without the lock."""
        words = self.segment.words
        return 0 if words is None else int(words[L.EPOCH])

    # -- everything at once --------------------------------------------------------------

    def flush(self) -> None:
        """Drop every message and channel, for every process; parked loops park again."""
        self.segment.transact(self._flush)

    def _flush(self) -> None:
        words = self.segment.words
        totals = self._statistics.totals()
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
            if self.slots.ring(slot, token, words[base + L.SLOT_PROCESS]) is Life.DEAD:
                plan[base + L.SLOT_TOKEN] = 0
            else:
                plan[base + L.SLOT_HINT] = L.HINT_MANY
        self.segment.commit(plan, L.LOG_RESET)

    def statistics(self) -> Counts:
        """Count everything since the segment was made; see ``aio.global_statistics``."""
        return self.segment.transact(self._statistics.totals)

    def channel_statistics(self, name: str, home: str) -> Counts:
        """Count one channel since its record was made."""
        return self.segment.transact(self._statistics.of_channel, name, home)
