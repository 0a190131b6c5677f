"""The faces as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc.channels import IPCChannelLayer as DjangoLayer

from ..conftest import Clock
from .faces import SIZES, AsyncFace, Face, InMemoryFace, SyncFace

MakeFace = Callable[..., Face]


@pytest.fixture(params=["async", "channels4", "sync", "in-memory"])
def make_face(
    request: pytest.FixtureRequest, prefix: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeFace]:
    """Make faces of one kind that share a prefix."""
    made: list[Face] = []

    def make(**options: Any) -> Face:
        face: Face
        if request.param == "in-memory":
            face = InMemoryFace(InMemoryChannelLayer(**options), clock, monkeypatch)
        elif request.param == "sync":
            face = SyncFace(IPCChannelLayer(prefix, **SIZES, **options, block_timeout=0.2), clock)
        else:
            kind = AsyncIPCChannelLayer if request.param == "async" else DjangoLayer
            face = AsyncFace(kind(prefix, **SIZES, **options), clock)
        made.append(face)
        return face

    yield make
    for face in made:
        face.close()


@pytest.fixture
def face(make_face: MakeFace) -> Face:
    """One face with the default options."""
    return make_face()
