"""asgi_ipc 1.4.2, the package this one follows, in an environment of its own.

It has no way to wait: whoever receives looks again and again. Daphne did so every 50 ms and the
workers every 10 to 100 ms; here it is every millisecond, to its advantage.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Message
from benchmarks.processes import Worker, WorkerFailed, WorkerSpec, worker

_PAUSE_S: Final = 0.001
_PARKED: Final = "bench.parked"


class Original:
    """A layer, in a worker of its environment."""

    def __init__(self, *, prefix: str, capacity: int = 100) -> None:
        import asgi_ipc

        layer_type: Any = asgi_ipc.IPCChannelLayer
        self.layer = layer_type(prefix=prefix, capacity=capacity, expiry=3600)
        if not hasattr(self.layer, "message_store"):
            raise RuntimeError(f"not the original: {asgi_ipc.__file__}")


class OriginalLink(Original):
    """One end of a connection by `!` channels: see `links.Link`."""

    def __init__(self, *, end: int, prefix: str) -> None:
        super().__init__(prefix=prefix)
        self._home = f"bench.end{end}!"

    @property
    def full(self) -> Any:
        """What a full channel raises."""
        return self.layer.ChannelFull

    async def open(self) -> str:
        """The channel to receive from."""
        return f"{self._home}one"

    def connect(self, address: str) -> None:
        """Send to that channel from now on."""
        self._address = address

    async def send(self, message: Message) -> None:
        """Send."""
        self.layer.send(self._address, message)

    async def receive(self) -> Message:
        """Look until something is there."""
        while True:
            channel, message = self.layer.receive([self._home])
            if channel is not None:
                found: Message = message
                return found
            await asyncio.sleep(_PAUSE_S)


# --- jobs -----------------------------------------------------------------------------------


async def park(original: Original, messages: int, data_bytes: int) -> None:
    """Leave messages in a channel that nobody reads, at once: one by one it takes minutes."""
    import msgpack

    packed = msgpack.packb({"type": "bench.parked", "data": bytes(data_bytes)})
    with original.layer.message_store.mutate_value() as value:
        value[_PARKED] = [(packed, time.time() + 3600)] * messages


async def send_and_receive(original: Original, count: int, data_bytes: int) -> list[int]:
    """The times of that many sends in ns; each is received again, which is not timed."""
    spread_ns = []
    message: Message = {"type": "bench.item", "n": 0, "data": bytes(data_bytes)}
    for n in range(count):
        message["n"] = n
        began_ns = time.perf_counter_ns()
        original.layer.send("bench.measured", message)
        spread_ns.append(time.perf_counter_ns() - began_ns)
        if original.layer.receive(["bench.measured"])[1] != message:
            raise WorkerFailed("another message came")
    return spread_ns


async def bytes_used(original: Original, store: str, count: int, data_bytes: int) -> int:
    """The bytes in shared memory of that many messages or memberships, and of an empty store."""
    if store == "messages":
        kept = original.layer.message_store
        for n in range(count):
            message = {"type": "bench.item", "n": n, "data": bytes(data_bytes)}
            original.layer.send("bench.parked!one", message)
    else:
        kept = original.layer.group_store
        for n in range(count):
            original.layer.group_add("bench", f"specific.{secrets.token_hex(6)}!{n:012}")
    kept.mmap.seek(0)
    pickle.load(kept.mmap)
    used: int = kept.mmap.tell()
    return used


# --- in the runner --------------------------------------------------------------------------


def _python() -> str:
    from tests.channels1 import stack

    return str(stack.ensure("original"))


@asynccontextmanager
async def _prefix() -> AsyncIterator[str]:
    prefix = f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield prefix
    finally:
        for name in (f"{prefix}-messages", f"{prefix}-groups"):
            for left in (Path("/dev/shm") / name, Path("/dev/shm") / f"sem.{name}"):
                left.unlink(missing_ok=True)


@asynccontextmanager
async def original_link() -> AsyncIterator[Any]:
    """Two workers connected by it."""
    from benchmarks.links import pair

    python = _python()
    async with _prefix() as prefix:
        ends = [
            WorkerSpec(OriginalLink, {"prefix": prefix, "end": end}, python=python)
            for end in (0, 1)
        ]
        async with pair(*ends) as connected:
            yield connected


@asynccontextmanager
async def original_solo(capacity: int = 100) -> AsyncIterator[Worker]:
    """One worker with a layer."""
    python = _python()
    async with _prefix() as prefix:
        options = {"prefix": prefix, "capacity": capacity}
        async with worker(WorkerSpec(Original, options, python=python)) as started:
            yield started
