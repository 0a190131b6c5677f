"""Who takes part: our layers, the peers with the servers they need, and their contenders."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
)
from typing import Any, Final

from benchmarks import ours, peers, servers
from benchmarks.harness import Contender, Goal, Sample, contender
from benchmarks.layers import OURS, LayerLink, Members, Solo
from benchmarks.links import Pair, pair
from benchmarks.processes import ROOT, Worker, WorkerSpec, worker

CAPACITY: Final = 10_000
LAYERS: Final = (peers.CORE, peers.PUBSUB, peers.NATS, peers.POSTGRES, peers.LITE)
Options = dict[str, Any]


class Field:
    """The layers with the options that connect them, or with the reason why they cannot be."""

    def __init__(self, options: Mapping[str, Options], trouble: Mapping[str, str]) -> None:
        self._options = options
        self._trouble = trouble

    async def contender(
        self,
        stack: AsyncExitStack,
        kind: str,
        make: Callable[[Options], AbstractAsyncContextManager[Any]],
        run: Callable[[Any], Awaitable[Sample]],
        *goals: Goal,
    ) -> Contender:
        """One row; one with trouble if the peer is missing."""
        is_peer = kind in LAYERS
        if kind not in self._options:
            return Contender(kind, None, goals, is_peer, self._trouble[kind])
        return await contender(stack, kind, make(self._options[kind]), run, *goals, is_peer=is_peer)

    def missing(self, kind: str) -> str:
        """Why a peer, of whatever kind, is not there; empty if it is."""
        return self._trouble.get(kind, "")


@asynccontextmanager
async def link(options: Options) -> AsyncIterator[Pair]:
    """Two workers connected by process-specific channels."""
    spec = WorkerSpec(LayerLink, options)
    async with pair(spec, spec) as connected:
        yield connected


def solo(options: Options) -> AbstractAsyncContextManager[Worker]:
    """A worker with a layer."""
    return worker(WorkerSpec(Solo, options))


def members(options: Options) -> AbstractAsyncContextManager[Worker]:
    """A worker that owns members."""
    return worker(WorkerSpec(Members, options))


@asynccontextmanager
async def open_field() -> AsyncIterator[Field]:
    """Start the servers; yields who takes part."""
    trouble = peers.missing()
    options: dict[str, Options] = {peers.IN_MEMORY: {"capacity": CAPACITY}}
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(ours.segments())
        options[OURS] = {"capacity": CAPACITY, **shared}
        if "channels_redis" in trouble:
            trouble |= dict.fromkeys((peers.CORE, peers.PUBSUB), trouble["channels_redis"])
        for kinds, connect in _CONNECTIONS.items():
            if kinds[0] in trouble:
                continue
            try:
                connected = await stack.enter_async_context(connect())
            except Exception as error:
                trouble |= dict.fromkeys(kinds, str(error))
            else:
                options |= {kind: dict(connected) for kind in kinds}
        yield Field({kind: {"kind": kind, **chosen} for kind, chosen in options.items()}, trouble)


@asynccontextmanager
async def _redis() -> AsyncIterator[Options]:
    async with servers.redis_server() as url:
        yield {"hosts": [url], "capacity": CAPACITY}


@asynccontextmanager
async def _nats() -> AsyncIterator[Options]:
    async with servers.nats_server() as url:
        yield {"servers": url, "capacity": CAPACITY}


@asynccontextmanager
async def _postgres() -> AsyncIterator[Options]:
    async with servers.postgres_server() as database:
        await _migrate(peers.POSTGRES, database)
        yield {"django": database, **database, "TIME_ZONE": None}


@asynccontextmanager
async def _lite() -> AsyncIterator[Options]:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/layer.sqlite3"
        with closing(sqlite3.connect(path)) as connection:
            # As its README says; left to the layer, two processes that do it at once fail.
            connection.execute("PRAGMA journal_mode=WAL")
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": path}
        await _migrate(peers.LITE, database)
        yield {"django": database, "database": "default", "capacity": CAPACITY}


async def _migrate(kind: str, database: Mapping[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.layers", kind, json.dumps(database)),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"no tables: {said.decode().strip().splitlines()[-1]}")


_CONNECTIONS: Final[dict[tuple[str, ...], Callable[[], AbstractAsyncContextManager[Options]]]] = {
    (peers.CORE, peers.PUBSUB): _redis,
    (peers.NATS,): _nats,
    (peers.POSTGRES,): _postgres,
    (peers.LITE,): _lite,
}
