"""What a site does all day, straight-lined: append, pop, park and drain of ordinary messages.

And the opening of a group's envelope. These do exactly what ``queues`` and ``heap`` plan in the
general case (the quick list's extent, the queue's links, the counts), and decline whatever
is not ordinary: a log to replay, a body beyond the quick lists, an expired message. Declining
changes nothing; the general path then does the work. ``LockBusy`` comes out of here as out of
any transaction. The lock's discipline is that of ``Segment.transact``, written out: calls are
what costs here.

Measured at 1 KB, the lock included: 3.7 µs against 7.4 µs for an append, 3.5 µs against 8.7 µs
for a pop (the general path with the same heap and log).
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Callable, Container

from .._memory.scratch import borrow
from .._process.own import here
from .._shm import layout as L
from .._shm.segment import Segment
from .queues import Popped

__all__ = ["BATCH_BYTES", "LARGEST_BYTES", "append", "drain", "open_envelope", "park", "pop"]

LARGEST_BYTES = L.LARGEST_QUICK * L.GRANULE_BYTES - 8 * L.MSG_DATA - 255
"""Bodies up to this size are appended here; 255 for the longest name."""
BATCH_BYTES = 1 << 20
"""A drain ends when it has taken this much."""
_COPIED_ONCE = 4096  # larger bodies are not put together with their header first
_BORROWED_FROM = 16 * 1024  # larger bodies are copied into memory of `_memory/scratch`

_flock = fcntl.flock
_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_UNLOCK = fcntl.LOCK_UN

_HEAD = struct.Struct(f"<{L.MSG_DATA - L.DATA}Q").pack
_HEAD_BYTES = 8 * (L.MSG_DATA - L.DATA)
_DATA_START = 8 * L.DATA
_BODY_START = 8 * L.MSG_DATA
_MESSAGE = struct.Struct(f"<{L.MSG_DATA}Q").unpack_from
_RECORD = struct.Struct(f"<{L.CH_PARKED + L.PARKED_WORDS - L.IDENT}Q").unpack_from
_RECORD_START = 8 * L.IDENT
_ONE_QUICK = 1 << L.COUNT_SHIFT
_LOG_N, _EPOCH, _QUICK = L.LOG_N, L.EPOCH, L.QUICK
_OFFSET, _COUNTS = L.OFFSET_MASK, ~L.OFFSET_MASK
_IS_MESSAGE = L.EXTENT_MESSAGE
_KIND_SHIFT, _SIZE_MASK, _GRANULE = L.KIND_SHIFT, L.SIZE_MASK, L.GRANULE_BYTES
_HEAD_WORD, _TAIL_WORD, _SENT_WORD, _TAKEN_WORD = L.CH_HEAD, L.CH_TAIL, L.CH_SENT, L.CH_TAKEN
_DRAINED_WORD = L.LEAF_DRAINED
_NAME_SHIFT = L.MSG_NAME_SHIFT
_PLAIN = 1 << L.MSG_FLAG_SHIFT  # with a flag, MSG_LENGTHS is not below it

_QUICK_OF, _QUICK_FOR = L.QUICK_OF, L.QUICK_FOR
_LARGEST_QUICK = L.LARGEST_QUICK
_QUICK_LIMIT = [L.quick_limit(index) << L.COUNT_SHIFT for index in range(L.QUICK_CLASSES)]

Known = tuple[int, int]
"""Where a record was last seen, and its ident."""


def append(
    segment: Segment,
    known: Known,
    leaf: Known | None,
    name: str,
    body: bytes,
    capacity: int,
    now: int,
    deadline: int,
    wake: Callable[[dict[int, int], int, int], None],
) -> bool:
    """Queue a message; False if this is not the ordinary case.

    Args:
        known: the home's record.
        leaf: the record that counts the full name, if it is counted.
        name: the full name if it is not the home's own, else ``""``.
        wake: ``wake(plan, record, mask)`` rings one of the parked loops and plans its bit away.
    """
    record, ident = known
    guard = segment.guard
    if here[0] != segment.attached_by or guard._is_owned():
        return False
    try:
        guard.acquire()
        fd = segment.lock_fd
        if fd < 0:
            return False
        try:
            try:
                _flock(fd, _EXCLUSIVE)
            except OSError:
                segment.contend()
            words = segment.words
            if words[_LOG_N] or words[_EPOCH] != segment.epoch:
                return False
            memory = segment.memory
            ident_now, _, _, _, tail, sent, taken, p0, p1, p2, p3 = _RECORD(
                memory, 8 * record + _RECORD_START
            )
            if ident_now != ident:
                return False
            counter = 0
            if leaf is not None:
                counter = leaf[0]
                if words[counter + L.IDENT] != leaf[1]:
                    return False
                counted = words[counter + _SENT_WORD]
                depth = counted - words[counter + _TAKEN_WORD]
            else:
                depth = sent - taken
            if depth >= capacity:
                return False
            size = len(body)
            own_bytes = len(name)
            quick = _QUICK_FOR[(own_bytes + size + _BODY_START + _GRANULE - 1) >> 5]
            entry = words[quick]
            extent = entry & _OFFSET
            start, end = segment.heap_start, segment.backed_end
            if (
                extent & 3
                or not start <= extent < end
                or words[extent] >> _KIND_SHIFT != _IS_MESSAGE
            ):
                return False
            link = record + _HEAD_WORD
            if sent != taken:
                if tail & 3 or not start <= tail < end:
                    return False
                link = tail + L.MSG_NEXT
            plan: dict[int, int] = {}
            if p0 | p1 | p2 | p3:
                # Before the rest is prepared: whoever is rung needs longer to get here.
                wake(plan, record, p0 | p1 << 64 | p2 << 128 | p3 << 192)
            start = 8 * extent + _DATA_START
            head = _HEAD(0, deadline, now, counter, own_bytes << _NAME_SHIFT | size)
            if own_bytes:
                head += name.encode("ascii")
            if size < _COPIED_ONCE:
                memory[start : start + _HEAD_BYTES + own_bytes + size] = head + body
            else:
                body_start = start + _HEAD_BYTES + own_bytes
                memory[start:body_start] = head
                memory[body_start : body_start + size] = body
            rest = (entry & _COUNTS) - _ONE_QUICK
            if rest:
                rest |= words[extent + 1] & _OFFSET
            if not counter and not plan:
                segment.commit_four(
                    quick,
                    rest,
                    link,
                    extent,
                    record + _TAIL_WORD,
                    extent,
                    record + _SENT_WORD,
                    sent + 1,
                )
                return True
            if counter:
                if not plan:
                    segment.commit_six(
                        quick,
                        rest,
                        link,
                        extent,
                        record + _TAIL_WORD,
                        extent,
                        record + _SENT_WORD,
                        sent + 1,
                        counter + _SENT_WORD,
                        counted + 1,
                        counter + _SENT_WORD,  # once more: there are only five
                        counted + 1,
                    )
                    return True
                plan[counter + _SENT_WORD] = counted + 1
            plan[quick] = rest
            plan[link] = extent
            plan[record + _TAIL_WORD] = extent
            plan[record + _SENT_WORD] = sent + 1
            segment.commit(plan)
            return True
        except (IndexError, ValueError, struct.error):
            return False  # damaged numbers: the general path says which
        finally:
            try:
                _flock(segment.lock_fd, _UNLOCK)
            except (OSError, ValueError):
                segment.cannot_unlock()
    finally:
        try:
            guard.release()
        except RuntimeError:
            pass  # interrupted before it was had
        if segment.news:
            segment.tell()


def pop(
    segment: Segment,
    known: Known,
    name: bytes | None,
    now: int,
    pop_general: Callable[[int, int], None],
) -> tuple[str, bytes | memoryview] | None:
    """Take the head of a home and return its body; ``None`` if this is not the ordinary case.

    In front of the body its name, if any was asked for and it is not the home's own, else ``""``.
    A large body comes in memory of ``_memory/scratch``.

    Ordinary is also that nobody is parked on the home: whoever was has been rung.

    Args:
        name: the full name that the head must bear, ``b""`` for the home's own; ``None``: any.
        pop_general: ``pop_general(record, extent)`` takes a head that no quick list has room for.
    """
    record, ident = known
    guard = segment.guard
    if here[0] != segment.attached_by or guard._is_owned():
        return None
    try:
        guard.acquire()
        fd = segment.lock_fd
        if fd < 0:
            return None
        try:
            try:
                _flock(fd, _EXCLUSIVE)
            except OSError:
                segment.contend()
            words = segment.words
            if words[_LOG_N] or words[_EPOCH] != segment.epoch:
                return None
            memory = segment.memory
            ident_now, _, _, extent, _, sent, taken, p0, p1, p2, p3 = _RECORD(
                memory, 8 * record + _RECORD_START
            )
            if (
                ident_now != ident
                or sent == taken
                or extent & 3
                or not segment.heap_start <= extent < segment.backed_end
                or p0 | p1 | p2 | p3
            ):
                return None
            header, _, _, following, deadline, _, leaf, size = _MESSAGE(memory, 8 * extent)
            granules = header & _SIZE_MASK
            start = 8 * extent + _BODY_START
            borne = ""
            if name is None:
                # With a flag this is too long by far, and the size below too large.
                name = memory[start : start + (size >> _NAME_SHIFT & 0xFF)]
                borne = name.decode("ascii")
            if name:
                if size >> _NAME_SHIFT != len(name) or memory[start : start + len(name)] != name:
                    return None
                start += len(name)
                size &= 0xFFFFFFFF
            if (
                header >> _KIND_SHIFT != _IS_MESSAGE
                or deadline <= now
                # With another name or a flag in its upper half this word is far larger:
                or size > granules * _GRANULE - _BODY_START - len(name)
                or leaf & 3
                or (leaf and not segment.heap_start <= leaf < segment.backed_end)
            ):
                return None
            body: bytes | memoryview
            if size < _BORROWED_FROM:
                body = memory[start : start + size]
            else:
                body = borrow(size)
                body[:] = memoryview(memory)[start : start + size]
            quick = _QUICK_OF[granules] if granules <= _LARGEST_QUICK else 0
            entry = words[quick]
            if not quick or entry >= _QUICK_LIMIT[quick - _QUICK]:
                pop_general(record, extent)
                return borne, body
            taken += 1
            if leaf:
                segment.commit_six(
                    record + _TAKEN_WORD,
                    taken,
                    record + _HEAD_WORD,
                    following if taken != sent else 0,
                    extent + 1,
                    entry & _OFFSET,
                    quick,
                    (entry & _COUNTS) + _ONE_QUICK | extent,
                    leaf + _TAKEN_WORD,
                    words[leaf + _TAKEN_WORD] + 1,
                    leaf + _DRAINED_WORD,
                    words[leaf + _DRAINED_WORD] + 1,
                )
                return borne, body
            segment.commit_four(
                record + _TAKEN_WORD,
                taken,
                record + _HEAD_WORD,
                following if taken != sent else 0,
                extent + 1,
                entry & _OFFSET,
                quick,
                (entry & _COUNTS) + _ONE_QUICK | extent,
            )
            return borne, body
        except (IndexError, ValueError, struct.error):
            return None  # damaged numbers: the general path says which
        finally:
            try:
                _flock(segment.lock_fd, _UNLOCK)
            except (OSError, ValueError):
                segment.cannot_unlock()
    finally:
        try:
            guard.release()
        except RuntimeError:
            pass  # interrupted before it was had
        if segment.news:
            segment.tell()


def park(segment: Segment, known: Known, slot: int, token: int) -> bool:
    """Park a loop on an empty home; False if it has messages or this is not the ordinary case.

    Args:
        token: what ``CH_OWNER`` must hold already; 0: nothing.
    """
    record, ident = known
    guard = segment.guard
    if here[0] != segment.attached_by or guard._is_owned():
        return False
    try:
        guard.acquire()
        fd = segment.lock_fd
        if fd < 0:
            return False
        try:
            try:
                _flock(fd, _EXCLUSIVE)
            except OSError:
                segment.contend()
            words = segment.words
            if (
                words[_LOG_N]
                or words[_EPOCH] != segment.epoch
                or words[record + L.IDENT] != ident
                or words[record + _SENT_WORD] != words[record + _TAKEN_WORD]
                or words[record + L.CH_OWNER] != token
            ):
                return False
            word = record + L.CH_PARKED + (slot >> 6)
            mask = words[word]
            bit = 1 << (slot & 63)
            if not mask & bit:
                segment.commit({word: mask | bit})
            return True
        finally:
            try:
                _flock(segment.lock_fd, _UNLOCK)
            except (OSError, ValueError):
                segment.cannot_unlock()
    finally:
        try:
            guard.release()
        except RuntimeError:
            pass  # interrupted before it was had
        if segment.news:
            segment.tell()


def drain(
    segment: Segment,
    plan: dict[int, int],
    record: int,
    home: str,
    limit: int,
    now: int,
    wanted: Container[str] | None,
    holder: int,
) -> list[Popped]:
    """Plan the removal of up to ``limit`` ordinary messages from the head of a home.

    Called with the lock held. Stops before the first message that is not ordinary, and after a
    mebibyte.

    Args:
        wanted: names, or homes, of which the first message is returned to who asks for it;
            ``None``: all are.
        holder: the process that holds the others until they are read.
    """
    words = segment.words
    memory = segment.memory
    sent, taken = words[record + _SENT_WORD], words[record + _TAKEN_WORD]
    extent = words[record + _HEAD_WORD]
    first, end = segment.heap_start, segment.backed_end
    popped: list[Popped] = []
    held_until = 0
    room = BATCH_BYTES
    while sent != taken and len(popped) < limit and room > 0:
        if extent & 3 or not first <= extent < end:
            break
        header, _, _, following, deadline, _, leaf, lengths = _MESSAGE(memory, 8 * extent)
        granules = header & _SIZE_MASK
        name_bytes = lengths >> _NAME_SHIFT
        size = lengths & 0xFFFFFFFF
        if (
            header >> _KIND_SHIFT != _IS_MESSAGE
            or granules > _LARGEST_QUICK
            or deadline <= now
            or lengths >= _PLAIN
            or size + name_bytes > granules * _GRANULE - _BODY_START
            or leaf & 3
            or (leaf and not first <= leaf < end)
        ):
            break
        quick = _QUICK_OF[granules]
        entry = plan.get(quick)
        if entry is None:
            entry = words[quick]
        if not quick or entry >= _QUICK_LIMIT[quick - _QUICK]:
            break
        start = 8 * extent + _BODY_START
        name = memory[start : start + name_bytes].decode("ascii") if name_bytes else home
        start += name_bytes
        if leaf:
            word = leaf + _DRAINED_WORD
            drained = plan.get(word)
            if drained is None:
                drained = words[word]
            plan[word] = drained + 1
            if wanted is None or (not popped and (name in wanted or home in wanted)):
                word = leaf + _TAKEN_WORD
                plan[word] = plan.get(word, words[word]) + 1
                leaf = 0
            else:
                if words[leaf + L.LEAF_HOLDER] != holder and leaf + L.LEAF_HOLDER not in plan:
                    plan[leaf + L.LEAF_HOLDER] = holder  # and what another one held is void
                    plan[leaf + _TAKEN_WORD] = drained
                if deadline > held_until:
                    held_until = deadline
        popped.append(Popped(name, memory[start : start + size], leaf, 0, deadline))
        plan[extent + 1] = entry & _OFFSET
        plan[quick] = (entry & _COUNTS) + _ONE_QUICK | extent
        taken += 1
        room -= size
        extent = following
    if popped:
        plan[record + _TAKEN_WORD] = taken
        plan[record + _HEAD_WORD] = extent if taken != sent else 0
    if held_until > words[record + L.CH_HELD_UNTIL]:
        plan[record + L.CH_HELD_UNTIL] = held_until
    return popped


def open_envelope(segment: Segment, plan: dict[int, int], record: int, now: int) -> Popped | None:
    """Plan the removal of a group's envelope from the head of a home.

    Called with the lock held and nothing planned.

    Returns:
        The group as its name, the version that says whom it is for, and the body. ``None``, with
        nothing planned: the head is no envelope, or no ordinary one (expired, or not for all
        members), or the quick lists have no room for it and its body.
    """
    words = segment.words
    memory = segment.memory
    sent, taken = words[record + _SENT_WORD], words[record + _TAKEN_WORD]
    extent = words[record + _HEAD_WORD]
    first, end = segment.heap_start, segment.backed_end
    if sent == taken or extent & 3 or not first <= extent < end:
        return None
    header, _, _, following, deadline, _, leaf, lengths = _MESSAGE(memory, 8 * extent)
    name_bytes = lengths >> _NAME_SHIFT & 0xFF
    size = lengths & 0xFFFFFFFF
    granules = header & _SIZE_MASK
    if (
        lengths >> L.MSG_FLAG_SHIFT != L.MSG_FLAG_GROUP
        or header >> _KIND_SHIFT != _IS_MESSAGE
        or deadline <= now
        or name_bytes + 16 > granules * _GRANULE - _BODY_START
        or granules > _LARGEST_QUICK
        or leaf & 3
        or not first <= leaf < end
    ):
        return None
    stored, version = words[extent + L.MSG_DATA], words[extent + L.MSG_DATA + 1]
    if stored & 3 or not first <= stored < end:
        return None
    body_header, references = words[stored], words[stored + L.BODY_REFS]
    body_granules = body_header & _SIZE_MASK
    if (
        body_header >> _KIND_SHIFT != L.EXTENT_BODY
        or words[stored + L.BODY_BYTES] != size
        or size > body_granules * _GRANULE - 8 * L.BODY_DATA
        or body_granules > _LARGEST_QUICK
    ):
        return None
    quick, body_quick = _QUICK_OF[granules], _QUICK_OF[body_granules]
    if not quick or not body_quick:
        return None
    entry, body_entry = words[quick], words[body_quick]
    if (  # room for both, should they go to the same list
        entry + _ONE_QUICK >= _QUICK_LIMIT[quick - _QUICK]
        or body_entry >= _QUICK_LIMIT[body_quick - _QUICK]
    ):
        return None
    plan[record + _TAKEN_WORD] = taken + 1
    plan[record + _HEAD_WORD] = following if taken + 1 != sent else 0
    plan[leaf + _TAKEN_WORD] = words[leaf + _TAKEN_WORD] + 1
    plan[leaf + _DRAINED_WORD] = words[leaf + _DRAINED_WORD] + 1
    if references > 1:
        plan[stored + L.BODY_REFS] = references - 1
    else:
        plan[stored + 1] = body_entry & _OFFSET
        plan[body_quick] = body_entry = (body_entry & _COUNTS) + _ONE_QUICK | stored
        if quick == body_quick:
            entry = body_entry
    plan[extent + 1] = entry & _OFFSET
    plan[quick] = (entry & _COUNTS) + _ONE_QUICK | extent
    start = 8 * extent + _BODY_START + 16
    name = memory[start : start + name_bytes].decode("ascii")
    start = 8 * (stored + L.BODY_DATA)
    return Popped(name, memory[start : start + size], 0, version, deadline)
