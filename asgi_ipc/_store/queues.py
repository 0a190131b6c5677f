"""Channel queues over a segment: plans only, no clock, no lock, no waking.

A *channel record* stands for a home (the queue) or for a full process-specific name below
one (a *leaf*, which only counts, so that capacity can hold per full name). A queue is a
list of messages linked from ``CH_HEAD`` to ``CH_TAIL``; both are meaningful only while
``CH_SENT != CH_TAKEN``, whose difference is its depth.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from .._memory.heap import Heap
from .._memory.table import Table
from .._shm import layout as L
from .._shm.segment import Plan, Segment, damaged
from ..exceptions import SegmentCorrupt

__all__ = ["Popped", "Queues"]

_MESSAGE = struct.Struct(f"<{L.MSG_DATA - L.DATA}Q")
_MESSAGE_SHARED = struct.Struct(f"<{L.MSG_DATA - L.DATA + 2}Q")
_LENGTHS = struct.Struct("<2Q")
_HEADER_BYTES = 8 * L.MSG_DATA
EXCLUDED_LIMIT = 65535
"""Bytes of excluded names, with a separator each, that one envelope can carry."""


class Popped(NamedTuple):
    """A message taken out of a queue.

    Attributes:
        name: the full channel name; the group's name for a group envelope.
        body: the encoded message.
        leaf: the record that goes on counting it until it is read, see
            ``MessageStore.note_settled``; 0: nobody does.
        group_version: the membership a group envelope was sent to; 0 for other messages.
        deadline_ns: when it expires, ``CLOCK_MONOTONIC``.
        excluded: members whom a group envelope is not for.
        members: whom it is for.
    """

    name: str
    body: bytes
    leaf: int
    group_version: int
    deadline_ns: int
    excluded: Sequence[str] = ()
    members: Sequence[str] = ()


class Queues:
    """The channel queues of the messages segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.heap = Heap(segment)
        self.table = Table(segment, self.heap)

    # -- records -------------------------------------------------------------------------

    def create_channel(self, plan: Plan, name: str, owner: int = 0) -> int:
        """Plan an empty channel record; with an ``owner``, a leaf of that home."""
        fields = [0] * (L.CH_KEY - L.CH_HEAD)
        if owner:
            plan[owner + L.CH_LEAVES] += 1
            fields[L.LEAF_HOLDER - L.CH_HEAD] = plan[owner + L.CH_OWNER]  # spares the first drain
        return self.table.create(plan, L.EXTENT_CHANNEL, name.encode("ascii"), owner, tuple(fields))

    def find_channel(self, plan: Plan, name: str, owner: int = 0) -> int:
        """Return a channel's record, or 0."""
        return self.table.find(plan, L.EXTENT_CHANNEL, name.encode("ascii"), owner)

    def remove_channel(self, plan: Plan, record: int) -> None:
        """Plan the end of an empty channel's record; what it counted goes to the totals."""
        sent = plan[record + L.CH_SENT]
        taken = plan[record + L.CH_TAKEN]
        expired = plan[record + L.CH_EXPIRED]
        owner = plan[record + L.OWNER]
        if owner:  # a leaf's messages are counted by its home
            plan[self.heap.check(owner) + L.CH_LEAVES] -= 1
        else:
            plan[L.COUNT_SENT] += sent
            plan[L.COUNT_RECEIVED] += taken - expired
            plan[L.COUNT_EXPIRED] += expired
        plan[L.COUNT_FULL] += plan[record + L.CH_FULL]
        self.table.remove(plan, record)

    def uncount(self, plan: Plan, leaf: int) -> None:
        """Plan that a message left the queue which nobody holds after that."""
        plan[leaf + L.LEAF_DRAINED] += 1
        plan[leaf + L.CH_TAKEN] += 1

    def drain(self, plan: Plan, home: int, leaf: int, holder: int, deadline_ns: int) -> None:
        """Plan that a message left the queue for the inbox of a process."""
        if plan[leaf + L.LEAF_HOLDER] != holder:  # and what another one held is void
            plan[leaf + L.LEAF_HOLDER] = holder
            plan[leaf + L.CH_TAKEN] = plan[leaf + L.LEAF_DRAINED]
        plan[leaf + L.LEAF_DRAINED] += 1
        if plan[home + L.CH_HELD_UNTIL] < deadline_ns:
            plan[home + L.CH_HELD_UNTIL] = deadline_ns

    # -- sending -------------------------------------------------------------------------

    def message_bytes(self, name: str, body_bytes: int) -> int:
        """Size of the extent for a message whose name must travel with it (else ``""``)."""
        return _HEADER_BYTES + len(name) + body_bytes

    def append(
        self,
        plan: Plan,
        home: int,
        leaf: int,
        name: str,
        body: bytes,
        now_ns: int,
        deadline_ns: int,
    ) -> None:
        """Plan a message at the end of ``home``.

        Args:
            name: the full name, or ``""`` when it is the home's own.
        """
        name_bytes = len(name)
        size = len(body)
        extent = self.heap.allocate(plan, _HEADER_BYTES + name_bytes + size, L.EXTENT_MESSAGE)
        start = 8 * (extent + L.DATA)
        head = _MESSAGE.pack(0, deadline_ns, now_ns, leaf, name_bytes << L.MSG_NAME_SHIFT | size)
        memory = self.segment.memory
        if name_bytes:
            head += name.encode("ascii")
        if size < 4096:
            head += body
            memory[start : start + len(head)] = head
        else:
            memory[start : start + len(head)] = head
            start += len(head)
            memory[start : start + size] = body
        self._link(plan, home, leaf, extent)

    def store_body(self, plan: Plan, body: bytes, references: int) -> int:
        """Plan a body that ``references`` messages will share."""
        extent = self.heap.allocate(plan, 8 * L.BODY_DATA + len(body), L.EXTENT_BODY)
        start = 8 * (extent + L.BODY_REFS)
        memory = self.segment.memory
        memory[start : start + 16] = _LENGTHS.pack(references, len(body))
        memory[start + 16 : start + 16 + len(body)] = body
        return extent

    def append_shared(
        self,
        plan: Plan,
        home: int,
        leaf: int,
        name: str,
        body_extent: int,
        body_bytes: int,
        group_version: int,
        now_ns: int,
        deadline_ns: int,
        excluded: bytes = b"",
    ) -> None:
        """Plan a message that refers to a stored body: a group envelope if it has a version.

        Args:
            excluded: names that the envelope is not for, each with a NUL before it.
        """
        name_bytes = len(name)
        tail = name.encode("ascii") + excluded
        extent = self.heap.allocate(plan, _HEADER_BYTES + 16 + len(tail), L.EXTENT_MESSAGE)
        start = 8 * (extent + L.DATA)
        flag = L.MSG_FLAG_GROUP if group_version else L.MSG_FLAG_SHARED
        lengths = (
            len(excluded) << L.MSG_EXCLUDED_SHIFT
            | flag << L.MSG_FLAG_SHIFT
            | name_bytes << L.MSG_NAME_SHIFT
            | body_bytes
        )
        data = (
            _MESSAGE_SHARED.pack(0, deadline_ns, now_ns, leaf, lengths, body_extent, group_version)
            + tail
        )
        self.segment.memory[start : start + len(data)] = data
        self._link(plan, home, leaf, extent)

    def _link(self, plan: Plan, home: int, leaf: int, extent: int) -> None:
        sent = plan[home + L.CH_SENT]
        if sent == plan[home + L.CH_TAKEN]:
            plan[home + L.CH_HEAD] = extent
        else:
            plan[self.heap.check(plan[home + L.CH_TAIL]) + L.MSG_NEXT] = extent
        plan[home + L.CH_TAIL] = extent
        plan[home + L.CH_SENT] = sent + 1
        if leaf:
            plan[leaf + L.CH_SENT] += 1

    # -- receiving -----------------------------------------------------------------------

    def drop_expired(self, plan: Plan, home: int, now_ns: int, limit: int) -> int:
        """Plan the end of up to ``limit`` expired messages at the head; how many."""
        dropped = 0
        words = self.segment.words
        while dropped < limit and plan[home + L.CH_SENT] != plan[home + L.CH_TAKEN]:
            extent = self.heap.check(plan[home + L.CH_HEAD])
            if words[extent + L.MSG_DEADLINE] > now_ns:
                break
            leaf = words[extent + L.MSG_LEAF]
            if leaf:
                self.uncount(plan, self.heap.check(leaf))
            self.remove_head(plan, home, extent)
            dropped += 1
        if dropped:
            plan[home + L.CH_EXPIRED] += dropped
        return dropped

    def head_is_envelope(self, plan: Plan, home: int) -> bool:
        """Whether the head of a queue that is not empty is a group envelope."""
        extent = self.heap.check(plan[home + L.CH_HEAD])
        lengths: int = self.segment.words[extent + L.MSG_LENGTHS]
        return lengths >> L.MSG_FLAG_SHIFT & 0xFF == L.MSG_FLAG_GROUP

    def pop(self, plan: Plan, home: int, home_name: str) -> Popped:
        """Plan the removal of the head of a queue that is not empty, and read it."""
        extent = self.heap.check(plan[home + L.CH_HEAD])
        words = self.segment.words
        memory = self.segment.memory
        deadline_ns = words[extent + L.MSG_DEADLINE]
        leaf = words[extent + L.MSG_LEAF]
        lengths = words[extent + L.MSG_LENGTHS]
        header = plan[extent]
        body_bytes = lengths & 0xFFFFFFFF
        name_bytes = lengths >> L.MSG_NAME_SHIFT & 0xFF
        flag = lengths >> L.MSG_FLAG_SHIFT & 0xFF
        excluded_bytes = lengths >> L.MSG_EXCLUDED_SHIFT
        held = (header & L.SIZE_MASK) * L.GRANULE_BYTES - _HEADER_BYTES
        start = 8 * (extent + L.MSG_DATA)
        version = 0
        excluded: Sequence[str] = ()
        if not flag:
            if header >> L.KIND_SHIFT != L.EXTENT_MESSAGE or name_bytes + body_bytes > held:
                raise self._bad_message(extent)
            name = memory[start : start + name_bytes].decode("ascii") if name_bytes else home_name
            start += name_bytes
            body = memory[start : start + body_bytes]
        else:
            if (
                header >> L.KIND_SHIFT != L.EXTENT_MESSAGE
                or name_bytes + excluded_bytes + 16 > held
            ):
                raise self._bad_message(extent)
            stored = self.heap.check(words[extent + L.MSG_DATA])
            version = words[extent + L.MSG_DATA + 1]
            if (
                words[stored] >> L.KIND_SHIFT != L.EXTENT_BODY
                or words[stored + L.BODY_BYTES] != body_bytes
                or body_bytes > (words[stored] & L.SIZE_MASK) * L.GRANULE_BYTES - 8 * L.BODY_DATA
            ):
                raise self._bad_message(extent)
            start += 16
            name = memory[start : start + name_bytes].decode("ascii") or home_name
            if excluded_bytes:
                start += name_bytes
                excluded = memory[start : start + excluded_bytes].decode("ascii").split("\0")[1:]
            start = 8 * (stored + L.BODY_DATA)
            body = memory[start : start + body_bytes]
        self.remove_head(plan, home, extent)
        if leaf:
            self.heap.check(leaf)
        return Popped(name, body, leaf, version, deadline_ns, excluded)

    def remove_head(self, plan: Plan, home: int, extent: int) -> None:
        """Plan the end of ``extent``, the head of a queue."""
        taken = plan[home + L.CH_TAKEN] + 1
        plan[home + L.CH_TAKEN] = taken
        if taken != plan[home + L.CH_SENT]:
            plan[home + L.CH_HEAD] = plan[extent + L.MSG_NEXT]
        words = self.segment.words
        if words[extent + L.MSG_LENGTHS] >> L.MSG_FLAG_SHIFT:
            stored = self.heap.check(words[extent + L.MSG_DATA])
            references = plan[stored + L.BODY_REFS]
            if references > 1:
                plan[stored + L.BODY_REFS] = references - 1
            else:
                self.heap.free(plan, stored)
        self.heap.free(plan, extent)

    def _bad_message(self, extent: int) -> SegmentCorrupt:
        return damaged(self.segment.name, f"a message at word {extent} of the wrong shape")
