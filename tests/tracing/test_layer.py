"""Messages carry the sender's context, and arrive as they were sent."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import messaging_attributes as conventions
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer
from asgi_ipc.exceptions import InvalidMessage, InvalidName
from asgi_ipc.tracing import (
    CARRIER_KEY,
    TracedMessage,
    TracingLayer,
    extract,
    inject,
    processing,
)
from asgi_ipc.worker import Message, Worker
from tests.conftest import _close_and_check

from .conftest import Spans, ids

MESSAGE = {"type": "greet", "text": "hello", "n": 1, "inner": {"a": [1, None, b"x"]}}
tracer = trace.get_tracer("test")


@pytest.fixture
def layer(prefix: str) -> Iterator[TracingLayer]:
    """A layer that traces."""
    layer = TracingLayer(prefix, capacity=5, message_memory=8 << 20, group_memory=4 << 20)
    yield layer
    _close_and_check([layer])


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_one_trace_from_the_send_to_the_handler(layer: TracingLayer, spans: Spans) -> None:
    """Each span is below the one before it; PRODUCER, then CONSUMER twice."""
    with tracer.start_as_current_span("request"):
        await layer.send("greetings", MESSAGE)
    message = await layer.receive("greetings")
    with processing(message), tracer.start_as_current_span("query"):
        pass
    expected = ["request", "send greetings", "receive greetings", "process greetings", "query"]
    assert [span.name for span in spans.all()] == expected
    assert [span.kind for span in spans.all()] == [
        SpanKind.INTERNAL,
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CONSUMER,
        SpanKind.INTERNAL,
    ]
    parent = None
    for span in spans.all():
        trace_id, span_id, its_parent = ids(span)
        assert trace_id == ids(spans.all()[0])[0]
        assert its_parent == parent
        parent = span_id


async def test_a_message_arrives_as_it_was_sent(layer: TracingLayer, spans: Spans) -> None:
    """By every way to receive it; what was given to send is not changed either."""
    given = dict(MESSAGE)
    for _ in range(4):
        await layer.send("a", given)
    assert given == MESSAGE
    received: list[dict[str, Any] | None] = [
        await layer.receive("a"),
        (await layer.receive_async(["a", "b"]))[1],
        await layer.receive_within("a", None),
        layer.sync.receive("a", 0),
    ]
    for message in received:
        assert message == MESSAGE
        assert isinstance(message, TracedMessage)
        assert list(message) == list(MESSAGE)
    assert [span.kind for span in spans.all()].count(SpanKind.CONSUMER) == 4


async def test_a_batch_shares_one_context(layer: TracingLayer, spans: Spans) -> None:
    """One span for all of it; it has a destination only if there is one."""
    await layer.send_many([("a", {"n": 1}), ("a", {"n": 2})])
    await layer.send_many([("a", {"n": 3}), ("b", {"n": 4})])
    first, other = spans.named("send_many a"), spans.named("send_many")
    assert attributes(first)[conventions.MESSAGING_BATCH_MESSAGE_COUNT] == 2
    assert conventions.MESSAGING_DESTINATION_NAME not in attributes(other)
    parents = []
    for channel in ("a", "a", "a", "b"):
        await layer.receive(channel)
        parents.append(ids(spans.all()[-1])[2])
    assert parents == [ids(first)[1]] * 2 + [ids(other)[1]] * 2


async def test_a_group_message_is_one_trace_for_all_members(
    layer: TracingLayer, spans: Spans
) -> None:
    """Members under one home each get the context; the excluded one nothing."""
    members = [await layer.new_channel() for _ in range(3)]
    for member in (*members, "ordinary"):
        await layer.group_add("room", member)
    await layer.group_send("room", MESSAGE, exclude=members[:1])
    await layer.send_group("room", MESSAGE, exclude=members)
    sender, second = [span for span in spans.all() if span.name == "group_send room"]
    for channel in (*members[1:], "ordinary"):
        assert await layer.receive(channel) == MESSAGE
        assert ids(spans.all()[-1])[2] == ids(sender)[1]
    assert await layer.receive("ordinary") == MESSAGE
    assert ids(spans.all()[-1])[2] == ids(second)[1]


async def test_messages_from_senders_without_tracing_are_accepted(
    layer: TracingLayer, make_layer: Callable[..., AsyncIPCChannelLayer], spans: Spans
) -> None:
    """As plain as they are, without a span; and what they receive tells its key."""
    plain = make_layer()
    await plain.send("a", MESSAGE)
    message = await layer.receive("a")
    assert message == MESSAGE
    assert type(message) is dict
    assert not spans.all()
    with tracer.start_as_current_span("here") as here, processing(message, "a"):
        pass
    assert spans.named("process a").parent == here.get_span_context()
    await layer.send("a", MESSAGE)
    received = await plain.receive("a")
    assert set(received) == {*MESSAGE, CARRIER_KEY}
    assert extract(received) != context.Context()
    assert received == MESSAGE


async def test_nothing_is_received_from_empty_channels(layer: TracingLayer, spans: Spans) -> None:
    """And no span says that something was."""
    assert await layer.receive_async(["a"], block=False) == (None, None)
    assert layer.sync.receive("a", 0) is None
    assert not spans.all()


async def test_cancelling_a_receive_loses_nothing(layer: TracingLayer, spans: Spans) -> None:
    """As in the layer below."""
    for number in range(20):
        task = asyncio.create_task(layer.receive("a"))
        await asyncio.sleep(0)
        await layer.send("a", {"n": number})
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task == {"n": number}
            continue
        assert await layer.receive("a") == {"n": number}


async def test_a_refused_send_is_an_error_of_its_span(layer: TracingLayer, spans: Spans) -> None:
    """With the error's type; and the caller gets the error."""
    for _ in range(5):
        await layer.send("full", {})
    spans.exporter.clear()
    with pytest.raises(ChannelFull):
        await layer.send("full", {})
    span = spans.named("send full")
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)[error_attributes.ERROR_TYPE] == "ChannelFull"


