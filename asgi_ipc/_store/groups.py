"""Group membership over a segment: group → homes → members. Plans only.

A member is a channel; its *home* is the queue that channel lives in (``a!`` for ``a!b``,
itself otherwise). Whoever sends to a group needs the homes only; whoever receives for a
home looks up that home's members. So that both see one membership, every change takes the
next number of a sequence: a member receives what was sent at ``JOINED <= version`` and,
once it has left, ``version < LEFT``. A member that left while messages for its home were
still queued stays behind as such a *tombstone* until those have expired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .._memory.heap import Heap
from .._memory.table import Table
from .._shm import layout as L
from .._shm.segment import Plan, Segment, damaged

__all__ = ["Groups", "Member"]


class Member(NamedTuple):
    """One membership as read from the segment; see the module docstring."""

    joined: int
    left: int
    deadline_ns: int
    record: int  # where it lies while its home's version stays


class Groups:
    """The records of the groups segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.heap = Heap(segment)
        self.table = Table(segment, self.heap)

    # -- looking up ----------------------------------------------------------------------

    def find_group(self, plan: Plan, group: str) -> int:
        """Return a group's record, or 0."""
        return self.table.find(plan, L.EXTENT_GROUP, group.encode("ascii"))

    def find_home(self, plan: Plan, group: int, home: str) -> int:
        """Return the record of a home within a group, or 0."""
        return self.table.find(plan, L.EXTENT_HOME, home.encode("ascii"), group)

    def find_member(self, plan: Plan, home: int, channel: str) -> int:
        """Return the record of a member within a home, or 0."""
        return self.table.find(plan, L.EXTENT_MEMBER, channel.encode("ascii"), home)

    def homes(self, group: int) -> Iterator[int]:
        """Yield the home records of a group."""
        return self._walk(self.segment.words[group + L.G_HOMES], L.H_NEXT)

    def members(self, home: int) -> Iterator[tuple[str, Member]]:
        """Yield the members of a home, tombstones included."""
        words = self.segment.words
        for record in self._walk(words[home + L.H_FIRST], L.M_NEXT):
            yield (
                self.table.key_of(record, L.EXTENT_MEMBER),
                Member(
                    words[record + L.M_JOINED],
                    words[record + L.M_LEFT],
                    words[record + L.M_DEADLINE],
                    record,
                ),
            )

    def _walk(self, record: int, link: int) -> Iterator[int]:
        words = self.segment.words
        limit = self.segment.heap_limit  # more steps than there is memory: a loop
        while record:
            self.heap.check(record)
            following = words[record + link]
            yield record
            record = following
            limit -= L.GRANULE_WORDS
            if limit < 0:
                raise damaged(self.segment.name, "a list of members that does not end")

    # -- changing ------------------------------------------------------------------------

    def add(
        self, plan: Plan, group: str, home: str, channel: str, now_ns: int, deadline_ns: int
    ) -> tuple[int, int, int]:
        """Plan a membership, or its renewal.

        Returns:
            the new version (0: a renewal), the records of the home and of the member.
        """
        group_record = self.find_group(plan, group)
        if not group_record:
            group_record = self.table.create(
                plan, L.EXTENT_GROUP, group.encode("ascii"), 0, (0, 0, 0), _next_ident(plan)
            )
        home_record = self.find_home(plan, group_record, home)
        if not home_record:
            home_record = self._create_home(plan, group_record, home)
        version, member = self.add_below(
            plan, group_record, home_record, channel, now_ns, deadline_ns
        )
        return version, home_record, member

    def add_below(
        self,
        plan: Plan,
        group_record: int,
        home_record: int,
        channel: str,
        now_ns: int,
        deadline_ns: int,
    ) -> tuple[int, int]:
        """Do what ``add`` does, for a home that was found; return version and member."""
        member = self.find_member(plan, home_record, channel)
        if not member or plan[member + L.M_LEFT]:
            return self.join(plan, group_record, home_record, channel, deadline_ns)
        is_over = plan[member + L.M_DEADLINE] <= now_ns
        plan[member + L.M_DEADLINE] = deadline_ns
        if not is_over:
            return 0, member
        version = self._changed(plan, group_record, home_record, 0)
        plan[member + L.M_JOINED] = version
        return version, member

    def join(
        self, plan: Plan, group_record: int, home_record: int, channel: str, deadline_ns: int
    ) -> tuple[int, int]:
        """Plan a membership of a channel that is no member; return version and member.

        Beside its own tombstone, if there is one: `find_member` meets the newer one first.
        """
        ident = _next_ident(plan)
        version = self._changed(plan, group_record, home_record, +1)
        first = plan[home_record + L.H_FIRST]
        member = self.table.create(
            plan,
            L.EXTENT_MEMBER,
            channel.encode("ascii"),
            home_record,
            (first, 0, deadline_ns, version, 0),
            ident,
        )
        if first:
            plan[self.heap.check(first) + L.M_PREVIOUS] = member
        plan[home_record + L.H_FIRST] = member
        return version, member

    def member_bytes(self, channel: str) -> int:
        """Size of the extent of a member."""
        return 8 * L.M_KEY + len(channel)

    def discard(
        self, plan: Plan, group: str, home: str, channel: str, tombstone_until_ns: int
    ) -> int:
        """Plan the end of a membership; return the new version, 0 if there is none.

        Args:
            tombstone_until_ns: keep it for messages already queued until then; 0: drop it.
        """
        group_record = self.find_group(plan, group)
        home_record = self.find_home(plan, group_record, home) if group_record else 0
        member = self.find_member(plan, home_record, channel) if home_record else 0
        if not member or plan[member + L.M_LEFT]:
            return 0
        return self.leave(plan, group_record, home_record, member, tombstone_until_ns)

    def leave(
        self,
        plan: Plan,
        group_record: int,
        home_record: int,
        member: int,
        tombstone_until_ns: int,
    ) -> int:
        """Do what ``discard`` does, for a member that was found and has not left."""
        version = self._changed(plan, group_record, home_record, -1)
        if tombstone_until_ns:
            plan[member + L.M_LEFT] = version
            plan[member + L.M_DEADLINE] = tombstone_until_ns
        else:
            self._remove_member(plan, home_record, member)
        return version

    def expire(self, plan: Plan, member: int) -> None:
        """Plan the end of a membership or tombstone whose time is over."""
        home = self.heap.check(plan[member + L.OWNER])
        group = self.heap.check(plan[home + L.OWNER])
        if not plan[member + L.M_LEFT]:
            self._changed(plan, group, home, -1)
        self._remove_member(plan, home, member)

    def _create_home(self, plan: Plan, group: int, home: str) -> int:
        first = plan[group + L.G_HOMES]
        record = self.table.create(
            plan,
            L.EXTENT_HOME,
            home.encode("ascii"),
            group,
            (first, 0, 0, 0, 0),
            _next_ident(plan),
        )
        if first:
            plan[self.heap.check(first) + L.H_PREVIOUS] = record
        plan[group + L.G_HOMES] = record
        return record

    def _changed(self, plan: Plan, group: int, home: int, members: int) -> int:
        version = plan[L.SEQUENCE] + 1
        plan[L.SEQUENCE] = plan[group + L.G_VERSION] = plan[home + L.H_VERSION] = version
        if members:
            plan[group + L.G_COUNT] += members
            plan[home + L.H_COUNT] += members
        return version

    def _remove_member(self, plan: Plan, home: int, member: int) -> None:
        self._unlink(plan, member, L.M_NEXT, home + L.H_FIRST)
        self.table.remove(plan, member)
        if not plan[home + L.H_FIRST]:
            group = plan[home + L.OWNER]
            self._unlink(plan, home, L.H_NEXT, group + L.G_HOMES)
            self.table.remove(plan, home)
            if not plan[group + L.G_HOMES]:
                self.table.remove(plan, group)

    def _unlink(self, plan: Plan, record: int, link: int, first_word: int) -> None:
        """Take a record out of a doubly linked list; ``link + 1`` is the way back."""
        following = plan[record + link]
        previous = plan[record + link + 1]
        if following:
            plan[self.heap.check(following) + link + 1] = previous
        if previous:
            plan[self.heap.check(previous) + link] = following
        else:
            plan[first_word] = following


def _next_ident(plan: Plan) -> int:
    """An ident for the records of the change that takes the next version: no other has it."""
    return plan[L.SEQUENCE] << 1 | 1


assert L.M_PREVIOUS == L.M_NEXT + 1 and L.H_PREVIOUS == L.H_NEXT + 1
