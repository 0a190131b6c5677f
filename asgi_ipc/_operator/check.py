"""An independent look at a whole segment: is everything in it as ``_shm/layout`` says?

* Shares no code with the heap, the table, the queues and the groups that it checks: it
  knows the layout only, and walks every list and every extent itself.
* Only reads. Takes every number for damaged until it has been looked at: it never raises
  for what it finds, and ends: each walk is bounded by the number of extents.
* Must be called inside ``Segment.transact``, which replays the log first. Then, above all,
  every extent is free, in a quick list, or reached from a bucket: in exactly one way.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from .._shm import layout as L
from .._shm.segment import Segment

__all__ = ["check_groups", "check_messages"]

PROBLEM_LIMIT = 100  # one bad header can make a thousand extents look bad
_NAME = re.compile(rb"[a-zA-Z0-9\-_.]+([?!][a-zA-Z0-9\-_.]*)?\Z")
_NAME_LIMIT = 99
_KIND_NAMES = ("", "free extent", "message", "channel", "body", "group", "home", "member")
_LEAST_WORDS = (0, L.DATA, L.MSG_DATA, L.CH_KEY, L.BODY_DATA, L.G_KEY, L.H_KEY, L.M_KEY)


def check_messages(segment: Segment) -> list[str]:
    """Return what is wrong with a messages segment, in plain words; empty when all is well."""
    kinds = (L.EXTENT_MESSAGE, L.EXTENT_CHANNEL, L.EXTENT_BODY)
    return _Look(segment).run(L.KIND_MESSAGES, kinds, _queues)


def check_groups(segment: Segment) -> list[str]:
    """Return what is wrong with a groups segment, in plain words; empty when all is well."""
    kinds = (L.EXTENT_GROUP, L.EXTENT_HOME, L.EXTENT_MEMBER)
    return _Look(segment).run(L.KIND_GROUPS, kinds, _groups)


class _Record(NamedTuple):
    word: int
    kind: int
    owner: int
    name: str

    def __str__(self) -> str:
        return f"{_KIND_NAMES[self.kind]} {self.name!r}"


class _Enough(Exception):
    """``PROBLEM_LIMIT`` problems were found."""


class _Look:
    """What one check knows so far."""

    def __init__(self, segment: Segment) -> None:
        self.words = segment.words
        self.memory = segment.memory
        self.size_bytes = segment.size_bytes
        self.heap_start = L.heap_start(self.size_bytes)
        self.problems: list[str] = []
        self.extents: dict[int, int] = {}  # every extent and its bytes, header included
        self.held: dict[int, str] = {}  # every extent that was met, and where
        self.records: dict[int, _Record] = {}
        self.keys: dict[tuple[int, int, str, int], int] = {}
        self.leaves: Counter[int] = Counter()  # queued messages that a leaf counts
        self.bodies: Counter[int] = Counter()  # queued messages that share a body

    def run(self, kind: int, kinds: tuple[int, ...], rest: Callable[[_Look], None]) -> list[str]:
        """Check everything; ``rest`` is what the two kinds of segment do not share."""
        try:
            self._frame(kind)
            # What follows could only repeat what is wrong with the tiling.
            if not self.problems:
                self._tiling(kinds)
            if not self.problems:
                self._free_lists()
                self._quick_lists()
                self._chains(kinds)
                rest(self)
                for extent in self.extents.keys() - self.held.keys():
                    kind = self.words[extent] >> L.KIND_SHIFT
                    size_bytes = self.extents[extent]
                    self.say(f"lost: a {_KIND_NAMES[kind]} of {size_bytes} bytes at word {extent}")
        except _Enough:
            self.problems.append("... and more")
        return self.problems

    def say(self, problem: str) -> None:
        if len(self.problems) >= PROBLEM_LIMIT:
            raise _Enough
        self.problems.append(problem)

    def meet(self, extent: int, kind: int, where: str) -> bool:
        """Account for an extent; whether it is one of that kind, met for the first time."""
        if extent not in self.extents:
            self.say(f"{where} leads to word {extent}, where no extent begins")
        elif self.words[extent] >> L.KIND_SHIFT != kind:
            found = _KIND_NAMES[self.words[extent] >> L.KIND_SHIFT]
            self.say(f"{where} leads to a {found} at word {extent}, not to a {_KIND_NAMES[kind]}")
        elif extent in self.held:
            self.say(f"the extent at word {extent} is in {where} and in {self.held[extent]}")
        else:
            self.held[extent] = where
            return True
        return False

    # -- the frame and the heap ----------------------------------------------------------

    def _frame(self, kind: int) -> None:
        words = self.words
        for what, word, wanted in (
            ("magic", L.MAGIC_WORD, L.MAGIC),
            ("layout version", L.VERSION_WORD, L.LAYOUT_VERSION),
            ("ready mark", L.READY_WORD, L.READY_MARK),
            ("size", L.SIZE_WORD, self.size_bytes),
            ("kind", L.KIND_WORD, kind),
            ("number of log entries", L.LOG_N, 0),
        ):
            if words[word] != wanted:
                self.say(f"the {what} is {words[word]:#x}, not {wanted:#x}")
        last = (self.size_bytes // 8 - L.GRANULE_WORDS) & -L.GRANULE_WORDS
        end = words[L.HEAP_END]
        if not self.heap_start <= end <= last or end % L.GRANULE_WORDS:
            self.say(f"the heap, from word {self.heap_start} to {last}, ends at word {end}")
        slots = words[L.SLOTS : L.BUCKETS].tolist()
        for slot, token in enumerate(slots[L.SLOT_TOKEN :: L.SLOT_WORDS]):
            if token and (kind == L.KIND_GROUPS or token & (L.SLOT_COUNT - 1) != slot):
                self.say(f"slot {slot} has the token {token:#x}")
            if token and not slots[L.SLOT_WORDS * slot + L.SLOT_PROCESS]:
                self.say(f"slot {slot} belongs to no process")
        for slot, hint in enumerate(slots[L.SLOT_HINT :: L.SLOT_WORDS]):  # of one gone, perhaps
            if hint > L.HINT_MANY and (hint % L.GRANULE_WORDS or not self.heap_start <= hint < end):
                self.say(f"slot {slot} was rung for a record at word {hint}")

    def _tiling(self, kinds: tuple[int, ...]) -> None:
        words, end = self.words, self.words[L.HEAP_END]
        extent, before, free_before = self.heap_start, 0, False
        while extent < end:
            header = words[extent]
            kind, granules = header >> L.KIND_SHIFT, header & L.SIZE_MASK
            if header >> L.PREVIOUS_SHIFT & L.SIZE_MASK != before:
                self.say(f"the extent at word {extent} does not know the {before} granules before")
            if kind != L.EXTENT_FREE and kind not in kinds:
                self.say(f"the extent at word {extent} is of kind {kind}")
                return
            if not _LEAST_WORDS[kind] <= L.GRANULE_WORDS * granules <= end - extent:
                self.say(f"the extent at word {extent} has {granules} granules")
                return
            if free_before and kind == L.EXTENT_FREE:
                self.say(f"the free extent at word {extent} is not merged with the one before")
            self.extents[extent] = granules * L.GRANULE_BYTES
            free_before = kind == L.EXTENT_FREE
            before = granules
            extent += L.GRANULE_WORDS * granules
        sentinel = L.EXTENT_END << L.KIND_SHIFT | before << L.PREVIOUS_SHIFT
        if words[end] != sentinel:
            self.say(f"the sentinel at word {end} is {words[end]:#x}, not {sentinel:#x}")

    def _free_lists(self) -> None:
        words = self.words
        firsts = words[L.CLASSES : L.CLASSES + L.CLASS_COUNT].tolist()
        marked = int.from_bytes(
            self.memory[8 * L.BITMAP : 8 * (L.BITMAP + L.BITMAP_WORDS)], "little"
        )
        if marked != sum(1 << index for index, first in enumerate(firsts) if first):
            self.say(f"the bitmap {marked:#x} does not say which free lists are empty")
        for index, first in enumerate(firsts):
            where = f"free list {index}" if first else ""
            extent, before = first, 0
            while extent and self.meet(extent, L.EXTENT_FREE, where):
                if L.size_class(self.extents[extent] // L.GRANULE_BYTES) != index:
                    self.say(f"{self.extents[extent]} bytes at word {extent} are in {where}")
                if words[extent + L.FREE_PREVIOUS] != before:
                    self.say(f"the free extent at word {extent} has a wrong link back")
                extent, before = words[extent + L.FREE_NEXT], extent

    def _quick_lists(self) -> None:
        words = self.words
        for index in range(L.QUICK_CLASSES):
            entry = words[L.QUICK + index]
            if not entry:
                continue
            count = entry >> L.COUNT_SHIFT
            where = f"quick list {index}"
            if not 0 < count <= L.quick_limit(index):
                self.say(f"{where} says it holds {count} extents")
                continue
            extent = entry & L.OFFSET_MASK
            for _ in range(count):
                kind = words[extent] >> L.KIND_SHIFT if extent in self.extents else 0
                if kind == L.EXTENT_FREE:
                    self.say(f"{where} holds the free extent at word {extent}")
                    break
                if not self.meet(extent, kind, where):
                    break
                if self.extents[extent] != L.class_granules(index) * L.GRANULE_BYTES:
                    self.say(f"{self.extents[extent]} bytes at word {extent} are in {where}")
                extent = words[extent + L.FREE_NEXT] & L.OFFSET_MASK

    # -- the table -----------------------------------------------------------------------

    def _chains(self, kinds: tuple[int, ...]) -> None:
        for bucket, extent in enumerate(self.words[L.BUCKETS : self.heap_start].tolist()):
            where = f"the chain of bucket {bucket}" if extent else ""
            while extent:
                kind = self.words[extent] >> L.KIND_SHIFT if extent in self.extents else 0
                if extent in self.extents and (kind not in kinds or kind not in L.KEY_WORD):
                    self.say(f"{where} holds a {_KIND_NAMES[kind]} at word {extent}")
                    break
                if not self.meet(extent, kind, where):
                    break
                self._record(extent, kind, bucket)
                extent = self.words[extent + L.HASH_NEXT]

    def _record(self, extent: int, kind: int, bucket: int) -> None:
        words = self.words
        owner, key = words[extent + L.OWNER], words[extent + L.KEY]
        length, start = key & 0xFFFFFFFF, 8 * (extent + L.KEY_WORD[kind])
        name = b""
        if length <= _NAME_LIMIT and 8 * L.KEY_WORD[kind] + length <= self.extents[extent]:
            name = bytes(self.memory[start : start + length])
        if not _NAME.match(name):
            self.say(f"the {_KIND_NAMES[kind]} at word {extent} has the name {name!r}")
        record = _Record(extent, kind, owner, name.decode("ascii", "replace"))
        self.records[extent] = record
        # A member that has come back stands beside its own tombstone.
        left = words[extent + L.M_LEFT] if kind == L.EXTENT_MEMBER else 0
        first = self.keys.setdefault((*record[1:], left), extent)
        if first != extent:
            self.say(f"there are two records of {record}, at words {first} and {extent}")
        if key >> 32 != zlib.crc32(name, owner & 0xFFFFFFFF):
            self.say(f"the key of {record} does not fit its name and owner")
        if key >> 32 & (self.heap_start - L.BUCKETS - 1) != bucket:
            self.say(f"{record} is in the chain of bucket {bucket}, where its key does not belong")
        if not words[extent + L.IDENT]:
            self.say(f"{record} has no ident, as if it were gone")


# -- the messages segment ----------------------------------------------------------------


def _queues(look: _Look) -> None:
    words = look.words
    channels = list(look.records.values())
    leaves_of = Counter(record.owner for record in channels if record.owner)
    for record in channels:
        sent, taken = words[record.word + L.CH_SENT], words[record.word + L.CH_TAKEN]
        if taken > sent or words[record.word + L.CH_EXPIRED] > taken:
            look.say(f"{record} counts {sent} sent and {taken} taken, or more expired than that")
        elif not record.owner:
            _queue(look, record, sent - taken)
        parked = words[record.word + L.CH_PARKED : record.word + L.CH_FULL].tolist()
        for slot in range(L.SLOT_COUNT) if any(parked) else ():
            owned = words[L.SLOTS + L.SLOT_WORDS * slot + L.SLOT_TOKEN]
            if parked[slot >> 6] >> (slot & 63) & 1 and (record.owner or not owned):
                look.say(f"slot {slot}, which nobody owns or may park there, is parked on {record}")
        if record.owner or record.name[-1:] != "!":
            if not record.owner and words[record.word + L.CH_OWNER]:
                look.say(f"{record} belongs to a process")
            if words[record.word + L.CH_HELD_UNTIL]:
                look.say(f"{record} has had something drained below it")
        if words[record.word + L.CH_LEAVES] != leaves_of[record.word]:
            look.say(f"{record} miscounts its {leaves_of[record.word]} leaves")
    for record in channels:
        if record.owner:
            _leaf(look, record)
    for body, count in look.bodies.items():
        if words[body + L.BODY_REFS] != count:
            look.say(f"the body at word {body} miscounts the {count} messages that have it")


def _queue(look: _Look, home: _Record, depth: int) -> None:
    if "!" in home.name[:-1]:
        look.say(f"{home} is a queue, and process-specific queues end in '!'")
    if not depth:
        return
    message = look.words[home.word + L.CH_HEAD]
    for position in range(1, depth + 1):
        if not look.meet(message, L.EXTENT_MESSAGE, f"{home}, message {position} of {depth}"):
            return
        _message(look, home, message)
        if position == depth and look.words[home.word + L.CH_TAIL] != message:
            look.say(f"{home} ends at word {message}, and its tail says otherwise")
        message = look.words[message + L.MSG_NEXT]


def _message(look: _Look, home: _Record, message: int) -> None:
    words = look.words
    what = f"the message at word {message} in {home}"
    lengths, leaf = words[message + L.MSG_LENGTHS], words[message + L.MSG_LEAF]
    deadline = words[message + L.MSG_DEADLINE]
    flags, excluded_bytes = lengths >> L.MSG_FLAG_SHIFT & 0xFF, lengths >> L.MSG_EXCLUDED_SHIFT
    name_bytes, body_bytes = lengths >> L.MSG_NAME_SHIFT & 0xFF, lengths & 0xFFFFFFFF
    shared_bytes = 16 if flags else 0
    held_bytes = shared_bytes + name_bytes + (excluded_bytes if flags else body_bytes)
    if flags > L.MSG_FLAG_SHARED or 8 * L.MSG_DATA + held_bytes > look.extents[message]:
        look.say(f"{what} has flags {flags}, {name_bytes} bytes of name, {body_bytes} of body")
        return
    start = 8 * (message + L.MSG_DATA) + shared_bytes
    name = bytes(look.memory[start : start + name_bytes])
    text = name.decode("ascii", "replace")
    below = home.name[-1:] == "!" and (flags == L.MSG_FLAG_GROUP or text.startswith(home.name))
    if name_bytes > _NAME_LIMIT or (name and not (_NAME.match(name) and below)):
        look.say(f"{what} bears the name {text!r}")
    separator = look.memory[start + name_bytes : start + name_bytes + 1]
    if excluded_bytes and (flags != L.MSG_FLAG_GROUP or separator != b"\0"):
        look.say(f"{what} has {excluded_bytes} bytes of excluded names after {separator!r}")
    if deadline < words[message + L.MSG_SENT]:
        look.say(f"{what} had expired when it was sent")
    if flags == L.MSG_FLAG_GROUP and not (leaf and name):
        look.say(f"{what} is a group's envelope without its group or its leaf")
    if flags:
        version = words[message + L.MSG_DATA + 1]
        if (flags == L.MSG_FLAG_GROUP) != bool(version):
            look.say(f"{what} has flags {flags} and group version {version}")
        _body(look, what, words[message + L.MSG_DATA], body_bytes)
    if leaf:
        record = look.records.get(leaf)
        if record is None or record.owner != home.word or record.name != text:
            look.say(f"{what} is counted by word {leaf}, which is {record}")
        look.leaves[leaf] += 1


def _body(look: _Look, what: str, body: int, body_bytes: int) -> None:
    # Several messages refer to one body; it is accounted for by the first.
    if body not in look.bodies and not look.meet(body, L.EXTENT_BODY, what):
        return
    look.bodies[body] += 1
    stored = look.words[body + L.BODY_BYTES]
    if stored != body_bytes or 8 * L.BODY_DATA + stored > look.extents[body]:
        look.say(f"{what} has {body_bytes} bytes, and the body it refers to {stored}")


def _leaf(look: _Look, leaf: _Record) -> None:
    words = look.words
    home = look.records.get(leaf.owner)
    if home is None or home.owner or home.name[-1:] != "!":
        look.say(f"{leaf} is a leaf below word {leaf.owner}, which is {home}")
    drained = words[leaf.word + L.LEAF_DRAINED]
    queued = words[leaf.word + L.CH_SENT] - drained
    if queued != look.leaves[leaf.word]:
        look.say(f"{leaf} counts {queued} messages of {look.leaves[leaf.word]} that are queued")
    held = drained - words[leaf.word + L.CH_TAKEN]
    if held < 0 or (held and "!" not in leaf.name):
        look.say(f"{leaf} counts {held} messages in an inbox")
    elif held and home is not None and not words[home.word + L.CH_HELD_UNTIL]:
        look.say(f"{leaf} counts {held} messages in an inbox, and {home} says there are none")


# -- the groups segment ------------------------------------------------------------------


def _groups(look: _Look) -> None:
    words = look.words
    sequence = words[L.SEQUENCE]
    listed: set[int] = set()
    for group in look.records.values():
        if group.kind != L.EXTENT_GROUP:
            continue
        homes = _linked(look, group, L.G_HOMES, L.H_NEXT, L.EXTENT_HOME)
        listed.update(homes)
        version = words[group.word + L.G_VERSION]
        living = 0
        for home in homes:
            home_version = words[home + L.H_VERSION]
            members = _linked(look, look.records[home], L.H_FIRST, L.M_NEXT, L.EXTENT_MEMBER)
            listed.update(members)
            for member in members:
                joined, left = words[member + L.M_JOINED], words[member + L.M_LEFT]
                if not 0 < max(joined, left) <= home_version or (left and left <= joined):
                    look.say(f"{look.records[member]} joined at {joined} and left at {left}")
            count = sum(not words[member + L.M_LEFT] for member in members)
            if words[home + L.H_COUNT] != count:
                look.say(f"{look.records[home]} of {group} miscounts its {count} members")
            if not home_version <= version <= sequence:
                look.say(f"{group} has versions {home_version}, {version}, {sequence} out of order")
            living += count
        if words[group.word + L.G_COUNT] != living:
            look.say(f"{group} miscounts its {living} members")
        if group.owner:
            look.say(f"{group} belongs to word {group.owner}")
    for record in look.records.values():
        if record.kind != L.EXTENT_GROUP and record.word not in listed:
            look.say(f"{record} is in no list of its owner at word {record.owner}")


def _linked(look: _Look, owner: _Record, first: int, link: int, kind: int) -> list[int]:
    """Return the records of a list that is linked both ways; it must not be empty."""
    found: dict[int, None] = {}
    word, before = look.words[owner.word + first], 0
    while word:
        record = look.records.get(word)
        if record is None or record.kind != kind or record.owner != owner.word or word in found:
            look.say(f"the list of {owner} leads to word {word}, which is {record}")
            break
        if look.words[word + link + 1] != before:
            look.say(f"{record} in the list of {owner} has a wrong link back")
        found[word] = None
        word, before = look.words[word + link], word
    if not found:
        look.say(f"{owner} has nobody in its list")
    return list(found)
