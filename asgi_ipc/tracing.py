"""OpenTelemetry over the layer: one trace from a send to what its reader does.

Off until you use it: nothing in the core knows of it. Needs the extra ``asgi_ipc[tracing]``;
what is recorded, and how contexts travel, is set up with OpenTelemetry's own means (an SDK
and its exporters, ``OTEL_PROPAGATORS``). Without an SDK no span is made and no message is
changed.

``TracingLayer`` is an asyncio layer that traces, and the mixin for the Channels 4 backend::

    class TracedLayer(TracingLayer, asgi_ipc.channels.IPCChannelLayer):
        pass

* A send makes a span of kind PRODUCER. Its context travels in the message, under
  ``CARRIER_KEY``.
* A receive takes the key out again, makes a span of kind CONSUMER below the sender's, and
  returns the message as it was sent: a ``TracedMessage``, equal to that dict, which
  remembers the context.
* ``processing`` makes the span around what the reader does with it.

A message that was sent without tracing is received as ever. A reader without tracing
finds the key in the message: switch readers on before senders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context, attach, detach, get_current
    from opentelemetry.trace import Span, SpanKind
except ImportError as _exc:
    raise ImportError(
        "asgi_ipc.tracing needs opentelemetry-api: pip install 'asgi_ipc[tracing]'"
    ) from _exc

from ._store.fanout import GroupSent
from ._wake.port import HostLoop
from .aio import AsyncIPCChannelLayer
from .names import home_of, text_of

__all__ = [
    "CARRIER_KEY",
    "TracedMessage",
    "TracingConsumer",
    "TracingLayer",
    "extract",
    "inject",
    "processing",
]

CARRIER_KEY = "__opentelemetry__"
"""Where the sender's context travels: a dict of the propagators' headers."""

SYSTEM = "asgi_ipc"


class TracedMessage(dict[str, Any]):
    """A received message, equal to the dict that was sent, and the context it came with.

    Attributes:
        context: the context of its receive; ``extract`` returns it.
        channel: where it was received.
    """

    def __init__(self, message: dict[str, Any], context: Context, channel: str) -> None:
        super().__init__(message)
        self.context = context
        self.channel = channel


# -- contexts in messages ----------------------------------------------------------------


def inject(message: dict[str, Any], context: Context | None = None) -> dict[str, Any]:
    """Return a message that carries a context; the one given is not changed.

    Returned as it is when there is nothing to carry, or when it is no dict, which the layer
    has to say.

    Args:
        context: ``None``: the current one.
    """
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    if not carrier or not isinstance(message, dict):
        return message
    return {**message, CARRIER_KEY: carrier}


def extract(message: dict[str, Any]) -> Context:
    """Return the context a message came with, and take its carrier out of the message.

    The current context if it came with none.
    """
    if isinstance(message, TracedMessage):
        return message.context
    carrier = message.pop(CARRIER_KEY, None)
    if not isinstance(carrier, dict):
        return get_current()
    return propagate.extract({key: text for key, text in carrier.items() if isinstance(text, str)})


@contextmanager
def processing(message: dict[str, Any], channel: str = "") -> Iterator[Span]:
    """Run a block inside a span of kind CONSUMER, below the context of a message.

    Spans that the block makes, and messages that it sends, belong to the message's trace.
    What the block raises is recorded and goes on.

    Args:
        channel: where the message came from, if it is no ``TracedMessage``.

    Yields:
        The span, for attributes of your own.
    """
    if isinstance(message, TracedMessage):
        channel = channel or message.channel
    with _span("process", "process", channel, SpanKind.CONSUMER, extract(message)) as span:
        yield span


# -- the layer ---------------------------------------------------------------------------


class TracingLayer(AsyncIPCChannelLayer):
    """A layer that carries the current OpenTelemetry context in its messages.

    Options, errors and cancellation are those of the layer it is mixed into, and so are the
    blocking calls of ``layer.sync``. A refused send is an error of its span.
    """

    async def send(
        self, channel: str, message: dict[str, Any], *, expiry: float | None = None
    ) -> None:
        """Queue a message with the context of a span of kind PRODUCER."""
        with _span("send", "send", channel, SpanKind.PRODUCER):
            await super().send(channel, inject(message), expiry=expiry)

    async def send_many(
        self, messages: Iterable[tuple[str, dict[str, Any]]], *, expiry: float | None = None
    ) -> None:
        """Queue several messages, all with the context of one span of kind PRODUCER."""
        letters = list(messages)
        channels = {channel for channel, _ in letters}
        channel = channels.pop() if len(channels) == 1 else ""
        with _span("send_many", "send", channel, SpanKind.PRODUCER) as span:
            span.set_attribute("messaging.batch.message_count", len(letters))
            traced = [(channel, inject(message)) for channel, message in letters]
            await super().send_many(traced, expiry=expiry)

    async def group_send(
        self,
        group: str,
        message: dict[str, Any],
        *,
        exclude: Iterable[str] = (),
        expiry: float | None = None,
    ) -> GroupSent:
        """Send to every member, with the context of one span of kind PRODUCER."""
        with _span("group_send", "send", group, SpanKind.PRODUCER):
            return await super().group_send(group, inject(message), exclude=exclude, expiry=expiry)

    send_group = group_send

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of one channel as it was sent: see ``TracedMessage``."""
        return _received(channel, await super().receive(channel))

    async def receive_async(
        self, channels: Iterable[str] | None, block: bool = True
    ) -> tuple[str, dict[str, Any]] | tuple[None, None]:
        """Return ``(channel, message)`` from whichever of the channels has one."""
        channel, message = await super().receive_async(channels, block)
        if channel is None or message is None:
            return None, None
        return channel, _received(channel, message)

    async def receive_within(
        self, channel: str, deadline: float | None, *, loop: HostLoop | None = None
    ) -> dict[str, Any] | None:
        """Return the next message of one channel, ``None`` if none came in time."""
        message = await super().receive_within(channel, deadline, loop=loop)
        return None if message is None else _received(channel, message)


