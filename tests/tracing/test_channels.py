"""Under Django Channels 4: the mixins with its backend and its consumers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from channels import exceptions as channels_exceptions
from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import channel_layers
from channels.testing import ApplicationCommunicator, WebsocketCommunicator
from django.conf import settings
from django.test import override_settings
from opentelemetry import trace

from asgi_ipc.channels import IPCChannelLayer
from asgi_ipc.tracing import TracingConsumer, TracingLayer
from tests.conftest import PATIENCE_S, _close_and_check

from .conftest import Spans, ids

if not settings.configured:
    settings.configure(SECRET_KEY="tests", CHANNEL_LAYERS={}, ALLOWED_HOSTS=["*"])

tracer = trace.get_tracer("test")


class TracedLayer(TracingLayer, IPCChannelLayer):
    """What a site's own module would have."""


class Chat(TracingConsumer, AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """Tells its socket what it is told."""

    groups = ["room"]  # noqa: RUF012  as Channels declares it

    async def chat_message(self, event: dict[str, Any]) -> None:
        """Say it."""
        with tracer.start_as_current_span("handler"):
            await self.send_json(event)


class SyncChat(TracingConsumer, JsonWebsocketConsumer):  # type: ignore[misc]
    """The same on threads."""

    groups = ["room"]  # noqa: RUF012  as Channels declares it

    def chat_message(self, event: dict[str, Any]) -> None:
        """Say it."""
        with tracer.start_as_current_span("handler"):
            self.send_json(event)


class Worker(TracingConsumer, AsyncConsumer):  # type: ignore[misc]
    """A consumer without a socket."""

    async def work_do(self, event: dict[str, Any]) -> None:
        """Do it, once."""
        await self.send({"type": "done", "n": event["n"]})


@pytest.fixture
def layer(prefix: str) -> Iterator[TracedLayer]:
    """The default layer of Channels, by its setting."""
    backend = f"{__name__}.TracedLayer"
    config = {"prefix": prefix, "message_memory": 8 << 20, "group_memory": 4 << 20, "capacity": 3}
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}}):
        layer = channel_layers["default"]
        assert isinstance(layer, TracedLayer)
        yield layer
        _close_and_check([layer])


@pytest.mark.parametrize("consumer", [Chat, SyncChat])
async def test_a_websockets_handler_runs_in_the_senders_trace(
    layer: TracedLayer, spans: Spans, consumer: type[Any]
) -> None:
    """The event arrives as it was sent, and the handler's spans are below the send."""
    socket = WebsocketCommunicator(consumer.as_asgi(), "/")
    assert (await socket.connect(timeout=PATIENCE_S))[0]
    with tracer.start_as_current_span("view"):
        await layer.group_send("room", {"type": "chat.message", "text": "hello"})
    heard = await socket.receive_json_from(timeout=PATIENCE_S)
    assert heard == {"type": "chat.message", "text": "hello"}
    await socket.disconnect(timeout=PATIENCE_S)
    chain = []
    span = spans.named("handler")
    by_id = {ids(one)[1]: one for one in spans.all()}
    while parent := ids(span)[2]:
        span = by_id[parent]
        chain.append(span.name)
    assert chain == ["process specific.*!*", "receive specific.*!*", "group_send room", "view"]
    process = spans.named("process specific.*!*")
    assert (process.attributes or {})["asgi_ipc.message.type"] == "chat.message"


async def test_what_comes_from_elsewhere_goes_by_untouched(
    layer: TracedLayer, spans: Spans
) -> None:
    """A worker's event, given as a plain dict."""
    worker = ApplicationCommunicator(Worker.as_asgi(), {"type": "channel", "channel": "work"})
    await worker.send_input({"type": "work.do", "n": 1})
    assert await worker.receive_output(timeout=PATIENCE_S) == {"type": "done", "n": 1}
    await worker.wait(timeout=0)  # it would go on for ever
    assert not spans.all()


async def test_errors_are_those_of_channels(layer: TracedLayer, spans: Spans) -> None:
    """The backend's own, through the mixin."""
    for _ in range(3):
        await layer.send("a", {"type": "x"})
    with pytest.raises(channels_exceptions.ChannelFull):
        await layer.send("a", {"type": "x"})
    assert layer.ChannelFull is IPCChannelLayer.ChannelFull
    assert await layer.receive("a") == {"type": "x"}
