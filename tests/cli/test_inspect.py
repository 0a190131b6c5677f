"""The onlooker: consistent beside a running site, bounded, and never writing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import (
    AsyncIPCChannelLayer,
    ChannelFull,
)
from asgi_ipc._cli.documents import peek_document, stats_document
from asgi_ipc._cli.rates import Rates
from asgi_ipc._operator import survey
from asgi_ipc._operator.image import NoSite
from asgi_ipc._operator.inspect import Inspector
from asgi_ipc._operator.peek import members, peek
from asgi_ipc._shm import layout as L
from asgi_ipc.exceptions import SegmentError

from ..conftest import PATIENCE_S

if TYPE_CHECKING:
    from ..conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]

CHURN = """
layer = IPCChannelLayer(PREFIX, **SIZES)
say("ready")
n = 0
while True:
    channel = f"reply?{sys.argv[2]}.{n}"
    layer.send(channel, {"n": n})
    layer.receive([channel])
    n += 1
"""


@pytest.mark.parametrize("hold_s", [survey.HOLD_S, 0.0])
def test_totals_never_go_down(
    hold_s: float,
    make_layer: MakeLayer,
    start: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While records come and go under it, in one slice or in many, and never count twice."""
    monkeypatch.setattr(survey, "HOLD_S", hold_s)
    layer = make_layer()
    for n in range(300):
        layer.sync.send(f"c{n}", {})
    for n in range(2):
        start(CHURN, str(n)).expect("ready")
    before = (0, 0)
    with Inspector(layer.prefix, patience=PATIENCE_S) as inspector:
        for _ in range(10):
            totals = inspector.read().totals
            own = layer.sync.global_statistics()
            assert before <= (totals.sent, totals.received)
            assert totals.sent <= own["messages_count"]  # asked later, so not less
            before = (totals.sent, totals.received)


