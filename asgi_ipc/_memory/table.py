"""The hash table of a segment: named records, found by name and swept by a clock hand.

A record's key is its name and its *owner* (another record, or 0). Processes remember
where a record lies and verify it by its ``IDENT``: a word that no record had before (random, or
from a sequence), and that becomes 0 when the record goes, so a stale memory never passes for
a living record.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

from .._shm import layout as L
from .._shm.segment import Plan, Segment, damaged
from ..exceptions import SegmentCorrupt
from .heap import Heap

__all__ = ["Table", "new_ident"]

_PREFIX = struct.Struct("<4Q")
_CHAIN_LIMIT = 1 << 20  # a chain this long is a loop, not a chain


class Table:
    """Records of one segment."""

    def __init__(self, segment: Segment, heap: Heap) -> None:
        self._segment = segment
        self._heap = heap

    def find(self, plan: Plan, kind: int, key: bytes, owner: int = 0) -> int:
        """Return the record with this key, or 0."""
        record = plan[self._bucket(key, owner)]
        wanted = _key_word(key, owner)
        offset = 8 * L.KEY_WORD[kind]
        memory = self._segment.memory
        for _ in range(_CHAIN_LIMIT):
            if not record:
                return 0
            self._heap.check(record)
            if (
                plan[record + L.KEY] == wanted
                and plan[record + L.OWNER] == owner
                and plan[record] >> L.KIND_SHIFT == kind
            ):
                start = 8 * record + offset
                if memory[start : start + len(key)] == key:
                    return record
            record = plan[record + L.HASH_NEXT]
        raise self._loop()

    def create(
        self,
        plan: Plan,
        kind: int,
        key: bytes,
        owner: int,
        fields: tuple[int, ...],
        ident: int = 0,
    ) -> int:
        """Plan a new record and return it.

        Args:
            fields: the words between ``KEY`` and the key's text.
            ident: odd, and never used before for a record of this segment; 0: a random one.
        """
        offset = L.KEY_WORD[kind]
        record = self._heap.allocate(plan, 8 * offset + len(key), kind)
        bucket = self._bucket(key, owner)
        # Nothing refers to this memory before the bucket's word is committed.
        memory = self._segment.memory
        start = 8 * record
        ident = ident or new_ident()
        memory[start + 8 * L.DATA : start + 8 * (L.KEY + 1)] = _PREFIX.pack(
            plan[bucket], ident, owner, _key_word(key, owner)
        )
        body = struct.pack(f"<{len(fields)}Q", *fields) + key
        memory[start + 8 * (L.KEY + 1) : start + 8 * (L.KEY + 1) + len(body)] = body
        plan[bucket] = record
        return record

    def remove(self, plan: Plan, record: int) -> None:
        """Plan the end of a record: out of its chain, its ident cleared, its memory freed."""
        key_word = plan[record + L.KEY]
        link = self._bucket_of_key_word(key_word)
        following = plan[record + L.HASH_NEXT]
        for _ in range(_CHAIN_LIMIT):
            here = plan[link]
            if here == record:
                plan[link] = following
                plan[record + L.IDENT] = 0
                self._heap.free(plan, record)
                return
            if not here:
                break
            link = self._heap.check(here) + L.HASH_NEXT
        raise self._loop()

    def key_of(self, record: int, kind: int) -> str:
        """Return a record's name."""
        words = self._segment.words
        length = words[self._heap.check(record) + L.KEY] & 0xFFFFFFFF
        start = 8 * (record + L.KEY_WORD[kind])
        if length > 99 or words[record] >> L.KIND_SHIFT != kind:
            raise damaged(self._segment.name, f"a record at word {record} of the wrong shape")
        name: bytes = self._segment.memory[start : start + length]
        return name.decode("ascii")

    def chain(self, bucket: int) -> Iterator[int]:
        """Yield the records of one bucket, given by its number."""
        words = self._segment.words
        record = words[L.BUCKETS + bucket]
        for _ in range(_CHAIN_LIMIT):
            if not record:
                return
            self._heap.check(record)
            following = words[record + L.HASH_NEXT]
            yield record
            record = following
        raise self._loop()

    def records(self) -> Iterator[int]:
        """Yield every record, in no particular order."""
        for bucket, first in enumerate(self._segment.words[L.BUCKETS : self._segment.heap_start]):
            if first:
                yield from self.chain(bucket)

    def some_buckets(self, hand: int, count: int) -> tuple[list[int], int]:
        """Return the used ones of ``count`` buckets from ``hand`` on, and where to go on."""
        total = self._segment.heap_start - L.BUCKETS
        if hand >= total:
            hand = 0
        end = min(hand + count, total)
        firsts = self._segment.words[L.BUCKETS + hand : L.BUCKETS + end].tolist()
        used = [hand + index for index, first in enumerate(firsts) if first]
        return used, end

    def _bucket(self, key: bytes, owner: int) -> int:
        return self._bucket_of_key_word(_key_word(key, owner))

    def _bucket_of_key_word(self, key_word: int) -> int:
        return L.BUCKETS + ((key_word >> 32) & (self._segment.heap_start - L.BUCKETS - 1))

    def _loop(self) -> SegmentCorrupt:
        return damaged(self._segment.name, "a hash chain that does not end or lacks its record")


def new_ident() -> int:
    """Return a random ident."""
    return int.from_bytes(os.urandom(8), "little") | 1


def _key_word(key: bytes, owner: int) -> int:
    return zlib.crc32(key, owner & 0xFFFFFFFF) << 32 | len(key)
