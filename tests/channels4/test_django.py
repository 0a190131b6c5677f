"""Inside Django Channels: settings, consumers under its test client, workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import channel_layers, get_channel_layer
from channels.routing import ChannelNameRouter
from channels.testing import WebsocketCommunicator
from channels.worker import Worker
from django.test import override_settings

from asgi_ipc.channels import IPCChannelLayer
from tests.conftest import Child, _close_and_check

from .conftest import SIZES

Start = Callable[..., Child]
BACKEND = "asgi_ipc.channels.IPCChannelLayer"


@pytest.fixture
def configured(prefix: str) -> Iterator[str]:
    """``CHANNEL_LAYERS`` with this backend under two aliases; yields the prefix."""
    layers = {
        "default": {
            "BACKEND": BACKEND,
            "CONFIG": {"prefix": prefix, **SIZES, "channel_capacity": {"chat.*": 7}},
            "TEST_CONFIG": {"prefix": f"{prefix}-t", **SIZES, "expiry": 5},
        },
        "other": {"BACKEND": BACKEND, "CONFIG": {"prefix": f"{prefix}-o", **SIZES}},
    }
    with override_settings(CHANNEL_LAYERS=layers):
        yield prefix
        made: list[Any] = list(channel_layers.backends.values())
        _close_and_check(made)


def test_the_setting_makes_one_layer_per_alias(configured: str) -> None:
    """Lazily, without a running loop, always the same object."""
    assert channel_layers.backends == {}
    layer = get_channel_layer()
    assert isinstance(layer, IPCChannelLayer)
    assert get_channel_layer() is layer
    assert get_channel_layer("other") is not layer
    assert get_channel_layer("unknown") is None
    assert layer.prefix == configured
    assert layer.get_capacity("chat.x!y") == 7
    async_to_sync(layer.send)("c", {"n": 1})
    assert get_channel_layer("other").sync.receive("c", 0) is None
    assert layer.sync.receive("c", 0) == {"n": 1}


def test_test_config_is_taken(configured: str) -> None:
    """By Channels' manager, for a layer apart from the configured one."""
    layer = channel_layers.make_test_backend("default")
    try:
        assert isinstance(layer, IPCChannelLayer)
        assert (layer.prefix, layer.expiry) == (f"{configured}-t", 5)
    finally:
        _close_and_check([layer])


# -- consumers -----------------------------------------------------------------------------


