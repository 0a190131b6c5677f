"""Spans of this process, kept in memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from asgiref.sync import sync_to_async
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Spans:
    """What was recorded since the test began."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.exporter = exporter

    def all(self) -> list[ReadableSpan]:
        """Return the spans that have ended, in the order in which they began."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> ReadableSpan:
        """Return the one span of a name."""
        (span,) = [span for span in self.all() if span.name == name]
        return span


@pytest.fixture(scope="session", autouse=True)
def before_all_tests() -> None:
    """Start the one thread that asgiref keeps for sync code before any test is watched.

    And let the collection after each test pass over what was imported, most of its time.
    """
    asyncio.run(sync_to_async(int)())
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """Where the one provider that a process can have puts its spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Spans]:
    """The spans of this test."""
    exporter.clear()
    yield Spans(exporter)
    exporter.clear()


def ids(span: ReadableSpan) -> tuple[str, str, str | None]:
    """Return a span's trace, its own id and its parent's, as its JSON has them."""
    context = span.get_span_context()
    assert context is not None
    parent = None if span.parent is None else f"0x{span.parent.span_id:016x}"
    return f"0x{context.trace_id:032x}", f"0x{context.span_id:016x}", parent
