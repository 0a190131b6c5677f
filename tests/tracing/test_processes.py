"""One trace over two real processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace

from asgi_ipc.tracing import TracingLayer
from tests.conftest import Child, _close_and_check

from .conftest import Spans, ids

Start = Callable[..., Child]

READER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from asgi_ipc.tracing import TracingLayer, processing

exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

async def main():
    layer = TracingLayer(PREFIX, **SIZES)
    say("ready")
    message = await layer.receive("questions")
    with processing(message):
        with trace.get_tracer("reader").start_as_current_span("think"):
            answer = {"answer": message["question"] * 2}
        await layer.send(message["reply_to"], answer)
    await layer.close()

asyncio.run(main())
for span in exporter.get_finished_spans():
    say(span.to_json(indent=None))
"""


@pytest.fixture
def layer(prefix: str) -> Iterator[TracingLayer]:
    """This process's end."""
    layer = TracingLayer(prefix, message_memory=8 << 20, group_memory=4 << 20)
    yield layer
    _close_and_check([layer])


async def test_a_question_and_its_answer_are_one_trace(
    layer: TracingLayer, start: Start, spans: Spans
) -> None:
    """There and back: every span of both processes is below the one that caused it."""
    reader = start(READER)
    reader.expect("ready")
    mine = await layer.new_channel()
    with trace.get_tracer("asker").start_as_current_span("ask"):
        await layer.send("questions", {"question": 21, "reply_to": mine})
    answer = await layer.receive(mine)
    assert answer == {"answer": 42}
    theirs = [json.loads(line) for line in reader.end().splitlines()]
    parents: dict[str, str | None] = {}
    names: dict[str, str] = {}
    traces: set[str] = set()
    for span in spans.all():
        trace_id, span_id, parent = ids(span)
        parents[span_id], names[span_id] = parent, span.name
        traces.add(trace_id)
    for one in theirs:
        span_id = one["context"]["span_id"]
        parents[span_id], names[span_id] = one["parent_id"], one["name"]
        traces.add(one["context"]["trace_id"])
    assert len(traces) == 1
    chain = []
    here: str | None = ids(spans.all()[-1])[1]
    while here is not None:
        chain.append(names.pop(here))
        here = parents[here]
    assert chain == [
        "receive specific.*!*",
        "send specific.*!*",
        "process questions",
        "receive questions",
        "send questions",
        "ask",
    ]
    assert list(names.values()) == ["think"]
    assert {one["kind"] for one in theirs if one["name"] != "think"} == {
        "SpanKind.PRODUCER",
        "SpanKind.CONSUMER",
    }
