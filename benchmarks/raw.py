"""Raw yardsticks: ways between two processes that are no channel layers.

No names, no groups, no expiry; what each of them lacks is in docs/performance.md. Those that can
only block do so: their coroutines never suspend, which costs them nothing here.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import multiprocessing
import pickle
import queue
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing import context, popen_spawn_posix, reduction
from typing import Any, Final, cast

import msgpack

from benchmarks.harness import Message
from benchmarks.links import QUIET_S, Pair, pair
from benchmarks.processes import WorkerSpec

_CAPACITY: Final = 10_000
_FIFO_BYTES: Final = 16 * 2**20
_HIGH_WATER: Final = 10_000


class NeverFull(Exception):
    """For what waits, or grows, instead of refusing."""


# --- queues that multiprocessing hands to children ------------------------------------------


class QueueLink:
    """One end of two queues, as `multiprocessing` makes them for a child that it spawns."""

    full = queue.Full

    def __init__(self, queues: list[str], end: int) -> None:
        self.out, self.into = (load_queue(queues[n]) for n in (end, 1 - end))

    async def open(self) -> str:
        """Nothing to announce: the queues were inherited."""
        return ""

    def connect(self, address: str) -> None:
        """Nothing to do: the queues were inherited."""

    async def send(self, message: Message) -> None:
        """Blocks if the queue is full."""
        # A copy: a queue of multiprocessing pickles later, in a thread of its own.
        self.out.put(dict(message), True, QUIET_S)

    async def receive(self) -> Message:
        """Blocks, and gives up as the jobs do."""
        try:
            message: Message = self.into.get(True, QUIET_S)
        except queue.Empty:
            raise TimeoutError from None
        return message

    async def close(self) -> None:
        """Do not wait for a reader that is gone."""
        if cancel := getattr(self.out, "cancel_join_thread", None):
            cancel()


class _Inheritance:
    """What `multiprocessing` asks of a child while it pickles what the child inherits."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.DupFd = popen_spawn_posix._DupFd

    def duplicate_for_child(self, fd: int) -> int:
        """The child gets the same number: see `WorkerSpec.fds`."""
        self.fds.append(fd)
        return fd


def dump_queue(made: Any) -> tuple[str, list[int]]:
    """A queue for a spawned process, and the descriptors that it must inherit."""
    inheritance = _Inheritance()
    context.set_spawning_popen(cast(Any, inheritance))
    try:
        pickled = bytes(reduction.ForkingPickler.dumps(made))
    finally:
        context.set_spawning_popen(None)
    return base64.b64encode(pickled).decode(), inheritance.fds


def load_queue(dumped: str) -> Any:
    """The other side of `dump_queue`."""
    return pickle.loads(base64.b64decode(dumped))


def new_mp_queue() -> Any:
    """A queue as a parent makes it for children that it spawns."""
    return multiprocessing.get_context("spawn").Queue(_CAPACITY)


def new_fifo() -> Any:
    """The same by faster-fifo."""
    importlib.import_module("faster_fifo_reduction")
    return importlib.import_module("faster_fifo").Queue(max_size_bytes=_FIFO_BYTES)


@asynccontextmanager
async def _queues(make: Callable[[], Any]) -> AsyncIterator[Pair]:
    made = [make() for _ in range(2)]
    dumped = [dump_queue(one) for one in made]
    fds = tuple(fd for _, inherited in dumped for fd in inherited)
    ends = [
        WorkerSpec(QueueLink, {"queues": [text for text, _ in dumped], "end": end}, fds)
        for end in (0, 1)
    ]
    async with pair(*ends) as connected:
        yield connected
    del made


def mp_queue() -> Any:
    """`multiprocessing.Queue`, both ends blocking."""
    return _queues(new_mp_queue)


def faster_fifo() -> Any:
    """`faster_fifo.Queue`, both ends blocking."""
    return _queues(new_fifo)


# --- sockets --------------------------------------------------------------------------------


class StreamLink:
    """One end of an asyncio stream on a unix socket, msgpack with its length in front."""

    full = NeverFull

    def __init__(self, directory: str, end: int) -> None:
        self._path = f"{directory}/{end}"
        self._other = f"{directory}/{1 - end}"
        self._pack = msgpack.Packer().pack
        self._readers: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> str:
        """Listen."""
        self._server = await asyncio.start_unix_server(
            lambda reader, _: self._readers.put_nowait(reader), self._path
        )
        return self._path

    def connect(self, address: str) -> None:
        """The first send connects."""

    async def send(self, message: Message) -> None:
        """Write, and wait for room."""
        if self._writer is None:
            _, self._writer = await asyncio.open_unix_connection(self._other)
        body = self._pack(message)
        self._writer.write(len(body).to_bytes(4, "little") + body)
        await self._writer.drain()

    async def receive(self) -> Message:
        """Read one."""
        if self._reader is None:
            self._reader = await self._readers.get()
        body_bytes = int.from_bytes(await self._reader.readexactly(4), "little")
        message: Message = msgpack.unpackb(await self._reader.readexactly(body_bytes))
        return message

    async def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._server.close()


class ZmqLink:
    """One end of two PUSH-PULL connections of pyzmq's asyncio sockets over ipc."""

    full = NeverFull

    def __init__(self, directory: str, end: int) -> None:
        zmq = importlib.import_module("zmq")
        self._context = importlib.import_module("zmq.asyncio").Context()
        self._pack = msgpack.Packer().pack
        self._into = self._context.socket(zmq.PULL)
        self._into.rcvhwm = _HIGH_WATER
        self._into.bind(f"ipc://{directory}/{end}")
        self._out = self._context.socket(zmq.PUSH)
        self._out.sndhwm = _HIGH_WATER
        self._out.connect(f"ipc://{directory}/{1 - end}")

    async def open(self) -> str:
        """Nothing to announce: the names are known."""
        return ""

    def connect(self, address: str) -> None:
        """Nothing to do: the names are known."""

    async def send(self, message: Message) -> None:
        """Queue it, or wait."""
        await self._out.send(self._pack(message))

    async def receive(self) -> Message:
        """Take one."""
        message: Message = msgpack.unpackb(await self._into.recv())
        return message

    async def close(self) -> None:
        """Let go of the sockets, without waiting for what was not sent."""
        self._context.destroy(linger=0)


@asynccontextmanager
async def _in_directory(factory: Callable[..., Any]) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory() as directory:
        ends = [WorkerSpec(factory, {"directory": directory, "end": end}) for end in (0, 1)]
        async with pair(*ends) as connected:
            yield connected


def unix_stream() -> Any:
    """Streams of asyncio over a unix socket."""
    return _in_directory(StreamLink)


def zmq_ipc() -> Any:
    """Sockets of pyzmq's asyncio over ipc."""
    return _in_directory(ZmqLink)
