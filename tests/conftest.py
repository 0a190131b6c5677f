"""Every test has a prefix of its own and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer

SHM = "/dev/shm"
OURS = f"test-{os.getpid()}-"


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found


def _children() -> set[str]:
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as children:
            found.update(children.read().split())
    return found


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail the test that leaves a segment, socket, descriptor, process or thread behind."""
    before = _belongings()
    yield
    gc.collect()
    after = _belongings()
    left = {kind: sorted(after[kind] - before[kind]) for kind in after}
    assert not any(left.values()), f"left behind: {left}"


def _belongings() -> dict[str, set[str]]:
    return {
        "shared memory": {name for name in os.listdir(SHM) if name.startswith(OURS)},
        "descriptors": _descriptors(),
        "processes": _children(),
        "threads": {str(thread) for thread in threading.enumerate()},
    }


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix nobody else uses, removed afterwards."""
    name = f"{OURS}{secrets.token_hex(4)}"
    yield name
    for entry in os.listdir(SHM):
        if entry.startswith(name):
            path = os.path.join(SHM, entry)
            if os.path.isdir(path):
                for door in os.listdir(path):
                    os.unlink(os.path.join(path, door))
                os.rmdir(path)
            else:
                os.unlink(path)


@pytest.fixture
def make_layer(prefix: str) -> Iterator[Callable[..., AsyncIPCChannelLayer]]:
    """Make async layers of this test's prefix, closed afterwards."""
    layers: list[AsyncIPCChannelLayer] = []

    def make(**options: Any) -> AsyncIPCChannelLayer:
        options.setdefault("message_memory", 8 << 20)
        options.setdefault("group_memory", 4 << 20)
        options.setdefault("prefix", prefix)
        layer = AsyncIPCChannelLayer(**options)
        layers.append(layer)
        return layer

    yield make
    for layer in layers:
        layer.close_now()


@pytest.fixture
def make_sync(prefix: str) -> Iterator[Callable[..., IPCChannelLayer]]:
    """Make blocking layers of this test's prefix, closed afterwards."""
    layers: list[IPCChannelLayer] = []

    def make(**options: Any) -> IPCChannelLayer:
        options.setdefault("message_memory", 8 << 20)
        options.setdefault("group_memory", 4 << 20)
        options.setdefault("prefix", prefix)
        layer = IPCChannelLayer(**options)
        layers.append(layer)
        return layer

    yield make
    for layer in layers:
        layer.close()
