"""The groups segment as operations: one method, one hold of the lock.

What a process has read it keeps: the homes of a group until the group's version changes,
the members of a home until the home's version changes. Its own changes are applied to
what it keeps, so a process that adds and discards its own members never reads them back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Container
from typing import NamedTuple

from .._memory.heap import HeapFull
from .._shm import layout as L
from .._shm.segment import Plan, Segment
from ..exceptions import ChannelFull
from .groups import Groups, Member
from .groups_fast import join, leave, renew
from .records import is_full
from .throttle import Throttle

__all__ = ["GroupStore", "Snapshot"]

_SWEEP_EVERY = 16  # one group_add in so many looks at as many buckets
_SWEEP_BUCKETS = 16
_PRESSURE_BUCKETS = 4096
_RECORDS_AT_ONCE = 256  # looked at in one hold of the lock, to drop those of dead processes
_BUCKETS_AT_ONCE = 4096
_CACHE_LIMIT = 10_000
_NEVER_NS = 1 << 63
_UNKNOWN = 0  # of no home in memory


class Snapshot(NamedTuple):
    """Whom a group message goes to, at one version of the group.

    Attributes:
        version: the version of the whole segment's membership at that moment.
        homes: process-specific homes and how many members each has.
        channels: members that are ordinary channels.
    """

    version: int
    homes: tuple[tuple[str, int], ...]
    channels: tuple[str, ...]


class _KnownGroup(NamedTuple):
    record: int
    ident: int
    version: int
    valid_until_ns: int  # an ordinary member may have expired after it
    snapshot: Snapshot


class _KnownHome:
    """A home's members as last read, at ``version``.

    Attributes:
        group: the record of the group it belongs to, for as long as it lives itself.
        gone: the tombstones.
        newest: none of the members joined at a later version than this.
        due_ns: none of them expires before.
    """

    __slots__ = ("due_ns", "gone", "group", "ident", "members", "newest", "record", "version")

    def __init__(self, group: int, record: int, ident: int) -> None:
        self.group = group
        self.record = record
        self.ident = ident
        self.version = _UNKNOWN
        self.newest = 0
        self.due_ns = _NEVER_NS
        self.members: dict[str, Member] = {}
        self.gone: list[tuple[str, Member]] = []

    def note(self, name: str, member: Member) -> None:
        """Add a member, or what it has become."""
        self.members[name] = member
        if member.joined > self.newest:
            self.newest = member.joined
        if member.deadline_ns < self.due_ns:
            self.due_ns = member.deadline_ns


class GroupStore:
    """Memberships of one groups segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.groups = Groups(segment)
        self._known_groups: dict[str, _KnownGroup] = {}
        self._known_homes: dict[tuple[str, str], _KnownHome] = {}
        self._hand = 0
        self._adds = 0
        self._fulls = Throttle()
        segment.on_epoch = self.forget

    def forget(self) -> None:
        """Drop everything remembered: the segment was flushed or replaced."""
        self._known_groups.clear()
        self._known_homes.clear()

    # -- changing ------------------------------------------------------------------------

    def add(self, group: str, home: str, channel: str, expiry_ns: int) -> None:
        """Add a member, or renew its membership.

        Raises:
            ChannelFull: the memory for groups is full; nothing was changed.
        """
        self.segment.transact(self._add, group, home, channel, expiry_ns)

    def _add(self, group: str, home: str, channel: str, expiry_ns: int) -> None:
        now = time.monotonic_ns()
        deadline = now + expiry_ns
        known = self._up_to_date(group, home)
        if known is None or not self._add_straight(known, channel, now, deadline):
            self._add_general(group, home, channel, now, deadline)
        self._adds += 1
        if not self._adds % _SWEEP_EVERY:
            self._sweep(now, _SWEEP_BUCKETS)

    def _up_to_date(self, group: str, home: str) -> _KnownHome | None:
        """Return a remembered home if it is as this process has last seen it."""
        known = self._known_homes.get((group, home))
        words = self.segment.words
        if (
            known is not None
            and words[known.record + L.H_VERSION] == known.version
            and words[known.record + L.IDENT] == known.ident
        ):
            return known
        return None

    def _add_straight(self, known: _KnownHome, channel: str, now: int, deadline: int) -> bool:
        """Do the ordinary case; whether it was that."""
        member = known.members.get(channel)
        if member is None:
            version, record = join(self.segment, known.group, known.record, channel, deadline)
            if not version:
                self.groups.heap.stock(self.groups.member_bytes(channel), L.EXTENT_MEMBER)
                version, record = join(self.segment, known.group, known.record, channel, deadline)
            if not version:
                return False
            known.note(channel, Member(version, 0, deadline, record))
            known.version = version  # last: whoever is interrupted before it reads all anew
            return True
        # Its own deadline is not noted: all are read anew when the first one is due. Before the
        # commit, as a signal handler may raise right after it.
        known.due_ns = min(known.due_ns, deadline)
        return renew(self.segment, member.record, now, deadline)

    def _add_general(self, group: str, home: str, channel: str, now: int, deadline: int) -> None:
        self.groups.heap.stock(self.groups.member_bytes(channel), L.EXTENT_MEMBER)
        try:
            plan, version, record, member_record = self.groups.heap.fit(
                lambda: self._plan_add(group, home, channel, now, deadline),
                lambda: self._make_room(now),
            )
        except (HeapFull, OSError) as exc:
            if not is_full(exc):
                raise
            raise self._memory_full(group, channel, exc) from exc
        previous = self._home_version(group, home)
        self.segment.commit(plan)
        member = Member(version, 0, deadline, member_record)
        if previous:
            self._note(group, home, channel, previous, version, member)
        else:
            self._note_alone(group, home, channel, record, member)

    def _memory_full(self, group: str, channel: str, cause: Exception) -> ChannelFull:
        name, total = self.segment.name, self.segment.size_bytes
        if isinstance(cause, OSError):
            text = (
                f"group {group!r}: the shared-memory filesystem is full, so {name} cannot grow for "
                "another member: free or enlarge it (df /dev/shm; in Docker --shm-size)"
            )
        else:
            text = (
                f"group {group!r}: the memory of {name} ({total} bytes) has no room for another "
                "member: raise group_memory (stop all processes, unlink the segment, start them "
                "with the new size)"
            )
        if count := self._fulls.add():
            self.segment.note(
                logging.WARNING,
                "memory-full",
                "%d members refused since the last such line, for lack of memory; the latest: %s",
                count,
                text,
            )
        return ChannelFull(text, channel=channel, memory_bytes=total)

    def _plan_add(
        self, group: str, home: str, channel: str, now_ns: int, deadline_ns: int
    ) -> tuple[Plan, int, int, int]:
        plan = Plan(self.segment.words)
        known = self._up_to_date(group, home)
        if known is None:
            return plan, *self.groups.add(plan, group, home, channel, now_ns, deadline_ns)
        if channel in known.members:
            version, member = self.groups.add_below(
                plan, known.group, known.record, channel, now_ns, deadline_ns
            )
        else:
            version, member = self.groups.join(
                plan, known.group, known.record, channel, deadline_ns
            )
        return plan, version, known.record, member

    def discard(self, group: str, home: str, channel: str, tombstone_ns: int) -> None:
        """End a membership; nothing happens if there is none.

        Args:
            tombstone_ns: messages for its home are queued and live this long at most; 0: none.
        """
        self.segment.transact(self._discard, group, home, channel, tombstone_ns)

    def _discard(self, group: str, home: str, channel: str, tombstone_ns: int) -> None:
        until = time.monotonic_ns() + tombstone_ns if tombstone_ns else 0
        known = self._up_to_date(group, home)
        if known is not None:
            member = known.members.get(channel)
            if member is None or self._discard_straight(known, channel, member, until):
                return
        plan = Plan(self.segment.words)
        if known is not None and member is not None:
            version = self.groups.leave(plan, known.group, known.record, member.record, until)
        else:
            version = self.groups.discard(plan, group, home, channel, until)
        if not version:
            return
        previous = self._home_version(group, home)
        self.segment.commit(plan)
        self._note(group, home, channel, previous, version, Member(0, version, until, 0))

    def _discard_straight(
        self, known: _KnownHome, channel: str, member: Member, until: int
    ) -> bool:
        """Do the ordinary case; whether it was that."""
        version = leave(self.segment, known.group, known.record, member.record, until)
        if not version:
            return False
        del known.members[channel]
        if until:
            known.gone.append((channel, Member(member.joined, version, until, member.record)))
        known.version = version  # last, as in `_add_straight`
        return True

    def version(self) -> int:
        """Return the version of the latest change of any membership."""
        return self.segment.transact(self._version)

    def _version(self) -> int:
        version: int = self.segment.words[L.SEQUENCE]
        return version

    def drop_homes(self, homes: Container[str], version: int) -> None:
        """Remove, of all groups, the members of homes that had joined by a version.

        For homes whose process was proven dead at that version. A few at a time, so that nobody
        waits long for the lock; whoever is interrupted in it begins anew.
        """
        bucket = 0
        while bucket < self.segment.heap_start - L.BUCKETS:
            bucket = self.segment.transact(self._drop_some, homes, version, bucket)

    def _drop_some(self, homes: Container[str], version: int, bucket: int) -> int:
        words = self.segment.words
        groups = self.groups
        used, end = groups.table.some_buckets(bucket, _BUCKETS_AT_ONCE)
        visited = 0
        for bucket in used:
            for record in list(groups.table.chain(bucket)):
                visited += 1
                if (
                    words[record] >> L.KIND_SHIFT == L.EXTENT_MEMBER
                    and words[record + L.IDENT]
                    and words[record + L.M_JOINED] <= version
                ):
                    home = groups.heap.check(words[record + L.OWNER])
                    if groups.table.key_of(home, L.EXTENT_HOME) in homes:
                        plan = Plan(words)
                        groups.expire(plan, record)
                        self.segment.commit(plan)
            if visited >= _RECORDS_AT_ONCE:
                return bucket + 1
        return end

    # -- reading -------------------------------------------------------------------------

    def snapshot(self, group: str) -> Snapshot:
        """Return whom a message sent to the group right now goes to.

        Without the lock if nothing has changed: whoever had joined before the call has written
        the group's version by then, or its log is still there to be replayed.
        """
        known = self._known_groups.get(group)
        words = self.segment.words
        if (
            known is not None
            and words is not None
            and words[known.record + L.G_VERSION] == known.version
            and words[known.record + L.IDENT] == known.ident
            and words[L.EPOCH] == self.segment.epoch
            and not words[L.LOG_N]
            and time.monotonic_ns() < known.valid_until_ns
        ):
            return known.snapshot
        return self.segment.transact(self._snapshot, group)

    def _snapshot(self, group: str) -> Snapshot:
        words = self.segment.words
        now = time.monotonic_ns()
        record = self.groups.find_group(Plan(words), group)
        if not record:
            return Snapshot(0, (), ())
        homes: list[tuple[str, int]] = []
        channels: list[str] = []
        valid_until = _NEVER_NS
        for home in self.groups.homes(record):
            count = words[home + L.H_COUNT]
            if not count:
                continue  # tombstones only
            name = self.groups.table.key_of(home, L.EXTENT_HOME)
            if name[-1] == "!":
                homes.append((name, count))
                continue
            for channel, member in self.groups.members(home):
                if not member.left and member.deadline_ns > now:
                    channels.append(channel)
                    valid_until = min(valid_until, member.deadline_ns)
        version = words[record + L.G_VERSION]
        snapshot = Snapshot(version, tuple(homes), tuple(channels))
        if len(self._known_groups) >= _CACHE_LIMIT:
            self._known_groups.clear()
        self._known_groups[group] = _KnownGroup(
            record, words[record + L.IDENT], version, valid_until, snapshot
        )
        return snapshot

    def members_at(self, group: str, home: str, version: int) -> list[str]:
        """Return the members of a home that were in the group at ``version``."""
        return self.segment.transact(self._members_at, group, home, version)

    def _members_at(self, group: str, home: str, version: int) -> list[str]:
        now = time.monotonic_ns()
        known = self._home(group, home)
        if known is None:
            return []
        if known.due_ns <= now:
            self._read_members(known)  # another process may have renewed them
        if version >= known.newest and not known.gone and known.due_ns > now:
            return list(known.members)
        names = [
            name
            for name, (joined, _, deadline_ns, _) in known.members.items()
            if joined <= version and deadline_ns > now
        ]
        names += [
            name
            for name, (joined, left, deadline_ns, _) in known.gone
            if joined <= version < left and deadline_ns > now
        ]
        return names

    def count(self, group: str, home: str, names: Collection[str], version: int) -> int:
        """Return how many of some names below a home were members at ``version``."""
        members = self.members_at(group, home, version)
        return len({*names}.intersection(members))

    def channels(self, group: str) -> list[str]:
        """Return the members of a group."""
        return self.segment.transact(self._channels, group)

    def _channels(self, group: str) -> list[str]:
        now = time.monotonic_ns()
        record = self.groups.find_group(Plan(self.segment.words), group)
        if not record:
            return []
        return [
            name
            for home in self.groups.homes(record)
            for name, member in self.groups.members(home)
            if not member.left and member.deadline_ns > now
        ]

    def flush(self) -> None:
        """Drop every group, for every process."""
        self.segment.transact(self._flush)

    def _flush(self) -> None:
        words = self.segment.words
        self.segment.commit({L.EPOCH: words[L.EPOCH] + 1}, L.LOG_RESET)

    # -- what is remembered --------------------------------------------------------------

    def _home(self, group: str, home: str) -> _KnownHome | None:
        words = self.segment.words
        known = self._known_homes.get((group, home))
        if known is not None and words[known.record + L.IDENT] == known.ident:
            if words[known.record + L.H_VERSION] == known.version:
                return known
        else:
            plan = Plan(words)
            group_record = self.groups.find_group(plan, group)
            record = self.groups.find_home(plan, group_record, home) if group_record else 0
            if not record:
                self._known_homes.pop((group, home), None)
                return None
            known = _KnownHome(group_record, record, words[record + L.IDENT])
            self._remember_home(group, home, known)
        self._read_members(known)
        return known

    def _read_members(self, known: _KnownHome) -> None:
        known.version = _UNKNOWN  # until all is read: whoever is interrupted here reads it anew
        known.members.clear()
        known.gone.clear()
        known.newest, known.due_ns = 0, _NEVER_NS
        for name, member in self.groups.members(known.record):
            if member.left:
                known.gone.append((name, member))
            else:
                known.note(name, member)
        known.version = self.segment.words[known.record + L.H_VERSION]

    def _home_version(self, group: str, home: str) -> int:
        """Return the version a remembered home has in memory now, 0 if none is remembered."""
        known = self._known_homes.get((group, home))
        words = self.segment.words
        if known is None or words[known.record + L.IDENT] != known.ident:
            return 0
        version: int = words[known.record + L.H_VERSION]
        return version

    def _note(
        self,
        group: str,
        home: str,
        channel: str,
        previous: int,
        version: int,
        member: Member,
    ) -> None:
        """Apply a change of our own to a remembered home that was up to date before it."""
        known = self._known_homes.get((group, home))
        if known is None or not previous or known.version != previous:
            return
        known.version = _UNKNOWN  # until it is whole, as in `_read_members`
        old = known.members.pop(channel, None)
        if not member.left:
            if not member.joined and old is not None:  # a renewal
                member = member._replace(joined=old.joined)
            known.note(channel, member)
        elif old is not None and member.deadline_ns:
            known.gone.append((channel, member._replace(joined=old.joined)))
        known.version = version or previous

    def _note_alone(self, group: str, home: str, channel: str, record: int, member: Member) -> None:
        """Remember a home whose first and only member is the one just added."""
        words = self.segment.words
        first = self.groups.heap.check(words[record + L.H_FIRST])
        if words[first + L.M_NEXT] or not member.joined:
            return
        group_record = self.groups.heap.check(words[record + L.OWNER])
        known = _KnownHome(group_record, record, words[record + L.IDENT])
        known.version = member.joined
        known.note(channel, member)
        self._remember_home(group, home, known)

    def _remember_home(self, group: str, home: str, known: _KnownHome) -> None:
        if len(self._known_homes) >= _CACHE_LIMIT:
            self._known_homes.clear()
        self._known_homes[(group, home)] = known

    # -- housekeeping --------------------------------------------------------------------

    def _sweep(self, now: int, buckets: int) -> None:
        """Look at the next few buckets and end what has expired."""
        used, self._hand = self.groups.table.some_buckets(self._hand, buckets)
        words = self.segment.words
        for bucket in used:
            for record in list(self.groups.table.chain(bucket)):
                if (
                    words[record + L.M_DEADLINE] <= now
                    and words[record] >> L.KIND_SHIFT == L.EXTENT_MEMBER
                    and words[record + L.IDENT]
                ):
                    plan = Plan(words)
                    self.groups.expire(plan, record)
                    self.segment.commit(plan)

    def _make_room(self, now: int) -> None:
        total = self.segment.heap_start - L.BUCKETS
        for _ in range(0, min(total, _PRESSURE_BUCKETS), 64):
            self._sweep(now, 64)
        self.groups.heap.consolidate()
