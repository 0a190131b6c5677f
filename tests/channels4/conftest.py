"""Layers under test: the Channels 4 backend, the core, and Channels' own in-memory layer."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import channels.layers
import pytest
from asgiref.sync import sync_to_async
from channels import exceptions as channels_exceptions
from channels.layers import InMemoryChannelLayer
from django.conf import settings

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.channels import IPCChannelLayer
from tests.conftest import Clock, _close_and_check

if not settings.configured:
    settings.configure(SECRET_KEY="tests", CHANNEL_LAYERS={}, ALLOWED_HOSTS=["*"])

MakeLayer = Callable[..., Any]
KINDS: dict[str, Callable[..., Any]] = {
    "channels4": IPCChannelLayer,
    "core": AsyncIPCChannelLayer,
    "in-memory": InMemoryChannelLayer,
}
SIZES = {"message_memory": 8 << 20, "group_memory": 4 << 20}


def _maker(kind: str, prefix: str, made: list[Any]) -> MakeLayer:
    def make(**options: Any) -> Any:
        if kind == "in-memory":
            return InMemoryChannelLayer(**options)
        layer = KINDS[kind](**{"prefix": prefix, **SIZES, **options})
        made.append(layer)
        return layer

    return make


@pytest.fixture
def make_backend(prefix: str) -> Iterator[MakeLayer]:
    """Make Channels 4 backends of this test's prefix; afterwards both segments must be sound."""
    made: list[Any] = []
    yield _maker("channels4", prefix, made)
    _close_and_check(made)
    made.clear()  # a test's arguments outlive it, and the loops of sync code their layer


@pytest.fixture(params=["channels4", "core"])
def make_ours(request: pytest.FixtureRequest, prefix: str) -> Iterator[MakeLayer]:
    """Make layers of either face of ours."""
    made: list[Any] = []
    yield _maker(request.param, prefix, made)
    _close_and_check(made)
    made.clear()


@pytest.fixture(params=["channels4", "core", "in-memory"])
def make_any(request: pytest.FixtureRequest, prefix: str) -> Iterator[MakeLayer]:
    """Make layers of every face, for what they agree on: one object each, used for all."""
    made: list[Any] = []
    yield _maker(request.param, prefix, made)
    _close_and_check(made)
    made.clear()


def full_error(layer: Any) -> type[Exception]:
    """Return what a layer's users catch when a channel is full."""
    error: type[Exception] = getattr(layer, "ChannelFull", channels_exceptions.ChannelFull)
    return error


class _InMemoryTime:
    """The wall clock of the in-memory layer, following the tests' clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def time(self) -> float:
        return self._clock.now_ns / 1e9


@pytest.fixture
def every_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One clock for all layers, which goes on when the test says so."""
    monkeypatch.setattr(channels.layers, "time", _InMemoryTime(clock))
    assert channels.layers.time is not time
    return clock


@pytest.fixture(scope="session", autouse=True)
def before_all_tests() -> None:
    """Start the one thread that asgiref keeps for sync code before any test is watched.

    And let the collection after each test pass over Django, which is most of its time.
    """
    asyncio.run(sync_to_async(int)())
    gc.collect()
    gc.freeze()