class Room(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """A chat room as everybody writes it."""

    groups: ClassVar[list[str]] = ["room"]

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Say it to all, or tell its own name."""
        if content == "name":
            await self.send_json(self.channel_name)
        else:
            await self.channel_layer.group_send("room", {"type": "said", "text": content})

    async def said(self, event: dict[str, Any]) -> None:
        """Pass it on."""
        await self.send_json(event["text"])


class SyncRoom(JsonWebsocketConsumer):  # type: ignore[misc]
    """The same in sync code."""

    groups: ClassVar[list[str]] = ["room"]

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Say it to all but itself, then something to all."""
        self.channel_layer.sync.group_send(
            "room", {"type": "said", "text": content}, exclude=[self.channel_name]
        )
        async_to_sync(self.channel_layer.group_send)("room", {"type": "said", "text": "all"})

    def said(self, event: dict[str, Any]) -> None:
        """Pass it on."""
        self.send_json(event["text"])


@contextlib.asynccontextmanager
async def connected(consumer: Any, count: int) -> AsyncIterator[list[Any]]:
    """Sockets that are open, closed at the end."""
    sockets = [WebsocketCommunicator(consumer.as_asgi(), "/room/") for _ in range(count)]
    for socket in sockets:
        assert (await socket.connect(timeout=30))[0]
    yield sockets
    for socket in sockets:
        await socket.disconnect(timeout=30)


async def test_consumers_talk_through_a_group(configured: str) -> None:
    """What one says all hear once; who has gone is no member."""
    layer: Any = get_channel_layer()
    async with connected(Room, 3) as sockets:
        assert await layer.group_count("room") == 3
        for n in range(20):
            await sockets[n % 3].send_json_to({"n": n})
            for socket in sockets:
                assert await socket.receive_json_from(timeout=30) == {"n": n}
        gone = sockets.pop()
        await gone.disconnect(timeout=30)
        assert await layer.group_count("room") == 2
        await layer.group_send("room", {"type": "said", "text": "outside"})
        for socket in sockets:
            assert await socket.receive_json_from(timeout=30) == "outside"
        await sockets[0].send_json_to("name")
        name = await sockets[0].receive_json_from(timeout=30)
        await layer.send(name, {"type": "said", "text": "only you"})
        assert await sockets[0].receive_json_from(timeout=30) == "only you"
        await gone.disconnect(timeout=30)
    assert await layer.group_count("room") == 0


async def test_sync_consumers_talk_through_a_group(configured: str) -> None:
    """With ``async_to_sync`` and with the sync twin, which may exclude the sender."""
    async with connected(SyncRoom, 2) as (one, two):
        for n in range(5):
            await one.send_json_to(n)
            assert await two.receive_json_from(timeout=30) == n
            assert await two.receive_json_from(timeout=30) == "all"
            assert await one.receive_json_from(timeout=30) == "all"


async def test_a_hundred_sockets_come_and_go(configured: str) -> None:
    """Each hears what was said while it was there, and nothing is left of it."""
    layer: Any = get_channel_layer()
    for round_number in range(3):
        async with connected(Room, 100) as sockets:
            await sockets[round_number].send_json_to(round_number)
            for socket in sockets:
                assert await socket.receive_json_from(timeout=30) == round_number
        assert await layer.group_count("room") == 0
    assert (await layer.global_statistics())["messages_pending"] == 0


# -- workers -------------------------------------------------------------------------------


async def test_a_worker_handles_what_is_sent_to_its_channels(configured: str) -> None:
    """As ``runworker thumbnails emails`` does."""
    handled: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    class Task(AsyncConsumer):  # type: ignore[misc]
        async def work(self, event: dict[str, Any]) -> None:
            await handled.put((self.scope["channel"], event["n"]))

    layer: Any = get_channel_layer()
    names = ["thumbnails", "emails"]
    application = ChannelNameRouter(dict.fromkeys(names, Task.as_asgi()))
    worker = Worker(application=application, channels=names, channel_layer=layer)
    running = asyncio.create_task(worker.handle())
    for n in range(60):
        await layer.send(names[n % 2], {"type": "work", "n": n})
    got = [await handled.get() for _ in range(60)]
    for name in names:
        assert [n for channel, n in got if channel == name] == list(range(names.index(name), 60, 2))
    others = asyncio.all_tasks() - {running}
    running.cancel()
    for task in others - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(running, *(others - {asyncio.current_task()}), return_exceptions=True)


RUNWORKER = """
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS=["channels"],
    ASGI_APPLICATION="__main__.application",
    CHANNEL_LAYERS={"default": {
        "BACKEND": "asgi_ipc.channels.IPCChannelLayer", "CONFIG": {"prefix": PREFIX, **SIZES}}},
)
django.setup()
from channels.consumer import SyncConsumer
from channels.layers import get_channel_layer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter
class Task(SyncConsumer):
    def work(self, event):
        get_channel_layer().sync.send("done", {"n": event["n"], "pid": os.getpid()})
application = ProtocolTypeRouter({"channel": ChannelNameRouter({"tasks": Task.as_asgi()})})
from django.core.management import call_command
say("starting")
try:
    call_command("runworker", "tasks")
except KeyboardInterrupt:
    pass
"""


async def test_two_runworker_processes_share_the_work(configured: str, start: Start) -> None:
    """Every task is done once, by one of them; Ctrl-C ends both."""
    layer: Any = get_channel_layer()
    workers = [start(RUNWORKER) for _ in range(2)]
    for worker in workers:
        worker.expect("starting")
    done = []
    for n in range(200):
        await layer.send("tasks", {"type": "work", "n": n})
        if n >= 20:
            done.append(await layer.receive("done"))
    done += [await layer.receive("done") for _ in range(20)]
    assert sorted(one["n"] for one in done) == list(range(200))
    assert {one["pid"] for one in done} <= {worker.pid for worker in workers}
    for worker in workers:
        worker.signal(signal.SIGINT)
        worker.process.wait()
        worker.kill()
