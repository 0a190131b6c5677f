"""iceoryx2 as a raw yardstick: publish-subscribe in shared memory, and an event to wait for.

It only blocks, and carries bytes; msgpack makes them of messages here too.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgpack

from benchmarks.harness import Message
from benchmarks.links import QUIET_S, Pair, pair
from benchmarks.processes import WorkerSpec
from benchmarks.raw import NeverFull

_FIRST_BYTES: Final = 4096
_BUFFER: Final = 64


class IceoryxLink:
    """One end of two services, one for each direction: see `links.Link`."""

    full = NeverFull

    def __init__(self, name: str, directory: str, end: int) -> None:
        self._iox = iox = importlib.import_module("iceoryx2")
        iox.set_log_level(iox.LogLevel.Fatal)
        config = iox.config.default()
        config.global_cfg.prefix = iox.FileName.new(name)
        config.global_cfg.root_path = iox.Path.new(directory)
        builder = iox.NodeBuilder.new().config(config)
        disabled = iox.SignalHandlingMode.Disabled
        self._node = builder.signal_handling_mode(disabled).create(iox.ServiceType.Ipc)
        self._pack = msgpack.Packer().pack
        self._wait = iox.Duration.from_secs_f64(QUIET_S)
        out, out_event = self._services(f"{name}.{end}")
        into, into_event = self._services(f"{name}.{1 - end}")
        self._publisher: Any = (
            out.publisher_builder()
            .initial_max_slice_len(_FIRST_BYTES)
            .allocation_strategy(iox.AllocationStrategy.PowerOfTwo)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._subscriber: Any = into.subscriber_builder().buffer_size(_BUFFER).create()
        self._notifier: Any = out_event.notifier_builder().create()
        self._listener: Any = into_event.listener_builder().create()

    def _services(self, name: str) -> tuple[Any, Any]:
        iox = self._iox
        stream = (
            self._node.service_builder(iox.ServiceName.new(name))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(_BUFFER)
            .open_or_create()
        )
        event = self._node.service_builder(iox.ServiceName.new(name)).event().open_or_create()
        return stream, event

    async def open(self) -> str:
        """Nothing to announce: the names are known."""
        return ""

    def connect(self, address: str) -> None:  # noqa: ARG002 - as every link
        """Meet the other end's subscriber."""
        self._publisher.update_connections()

    async def send(self, message: Message) -> None:
        """Write into shared memory and notify; blocks if the buffer is full."""
        body = self._pack(message)
        loaned = self._publisher.loan_slice_uninit(len(body))
        ctypes.memmove(loaned.payload_ptr, body, len(body))
        loaned.assume_init().send()
        self._notifier.notify()

    async def receive(self) -> Message:
        """Take one; block if there is none, and give up as the jobs do."""
        give_up = time.monotonic() + QUIET_S
        while (sample := self._subscriber.receive()) is None:
            self._listener.timed_wait(self._wait)
            if time.monotonic() > give_up:
                raise TimeoutError
        payload = sample.payload()
        body = ctypes.string_at(payload.data_ptr, payload.number_of_elements)
        sample.delete()
        message: Message = msgpack.unpackb(body)
        return message

    async def close(self) -> None:
        """Give everything back, so that nothing stays in shared memory."""
        for one in (self._publisher, self._subscriber, self._notifier, self._listener):
            one.delete()
        del self._node


@asynccontextmanager
async def iceoryx() -> AsyncIterator[Pair]:
    """Two workers connected by iceoryx2."""
    name = f"bench-{os.getpid()}-{secrets.token_hex(4)}-"
    try:
        with tempfile.TemporaryDirectory() as directory:
            options = {"name": name, "directory": directory}
            ends = [WorkerSpec(IceoryxLink, {**options, "end": end}) for end in (0, 1)]
            async with pair(*ends) as connected:
                yield connected
    finally:
        for left in Path("/dev/shm").glob(f"{name}*"):  # it keeps some for the next node
            left.unlink()