class TracingConsumer:
    """Mixin for consumers of Channels 4: a message's handler runs in its trace.

    ::

        class Chat(TracingConsumer, AsyncJsonWebsocketConsumer): ...

    What does not come from the layer (the socket's own events) goes by untouched.
    """

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Run the handler of a message inside ``processing``."""
        handle = super().dispatch  # type: ignore[misc]  # the consumer's, next in line
        if not isinstance(message, TracedMessage):
            await handle(message)
            return
        with processing(message) as span:
            span.set_attribute("asgi_ipc.message.type", str(message.get("type", "")))
            await handle(message)


def _received(channel: str, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its carrier, received in the trace that it came with."""
    if CARRIER_KEY not in message:
        return message
    context = extract(message)
    # It begins when the message was there: to wait for ever is nobody's work.
    with _span("receive", "receive", channel, SpanKind.CONSUMER, context) as span:
        return TracedMessage(message, trace.set_span_in_context(span, context), channel)


@contextmanager
def _span(
    name: str, operation: str, destination: str, kind: SpanKind, context: Context | None = None
) -> Iterator[Span]:
    """Run a block inside a span with the attributes of the messaging conventions.

    Args:
        context: to run it in, with all that travelled; ``None``: the current one.
    """
    attributes: dict[str, str | bool] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": operation,
    }
    template = ""
    destination = text_of(destination) or ""
    if destination:
        template = _template(destination)
        attributes["messaging.destination.name"] = destination
        if template != destination:
            attributes["messaging.destination.template"] = template
            attributes["messaging.destination.temporary"] = True
    title = f"{name} {template}".rstrip()
    token = attach(get_current() if context is None else context)
    try:
        with trace.get_tracer("asgi_ipc").start_as_current_span(
            title, kind=kind, attributes=attributes
        ) as span:
            try:
                yield span
            except Exception as exc:
                span.set_attribute("error.type", type(exc).__qualname__)
                raise
    finally:
        detach(token)


def _template(name: str) -> str:
    """Return a name without what is random in it, so that spans of one kind have one name."""
    if "?" in name:
        return name.partition("?")[0] + "?*"
    if "!" not in name:
        return name
    kind, dot, _ = home_of(name).rpartition(".")
    return f"{kind}{dot}*!*"
