"""Every offset, size, magic and version of the shared bytes. Nobody else knows any.

A segment is an array of 64-bit little-endian words; every number here is a *word index*
unless its name says bytes. Both segments (messages, groups) have the same frame:

======== ===== ==================== ====================================================
word     words field                written
======== ===== ==================== ====================================================
0        1     MAGIC                once, at creation
1        1     VERSION              once, at creation
2        1     READY                once, *last* at creation: SYNC POINT "ready"
3        1     SIZE                 once: size of the whole segment, bytes
4        1     KIND                 once: messages or groups
5        1     EPOCH                by a flush; whoever cached an offset must look again
6        1     LOG_N                the commit point: entries in the log (| LOG_RESET), 0 = idle
7        1     (reserved)
8        1     HEAP_END             end of the memory that is really backed; sentinel there
9        1     CREATED              once: wall clock at creation, ns
10       4     BITMAP               which size classes have free extents, bit per class
14       1     COUNT_COPIES         places that group messages were queued at, beyond one each
15       1     (reserved)
16       8     counters             what records no longer alive have counted; see below
24       1     SEQUENCE             groups: version of the latest membership change
25       7     (reserved)
32       224   CLASSES              first free extent of each size class
256      96   QUICK                short lists of free extents: count << 48 | first
352      1024  LOG                  redo log: pairs of a word's index and its new value
1376     1280  SLOTS                256 slots of 5 words: event loops that receive
2656     2**n  BUCKETS              hash table: first record of each chain
...            heap                 extents, up to HEAP_END
======== ===== ==================== ====================================================

All words but READY are read and written under the segment's lock; a word that is not in
memory which nothing refers to is only written by ``Segment.commit``.

An *extent* is a run of 32-byte granules that begins with one header word
``kind << 56 | previous extent's granules << 28 | own granules``. Its words 1 and 2 are
links of the free lists and are never used for anything else, so that filling a fresh
extent (from word 3 on) before the commit can never damage a free list.

Words of an extent, by kind:

======== =================== ================== =================== ================
word     CHANNEL             MESSAGE            GROUP / HOME        MEMBER
======== =================== ================== =================== ================
3        HASH_NEXT           MSG_NEXT           HASH_NEXT           HASH_NEXT
4        IDENT (0 = gone)    MSG_DEADLINE, ns   IDENT               IDENT
5        OWNER               MSG_SENT, ns       OWNER               OWNER
6        KEY crc, length     MSG_LEAF           KEY                 KEY
7        CH_HEAD             MSG_LENGTHS        G_HOMES / H_NEXT    M_NEXT
8        CH_TAIL (leaf: see  MSG_DATA ...       G_VERSION / H_PREV  M_PREV
         LEAF_DRAINED)
9        CH_SENT                                G_COUNT / H_FIRST   M_DEADLINE, ns
10       CH_TAKEN                               key... / H_COUNT    M_JOINED
11       CH_PARKED (4)                          / H_VERSION         M_LEFT
12       ...                                    / key ...           key ...
15       CH_FULL
16       CH_EXPIRED
17       CH_MARK
18       CH_OWNER (leaf: see
         LEAF_HOLDER)
19       CH_LEAVES
20       CH_HELD_UNTIL, ns
21       key ...
======== =================== ================== =================== ================

A channel record is a queue (of an ordinary channel, or of a process-specific home) or a *leaf*,
which counts what is for one full name below a home. Of a queue ``CH_SENT - CH_TAKEN`` is what is
queued. Of a leaf that is what counts against the name's capacity, and it lies at two places::

    CH_SENT >= LEAF_DRAINED >= CH_TAKEN
           queued          held

Queued is what its home's queue has for the name. Held is what was drained from it into the inbox
of the process LEAF_HOLDER, and has not been read yet. It counts until that process is proven dead,
and until ``CH_HELD_UNTIL`` at most, when all that was ever drained from the home has expired. Then
whoever meets a full name writes it off (CH_TAKEN becomes LEAF_DRAINED).

A BODY (a group message's content, stored once) has BODY_REFS and BODY_BYTES, then bytes.

Any change of this file bumps ``LAYOUT_VERSION``: processes of two versions never share.
"""

