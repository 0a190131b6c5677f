"""Few series, whatever the names of the channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._operator.reading import Channel
from asgi_ipc.metrics._families import OTHER, pattern_of, shown

from .scraping import scrape

MakeLayer = Callable[..., AsyncIPCChannelLayer]


def test_the_number_of_series_is_bounded(make_layer: MakeLayer) -> None:
    """The deepest channels by name, what is random by pattern, the rest as one."""
    layer = make_layer()
    for number in range(30):
        for _ in range(1 + number % 10):
            layer.sync.send(f"queue.{number}", {})
        layer.sync.send(f"specific.{number:08}!abc", {})
        layer.sync.send(f"reply?{number}", {})
    found = scrape(layer.prefix, top_channels=4)
    depth = found.of_channels("channel_depth")
    assert depth.pop("specific.*!") == 30
    assert depth.pop("reply?*") == 30
    other = depth.pop(OTHER)
    assert sorted(depth) == ["queue.18", "queue.19", "queue.29", "queue.9"]
    assert other + sum(depth.values()) + 60 == found["messages_pending"]
    counted = found.of_channels("channel_sent_total")
    assert sorted(counted) == sorted(depth)


NAMES = st.from_regex(r"[a-d.]{1,3}(\?[a-z]{1,3}|[.][a-z]{1,3}!)?", fullmatch=True)


@given(st.dictionaries(NAMES, st.integers(0, 5), max_size=30), st.integers(0, 4))
def test_whatever_the_names_nothing_is_left_out(depths: dict[str, int], top: int) -> None:
    """Every queue is in exactly one series, and there are at most two times ``top`` and one."""
    queues = [Channel(name, depth, 9, 0, 0, 0, 0.0, (), None, ()) for name, depth in depths.items()]
    result = shown(queues, top)
    labels = [one.label for one in result]
    assert len(set(labels)) == len(labels) <= 2 * top + 1
    assert sorted(queue for one in result for queue in one.queues) == sorted(queues)
    by_name = [one.depth for one in result if one.label in depths]
    left_out = [one for one in result if one.label == OTHER]
    for queue in left_out[0].queues if left_out else ():
        if pattern_of(queue.name) == queue.name:
            assert all(queue.depth <= depth for depth in by_name)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("http.request", "http.request"),
        ("specific.9fJ2kQ!", "specific.*!"),
        ("daphne.response.AbCdEfGhIj!", "daphne.response.*!"),
        ("a!", "*!"),
        ("reply?AbCd", "reply?*"),
        ("a?", "a?*"),
    ],
)
def test_what_is_random_in_a_name_is_taken_out(name: str, pattern: str) -> None:
    """No pattern can be the name of a channel."""
    assert pattern_of(name) == pattern