def test_a_slice_ends_when_its_time_is_over(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many channels there are, one hold of the lock sees a bounded number of them."""
    layer = make_layer()
    for n in range(500):
        layer.sync.send(f"c{n}", {})
    copy_some = survey._Walk._copy_some
    at_once: list[int] = []

    def counted(walk: survey._Walk) -> None:
        seen: list[int] = []
        copy, walk._copy = walk._copy, seen.append
        copy_some(walk)
        walk._copy = copy
        for record in seen:
            copy(record)
        at_once.append(len(seen))

    monkeypatch.setattr(survey._Walk, "_copy_some", counted)
    monkeypatch.setattr(survey, "HOLD_S", 0.0)
    with Inspector(layer.prefix) as inspector:
        reading = inspector.read()
    assert reading.totals.channels == 500
    assert sum(at_once) == 500
    assert max(at_once) <= survey._CLOCK_EVERY + 10  # and the rest of a bucket


def test_memory_adds_up(make_layer: MakeLayer) -> None:
    """Used and free are what the heap's extents say, whatever was sent and taken."""
    layer = make_layer(capacity=10_000)
    chance = random.Random(7)
    with Inspector(layer.prefix) as inspector:
        for _ in range(20):
            for _ in range(50):
                if chance.random() < 0.6:
                    size = chance.choice((10, 500, 5000, 50_000))
                    layer.sync.send(f"c{chance.randrange(5)}", {"x": bytes(size)})
                else:
                    layer.sync.receive(f"c{chance.randrange(5)}", 0)
            memory = inspector.read().memory[0]
            used, free = by_extents(inspector)
            assert memory.is_exact
            assert (memory.used, memory.free) == (used, free)
            assert memory.backed <= memory.size


def test_the_largest_free_piece_is_what_fits(make_layer: MakeLayer) -> None:
    """After everything was read nearly the whole segment is one piece."""
    layer = make_layer()
    with Inspector(layer.prefix) as inspector:
        largest = inspector.read().memory[0].largest_free
        assert layer._site.most_bytes - 65536 < largest
        message = {"x": bytes(500_000)}
        while inspector.read().memory[0].largest_free > 600_000:
            layer.sync.send("jobs", message)
        with pytest.raises(ChannelFull):
            layer.sync.send_many([("jobs", message)] * 2)


def by_extents(inspector: Inspector) -> tuple[int, int]:
    """Return used and free bytes, counted extent by extent in a copy."""
    copy = inspector.messages.copy()
    words, extent = copy.words, copy.heap_start
    quick = set()
    for index in range(L.QUICK_CLASSES):
        entry = words[L.QUICK + index]
        at = entry & L.OFFSET_MASK
        for _ in range(entry >> L.COUNT_SHIFT):
            quick.add(at)
            at = words[at + L.FREE_NEXT] & L.OFFSET_MASK
    used = 0
    while extent < words[L.HEAP_END]:
        granules = words[extent] & L.SIZE_MASK
        if extent not in quick and words[extent] >> L.KIND_SHIFT != L.EXTENT_FREE:
            used += granules * L.GRANULE_BYTES
        extent += L.GRANULE_WORDS * granules
    return used, 8 * (copy.heap_limit - copy.heap_start) - used


def test_it_cannot_write(make_layer: MakeLayer) -> None:
    """The memory is mapped read-only: a mistake would be an exception, not damage."""
    layer = make_layer()
    with Inspector(layer.prefix) as inspector:
        with pytest.raises(TypeError):
            inspector.messages.words[L.EPOCH] = 1
        with pytest.raises(TypeError):
            inspector.messages.memory[0:1] = b"x"


def test_it_follows_a_site_that_was_made_anew(make_layer: MakeLayer) -> None:
    """Deleted segments are noticed; there is nothing to read until there are new ones."""
    layer = make_layer()
    layer.sync.send("jobs", {})
    with Inspector(layer.prefix) as inspector:
        assert inspector.read().totals.pending == 1
        layer.unlink()
        assert inspector.is_deleted()
        with pytest.raises(NoSite):
            inspector.follow()
        again = make_layer()
        again.sync.send("other", {})
        again.sync.send("other", {})
        inspector.follow()
        assert inspector.read().totals.pending == 2
        layer.close_now()


def test_a_flush_in_the_middle_of_a_reading(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was half read is read again, and nothing of before is mixed in."""
    layer = make_layer()
    for n in range(200):
        layer.sync.send(f"c{n}", {})
    run = survey._Walk.run
    flushes = 0

    def run_and_flush(walk: survey._Walk) -> None:
        nonlocal flushes
        walk.image.transact(walk._slice)
        if not flushes:
            flushes += 1
            layer.sync.flush()
        run(walk)

    monkeypatch.setattr(survey, "HOLD_S", 0.0)
    monkeypatch.setattr(survey._Walk, "run", run_and_flush)
    with Inspector(layer.prefix) as inspector:
        totals = inspector.read().totals
    assert flushes == 1
    assert (totals.sent, totals.flushed, totals.pending, totals.channels) == (200, 200, 0, 0)


def test_any_bytes_are_an_error_and_not_a_crash(make_layer: MakeLayer) -> None:
    """Damaged segments are reported; nothing loops, nothing is read beyond the memory."""
    layer = make_layer()
    for n in range(40):
        layer.sync.send(f"home!{n % 5}", {"n": n})
        layer.sync.send(f"c{n % 3}", {"n": n})
        layer.sync.group_add("chat", f"home!{n % 5}")
    chance = random.Random(11)
    segments = (layer._site.messages.segment, layer._site.groups.segment)
    sound = [segment.memory[:] for segment in segments]
    outcomes: set[str] = set()
    for _ in range(500):
        segment = chance.choice(segments)
        first = chance.choice((L.EPOCH, L.BUCKETS, segment.heap_start))
        word = chance.randrange(first, segment.heap_start + 2000)
        segment.words[word] = chance.choice((0, 1, 4, 3 << 40, chance.getrandbits(64)))
        try:
            with Inspector(layer.prefix) as inspector:
                reading = inspector.read()
                for channel in ("home!", "home!1", "c1"):
                    json.dumps(peek_document("", channel, peek(inspector.messages, channel, 10)))
                members(inspector.groups, "chat", 10)
            json.dumps(stats_document(reading, Rates(), reading.channels, reading.groups, ()))
            outcomes.add("read")
        except SegmentError:
            outcomes.add("damaged")
        for one, before in zip(segments, sound, strict=True):
            one.memory[:] = before
    assert outcomes == {"read", "damaged"}