from __future__ import annotations

MAGIC = int.from_bytes(b"asgi_ipc", "little")
LAYOUT_VERSION = 2_003
READY_MARK = int.from_bytes(b"is ready", "little")

KIND_MESSAGES = 1
KIND_GROUPS = 2

# -- frame -------------------------------------------------------------------------------

MAGIC_WORD = 0
VERSION_WORD = 1
READY_WORD = 2
SIZE_WORD = 3
KIND_WORD = 4
EPOCH = 5
LOG_N = 6
LOG_RESET = 1 << 32  # flag in LOG_N: empty heap and table, then apply the entries
HEAP_END = 8
CREATED = 9
BITMAP = 10
BITMAP_WORDS = 4
COUNT_COPIES = 14

COUNT_SENT = 16  # of channel records that are gone; the living ones count for themselves
COUNT_RECEIVED = 17
COUNT_EXPIRED = 18
COUNT_FULL = 19
COUNT_MEMORY_FULL = 20
COUNT_DROPPED = 21  # group messages not delivered to a member whose channel was full
COUNT_FLUSHED = 22
COUNT_SHARED = 23  # members that group messages were for, beyond one a place
SEQUENCE = 24
FIRST_MUTABLE = EPOCH

CLASSES = 32
CLASS_COUNT = 216
QUICK = 256
QUICK_CLASSES = 96

LOG = 352
LOG_CAPACITY = 512  # pairs

SLOTS = LOG + 2 * LOG_CAPACITY
SLOT_COUNT = 256
SLOT_WORDS = 5
SLOT_TOKEN = 0  # random << 8 | slot: the owning loop, names its socket; 0 = free
SLOT_PID = 1
SLOT_HINT = 2  # the one channel record it was rung for since it last looked; HINT_MANY
SLOT_SINCE = 3  # wall clock, ns
SLOT_PROCESS = 4  # token of its process, see `_process/witness`
HINT_MANY = 1

BUCKETS = SLOTS + SLOT_COUNT * SLOT_WORDS

# -- extents -----------------------------------------------------------------------------

GRANULE_WORDS = 4
GRANULE_BYTES = 8 * GRANULE_WORDS
SIZE_MASK = (1 << 28) - 1
PREVIOUS_SHIFT = 28
KIND_SHIFT = 56
OFFSET_MASK = (1 << 48) - 1
COUNT_SHIFT = 48

EXTENT_FREE = 1
EXTENT_MESSAGE = 2
EXTENT_CHANNEL = 3
EXTENT_BODY = 4
EXTENT_GROUP = 5
EXTENT_HOME = 6
EXTENT_MEMBER = 7
EXTENT_END = 15

FREE_NEXT = 1
FREE_PREVIOUS = 2
DATA = 3  # first word an owner may use

# -- records in the hash table -----------------------------------------------------------

HASH_NEXT = 3
IDENT = 4
OWNER = 5
KEY = 6

CH_HEAD = 7
CH_TAIL = 8
LEAF_DRAINED = 8  # of a leaf: how many messages have left its home's queue
CH_SENT = 9
CH_TAKEN = 10
CH_PARKED = 11
PARKED_WORDS = SLOT_COUNT // 64
CH_FULL = 15
CH_EXPIRED = 16
CH_MARK = 17  # idle check: seconds << 32 | low half of CH_SENT when last looked at
CH_OWNER = (
    18  # token of the process that receives for a process-specific home, see `_process/witness`
)
LEAF_HOLDER = 18  # of a leaf: the process whose inbox has what was drained and not read yet
CH_LEAVES = 19  # leaf records below a process-specific home
CH_HELD_UNTIL = 20  # of a home: when the last of what was drained from it expires, ns
CH_KEY = 21

G_HOMES = 7
G_VERSION = 8
G_COUNT = 9
G_KEY = 10

H_NEXT = 7
H_PREVIOUS = 8
H_FIRST = 9
H_COUNT = 10
H_VERSION = 11
H_KEY = 12

M_NEXT = 7
M_PREVIOUS = 8
M_DEADLINE = 9
M_JOINED = 10
M_LEFT = 11
M_KEY = 12

