"""The faces as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc.channels import IPCChannelLayer as DjangoLayer

from ..conftest import Clock
from .faces import SIZES, AsyncFace, Face, SyncFace
from .peers import InMemoryFace, RedisFace, known_difference, redis_server

MakeFace = Callable[..., Face]
OURS: list[Any] = ["async", "channels4", "sync"]
IN_MEMORY = "in-memory"
REDIS = "channels_redis"
PEERS: list[Any] = [IN_MEMORY, pytest.param(REDIS, marks=pytest.mark.slow)]


@pytest.fixture
def redis_client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[redis.Redis | None]:
    """A client of a Redis server, for the face that needs one."""
    if request.node.callspec.params["make_face"] != REDIS:
        yield None
        return
    with redis_server(tmp_path) as connect, connect() as client:
        yield client


@pytest.fixture(params=[*OURS, *PEERS])
async def make_face(
    request: pytest.FixtureRequest,
    prefix: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    redis_client: redis.Redis | None,
) -> AsyncIterator[MakeFace]:
    """Make faces of one kind that share a prefix.

    A test that is known to fail on a peer must fail there.
    """
    kind, node = request.param, request.node
    if reason := known_difference(kind, node.originalname, node.callspec.id):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    made: list[Face] = []

    def make(**options: Any) -> Face:
        face: Face
        if kind == IN_MEMORY:
            face = InMemoryFace(InMemoryChannelLayer(**options), clock, monkeypatch)
        elif kind == REDIS:
            assert redis_client is not None
            path = redis_client.connection_pool.connection_kwargs["path"]
            layer = RedisChannelLayer([f"unix://{path}"], prefix, **options)
            face = RedisFace(layer, redis_client, clock, monkeypatch)
        elif kind == "sync":
            face = SyncFace(IPCChannelLayer(prefix, **SIZES, **options, block_timeout=0.2), clock)
        else:
            layer_type = AsyncIPCChannelLayer if kind == "async" else DjangoLayer
            face = AsyncFace(layer_type(prefix, **SIZES, **options), clock)
        made.append(face)
        return face

    yield make
    for face in made:
        await face.close()


@pytest.fixture
def face(make_face: MakeFace) -> Face:
    """One face with the default options."""
    return make_face()