@pytest.mark.parametrize(
    ("channel", "message", "error"),
    [("no spaces", {}, InvalidName), (7, {}, InvalidName), ("a", [], InvalidMessage)],
)
async def test_wrong_arguments_raise_what_the_layer_raises(
    layer: TracingLayer, spans: Spans, channel: Any, message: Any, error: type[Exception]
) -> None:
    """Tracing looks at nothing before the layer does."""
    with pytest.raises(error):
        await layer.send(channel, message)
    with pytest.raises(error):
        await layer.send_many([(channel, message)])


@pytest.mark.parametrize(
    ("channel", "template"),
    [
        ("specific.9fJ2kQ!x", "specific.*!*"),
        ("a!b", "*!*"),
        ("reply?xyz", "reply?*"),
    ],
)
async def test_spans_follow_the_messaging_conventions(
    layer: TracingLayer, spans: Spans, channel: str, template: str
) -> None:
    """Names without what is random in them; the full name is an attribute."""
    await layer.send(channel, {})
    span = spans.named(f"send {template}")
    assert attributes(span) == {
        conventions.MESSAGING_SYSTEM: "asgi_ipc",
        conventions.MESSAGING_OPERATION_NAME: "send",
        conventions.MESSAGING_OPERATION_TYPE: "send",
        conventions.MESSAGING_DESTINATION_NAME: channel,
        conventions.MESSAGING_DESTINATION_TEMPLATE: template,
        conventions.MESSAGING_DESTINATION_TEMPORARY: True,
    }


async def test_baggage_travels_too(layer: TracingLayer, spans: Spans) -> None:
    """Whatever the propagators carry is there while a message is processed."""
    token = context.attach(baggage.set_baggage("user", "ann"))
    await layer.send("a", {})
    context.detach(token)
    message = await layer.receive("a")
    assert baggage.get_baggage("user") is None
    with processing(message):
        assert baggage.get_baggage("user") == "ann"


def test_a_carrier_that_cannot_be_read_does_no_harm(spans: Spans) -> None:
    """Whoever sent it: the message is handed on without it."""
    for carrier in ({"traceparent": "nonsense"}, {"traceparent": 7}, "text", None, [1]):
        message = {"n": 1, CARRIER_KEY: carrier}
        extract(message)
        assert message == {"n": 1}


def test_there_is_nothing_to_inject_outside_of_a_trace() -> None:
    """The very message goes on, and what is no message is left to the layer."""
    message = {"n": 1}
    assert inject(message) is message
    with tracer.start_as_current_span("here"):
        no_message: Any = [1]
        assert inject(no_message) is no_message
        assert inject(message) == {"n": 1, CARRIER_KEY: inject({})[CARRIER_KEY]}


async def test_a_workers_handler_can_join_the_trace(layer: TracingLayer, spans: Spans) -> None:
    """What ``asgi_ipc.worker`` hands to it is the message with its context."""
    worker = Worker(layer)

    @worker.on("job")
    async def job(message: Message) -> None:
        with processing(message.content):
            assert message.content == MESSAGE
        worker.stop()

    await layer.send("job", MESSAGE)
    await worker.serve()
    assert ids(spans.named("process job"))[0] == ids(spans.named("send job"))[0]


def test_the_blocking_layer_carries_what_it_is_given(
    make_sync: Callable[..., IPCChannelLayer], spans: Spans
) -> None:
    """By hand: inject into what is sent, process what is received."""
    layer = make_sync()
    with tracer.start_as_current_span("view"):
        layer.send("a", inject(MESSAGE))
    channel, message = layer.receive(["a"])
    assert channel is not None
    assert message is not None
    with processing(message, channel):
        assert message == MESSAGE
    assert ids(spans.named("process a"))[2] == ids(spans.named("view"))[1]


async def test_what_processing_raises_is_recorded_and_goes_on(
    layer: TracingLayer, spans: Spans
) -> None:
    """A handler that fails is a failed span."""
    await layer.send("a", {})
    message = await layer.receive("a")
    with pytest.raises(ZeroDivisionError), processing(message):
        raise ZeroDivisionError
    assert spans.named("process a").status.status_code is StatusCode.ERROR


def test_without_an_sdk_no_message_is_changed(prefix: str) -> None:
    """The extra alone costs a message nothing."""
    code = """
import sys
from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.tracing import TracingLayer
layer = TracingLayer(sys.argv[1], message_memory=1 << 20, group_memory=1 << 20)
layer.sync.send("a", {"n": 1})
layer.sync.send("a", {"n": 2})
plain = AsyncIPCChannelLayer(sys.argv[1], message_memory=1 << 20, group_memory=1 << 20)
assert plain.sync.receive("a") == {"n": 1}
assert type(layer.sync.receive("a")) is dict
"""
    subprocess.run([sys.executable, "-c", code, prefix], check=True, timeout=60)