KEY_WORD = {
    EXTENT_CHANNEL: CH_KEY,
    EXTENT_GROUP: G_KEY,
    EXTENT_HOME: H_KEY,
    EXTENT_MEMBER: M_KEY,
}

MSG_NEXT = 3
MSG_DEADLINE = 4
MSG_SENT = 5
MSG_LEAF = 6
MSG_LENGTHS = 7  # excluded bytes << 48 | flags << 40 | name bytes << 32 | body bytes
MSG_NAME_SHIFT = 32
MSG_FLAG_SHIFT = 40
MSG_EXCLUDED_SHIFT = 48
MSG_DATA = 8
MSG_FLAG_GROUP = 1  # data = BODY extent, group version, the group's name, who is excluded
MSG_FLAG_SHARED = 2  # data = BODY extent, 0, then the channel's name

BODY_REFS = 3
BODY_BYTES = 4
BODY_DATA = 5


def bucket_count(size_bytes: int) -> int:
    """Number of hash chains in a segment: a power of two, one for about 4 KiB of it."""
    wanted = max(64, min(size_bytes // 4096, 65536))
    return 1 << (wanted.bit_length() - 1)


def heap_start(size_bytes: int) -> int:
    """First word of the heap of a segment of ``size_bytes``."""
    return BUCKETS + bucket_count(size_bytes)


MIN_SEGMENT_BYTES = 64 * 1024
MAX_SEGMENT_BYTES = 7 << 30  # an extent's size must round to a class and fit its header


def size_class(granules: int) -> int:
    """Class of the largest size that is not above ``granules``: exact up to 31, then 8 a doubling.

    An extent of ``g`` granules waits in the list of ``size_class(g)``.
    """
    if granules < 32:
        return granules
    shift = granules.bit_length() - 4
    return 32 + (shift - 2) * 8 + ((granules >> shift) & 7)


def round_to_class(granules: int) -> int:
    """``granules`` rounded up so that *every* extent of its class is large enough."""
    if granules < 32:
        return granules
    step = 1 << (granules.bit_length() - 4)
    return (granules + step - 1) & -step


def class_granules(index: int) -> int:
    """Return the smallest size of a class: the one that its quick list holds."""
    if index < 32:
        return index
    doubling, eighth = divmod(index - 32, 8)
    return (8 + eighth) << (doubling + 2)


def quick_limit(index: int) -> int:
    """How many extents the quick list of a class may hold: 1 MiB of them, 4 to 256."""
    return min(256, 32768 // max(1, class_granules(index)))


_SIZES = [class_granules(index) for index in range(QUICK_CLASSES)]
LARGEST_QUICK = _SIZES[-1]
"""Granules of the largest extents that have a quick list: larger ones are always merged."""

QUICK_OF = [0] * (LARGEST_QUICK + 1)
"""The quick list for extents of so many granules; 0: none, they are no class's size."""
QUICK_FOR = [0]
"""The quick list whose extents are large enough for so many granules."""

for _index in range(1, QUICK_CLASSES):
    QUICK_OF[_SIZES[_index]] = QUICK + _index
    QUICK_FOR += [QUICK + _index] * (_SIZES[_index] - _SIZES[_index - 1])


# The table above, checked when the package is imported.
assert CLASSES + CLASS_COUNT <= QUICK and QUICK + QUICK_CLASSES <= LOG
assert SLOTS == 1376 and BUCKETS == 2656 and BUCKETS % GRANULE_WORDS == 0
assert SLOT_COUNT + 16 <= LOG_CAPACITY  # a flush writes one word a slot, and the counters
assert MAX_SEGMENT_BYTES < 1 << 33  # sizes of bodies and offsets fit their halves of a word
assert CLASS_COUNT <= 64 * BITMAP_WORDS
assert size_class(SIZE_MASK) < CLASS_COUNT
assert CH_PARKED + PARKED_WORDS == CH_FULL
assert [quick_limit(size_class(g)) for g in (1, 128, 192, 512, 7680)] == [256, 256, 170, 64, 4]
assert all(size_class(granules) == index for index, granules in enumerate(_SIZES))
assert len(QUICK_FOR) == LARGEST_QUICK + 1
assert size_class(31) + 1 == size_class(32) and size_class(63) + 1 == size_class(64)
