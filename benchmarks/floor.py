"""The yardstick between two processes: what remains when there is nothing to protect.

Two processes, one byte ring per direction in memory they inherited, msgpack for the messages,
an inherited eventfd on each side's event loop. No names, no lock, no capacity per channel, no
expiry, no crash safety, no second reader. A layer that keeps such promises pays for them on
top of this; the ratio to it is the price.

`send` and `receive` are coroutines, as a channel layer's must be, and nothing else is given
away: records are contiguous, each side keeps its own position in Python integers, and the
eventfd is written only when the other side may be asleep.

There are two of it, which differ in when `receive` suspends:

- *floor*: always, and its future is resolved by a callback of the event loop: one message for
  each turn of the loop, as a server gets them that does something else beside. This is the
  yardstick of an interface that hands over one message at a time;
- *floor, in batches*: only when there is nothing, so that what has piled up is taken in one turn.

Layout of one ring (words of 8 bytes; both cursors and the flag have a cache line each):

    word    0   tail      bytes ever written, padding included     written by the producer
    word    8   head      bytes ever read, padding included        written by the consumer
    word   16   asleep    1: a consumer may be asleep              set by the consumer,
                                                                   cleared by whoever sees it
    byte 4096   records   size word, body, padding to 8 bytes; a size of WRAP says that the
                          next record is at the start of the area

Invariants:
- a record is complete before `tail` covers it and is not overwritten before `head` covers it;
- the consumer sets `asleep`, then looks at `tail`; the producer moves `tail`, then looks at
  `asleep`. With a full fence between the two steps on both sides, one of them sees the other:
  nobody sleeps beside a message.

Assumes a machine that keeps the order of stores (x86-64). On others the count and order checks
that every run makes would have to tell.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import msgpack

from benchmarks.harness import Message
from benchmarks.links import Pair, pair
from benchmarks.processes import WorkerSpec

_TAIL: Final = 0
_HEAD: Final = 8
_ASLEEP: Final = 16
_RECORDS_BYTE: Final = 4096
_WRAP: Final = 2**64 - 1

# Room for 10,000 messages of 100 bytes.
MESSAGES_AREA_BYTES: Final = 2**20


class RingFull(Exception):
    """The consumer is a whole ring behind."""


class Ring:
    """One direction. One process calls `put`, one other process calls `get` and `may_sleep`."""

    def __init__(self, memory: memoryview, bell_fd: int) -> None:
        self.bell_fd = bell_fd
        self._words = memory[:_RECORDS_BYTE].cast("Q")
        self._bytes = memory[_RECORDS_BYTE:]
        self._area_bytes = len(self._bytes)
        self._sizes = self._bytes.cast("Q")
        # Both sides of a cursor pair: one's own, exact, and the other's as last seen, which can
        # only be behind. `_at` is one's own cursor as a position in the area.
        self._tail = self._head = self._at = 0
        # Only for the fence: the atomic instructions in an uncontended lock are full memory
        # barriers, and x86 may otherwise delay a store past a later load. It excludes nobody.
        self._fence = threading.Lock()

    def put(self, body: bytes) -> None:
        """Append a record; ring if the consumer may be asleep.

        Raises:
            RingFull: there is no room; nothing was written.
        """
        body_bytes = len(body)
        record_bytes = (body_bytes + 15) & ~7
        area_bytes = self._area_bytes
        at = self._at
        to_end = area_bytes - at
        tail = self._tail + record_bytes
        if record_bytes > to_end:
            tail += to_end
        if tail - self._head > area_bytes:
            self._head = self._words[_HEAD]
            if tail - self._head > area_bytes:
                raise RingFull(f"no room for {record_bytes} bytes in a ring of {area_bytes}")
        if record_bytes > to_end:
            if to_end:
                self._sizes[at >> 3] = _WRAP
            at = 0
        self._sizes[at >> 3] = body_bytes
        self._bytes[at + 8 : at + 8 + body_bytes] = body
        self._at = at + record_bytes
        self._words[_TAIL] = self._tail = tail
        self._fence.acquire()
        self._fence.release()
        if self._words[_ASLEEP]:
            # Cleared before ringing: the consumer sets it again only after it has seen the ring
            # or the message, so a late clear here cannot leave it asleep and unrung.
            self._words[_ASLEEP] = 0
            os.eventfd_write(self.bell_fd, 1)

    def get(self) -> Message | None:
        """Take the oldest record, or None if there is none."""
        head = self._head
        if head == self._tail:
            self._tail = self._words[_TAIL]
            if head == self._tail:
                return None
        at = self._at
        if at == self._area_bytes:
            at = 0
        body_bytes = self._sizes[at >> 3]
        if body_bytes == _WRAP:
            head += self._area_bytes - at
            at = 0
            body_bytes = self._sizes[0]
        message = msgpack.unpackb(self._bytes[at + 8 : at + 8 + body_bytes])
        record_bytes = (body_bytes + 15) & ~7
        self._at = at + record_bytes
        self._words[_HEAD] = self._head = head + record_bytes
        return cast(Message, message)

    def may_sleep(self) -> bool:
        """Announce that the consumer is about to sleep; False if there is a record."""
        if self._head != self._tail:
            return False
        self._words[_ASLEEP] = 1
        self._fence.acquire()
        self._fence.release()
        if self._words[_TAIL] == self._head:
            return True
        self._words[_ASLEEP] = 0
        return False


class FloorLink:
    """One end of the floor: see `benchmarks.links.Link`."""

    full = RingFull

    def __init__(
        self, memory_fd: int, area_bytes: int, bell_fds: list[int], end: int, in_batches: bool
    ) -> None:
        ring_bytes = _RECORDS_BYTE + area_bytes
        memory = memoryview(mmap.mmap(memory_fd, 2 * ring_bytes))
        self._out, self._in = (
            Ring(memory[n * ring_bytes : (n + 1) * ring_bytes], bell_fds[n]) for n in (end, 1 - end)
        )
        self._pack = msgpack.Packer().pack
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._in.bell_fd, self._on_bell)
        self._waiter: asyncio.Future[Message] | None = None
        self.receive = self._receive_from_batch if in_batches else self._receive_in_turn

    async def open(self) -> str:
        """Nothing to announce: the two ends were born connected."""
        return ""

    def connect(self, address: str) -> None:
        """Nothing to do: the two ends were born connected."""

    async def send(self, message: Message) -> None:
        """Never suspends; raises `RingFull`."""
        self._out.put(self._pack(message))

    async def _receive_from_batch(self) -> Message:
        """Suspends only if there is nothing; one caller at a time."""
        message = self._in.get()
        return message if message is not None else await self._receive_in_turn()

    async def _receive_in_turn(self) -> Message:
        """Always suspends; one caller at a time."""
        waiter: asyncio.Future[Message] = self._loop.create_future()
        self._waiter = waiter
        if not self._in.may_sleep():
            self._loop.call_soon(self._resolve)
        return await waiter

    def _on_bell(self) -> None:
        os.eventfd_read(self._in.bell_fd)
        self._resolve()

    def _resolve(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        message = self._in.get()
        if message is not None:
            self._waiter.set_result(message)
        elif not self._in.may_sleep():  # rung for a message that was taken without
            self._loop.call_soon(self._resolve)

    async def close(self) -> None:
        """Leave the event loop."""
        self._loop.remove_reader(self._in.bell_fd)


@asynccontextmanager
async def floor(
    area_bytes: int = MESSAGES_AREA_BYTES, *, in_batches: bool = False
) -> AsyncIterator[Pair]:
    """Two workers at the two ends of a floor. Leaves nothing behind."""
    fds: list[int] = []
    try:
        fds.append(memory_fd := os.memfd_create("asgi-ipc-floor"))
        fds.extend(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
        # Allocated now, so that no repetition pays for the first touch of a page.
        os.posix_fallocate(memory_fd, 0, 2 * (_RECORDS_BYTE + area_bytes))
        shared = {
            "memory_fd": memory_fd,
            "area_bytes": area_bytes,
            "bell_fds": fds[1:],
            "in_batches": in_batches,
        }
        ends = [WorkerSpec(FloorLink, {**shared, "end": end}, tuple(fds)) for end in (0, 1)]
        async with pair(*ends) as connected:
            yield connected
    finally:
        for fd in fds:
            os.close(fd)
