"""Channel layers in a worker: made by name, as a link, as a process full of members."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypedDict

from benchmarks import peers
from benchmarks.harness import JOB_S, Message

OURS: Final = "asgi_ipc"
DATA_BYTES: Final = 69  # with type, number and msgpack's own bytes: messages of 100 bytes
CONNECT_S: Final = 0.5  # in which the first receive of a layer has connected
_QUIET_S: Final = 5.0

_CLASSES: Final = {
    OURS: ("asgi_ipc.channels", "IPCChannelLayer"),
    peers.IN_MEMORY: ("channels.layers", "InMemoryChannelLayer"),
    peers.CORE: ("channels_redis.core", "RedisChannelLayer"),
    peers.PUBSUB: ("channels_redis.pubsub", "RedisPubSubChannelLayer"),
    peers.NATS: ("channels_nats", "NatsChannelLayer"),
    peers.POSTGRES: ("channels_postgres.core", "PostgresChannelLayer"),
    peers.LITE: ("channels_lite.layers.aio", "AIOSQLiteChannelLayer"),
}
_APPS: Final = {peers.POSTGRES: "channels_postgres", peers.LITE: "channels_lite"}


def make(*, kind: str, django: dict[str, str] | None = None, **options: Any) -> Any:
    """Make a layer: `kind` says which, `django` is the database of those that need Django."""
    if django is not None:
        _configure(kind, django)
    module, name = _CLASSES[kind]
    return getattr(importlib.import_module(module), name)(**options)


def _configure(kind: str, database: dict[str, str]) -> None:
    conf = importlib.import_module("django.conf")
    if not conf.settings.configured:
        conf.settings.configure(
            INSTALLED_APPS=[_APPS[kind]],
            DATABASES={"default": database, _APPS[kind]: database},
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        )
        importlib.import_module("django").setup()


def migrate(kind: str, database: dict[str, str]) -> None:
    """Make the tables of a layer that keeps its messages in a database."""
    _configure(kind, database)
    importlib.import_module("django.core.management").call_command("migrate", verbosity=0)


async def close(layer: Any) -> None:
    """Let go of connections, if the layer has a way to."""
    for name in ("close_pools", "close"):
        if way := getattr(layer, name, None):
            with suppress(Exception):  # it ends with its process anyway
                await way()
            return


class LayerLink:
    """One end of a connection by a process-specific channel of any layer: see `links.Link`."""

    def __init__(self, **options: Any) -> None:
        self._layer = make(**options)

    @property
    def full(self) -> type[Exception]:
        """What a full channel raises."""
        error: type[Exception] = importlib.import_module("channels.exceptions").ChannelFull
        return error

    async def open(self) -> str:
        """Make the channel to receive from."""
        channel: str = await self._layer.new_channel()
        self.receive: Callable[[], Awaitable[Message]] = partial(self._layer.receive, channel)
        return channel

    def connect(self, address: str) -> None:
        """Send to that channel from now on."""
        self.send: Callable[[Message], Awaitable[None]] = partial(self._layer.send, address)

    async def close(self) -> None:
        """Close the layer."""
        await close(self._layer)


class Arrivals(TypedDict):
    """What all members of a process together saw of one message."""

    count: int
    doubled: int
    last_ns: int


class Members:
    """A process that owns members of groups, each with a coroutine that waits in `receive`."""

    def __init__(self, **options: Any) -> None:
        self._layer = make(**options)
        self._tasks: list[asyncio.Task[None]] = []
        self._count: Counter[int] = Counter()
        self._doubled = 0
        self._last_ns = 0
        self._awaited = (0, 0)
        self._complete = asyncio.Event()

    async def join(self, groups: dict[str, int]) -> None:
        """As many channels as the largest group has members; the first of them are in all."""
        names = [await self._layer.new_channel() for _ in range(max(groups.values()))]
        self._tasks = [asyncio.create_task(self._listen(name)) for name in names[:1]]
        # channels_postgres opens a connection for every receive that begins before it has one.
        await asyncio.sleep(CONNECT_S)
        self._tasks += [asyncio.create_task(self._listen(name)) for name in names[1:]]
        for group, size in groups.items():
            for name in names[:size]:
                await self._layer.group_add(group, name)

    async def _listen(self, name: str) -> None:
        """One member."""
        newest = -1
        while True:
            message = await self._layer.receive(name)
            n = message["n"]
            if n <= newest:
                self._doubled += 1
                continue
            newest = n
            self._count[n] += 1
            self._last_ns = time.perf_counter_ns()
            if self._awaited == (n, self._count[n]):
                self._complete.set()

    async def arrivals(self, n: int, members: int) -> Arrivals:
        """Wait until that many members have message `n`, or for too long."""
        self._awaited = (n, members)
        self._complete.clear()
        seen = -1
        while seen < self._count[n] < members:  # as long as more come
            seen = self._count[n]
            with suppress(TimeoutError):
                await asyncio.wait_for(self._complete.wait(), _QUIET_S)
        return Arrivals(count=self._count.pop(n, 0), doubled=self._doubled, last_ns=self._last_ns)

    async def close(self) -> None:
        """All members leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=JOB_S)
        await close(self._layer)


class Solo:
    """A process with nothing but a layer."""

    def __init__(self, **options: Any) -> None:
        self.layer = make(**options)

    async def close(self) -> None:
        """Close the layer."""
        await close(self.layer)


if __name__ == "__main__":
    # A process of its own makes the tables: Django is configured once in a process.
    import json

    migrate(sys.argv[1], json.loads(sys.argv[2]))
