"""Capacity patterns: globs and compiled regexes, the first match wins."""

from __future__ import annotations

import re
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.capacity import check_capacity, compile_capacities


def capacity_of(name: str, patterns: dict[Any, int], default: int = 100) -> int:
    for pattern, capacity in compile_capacities(patterns):
        if pattern.match(name):
            return capacity
    return default


@pytest.mark.parametrize(
    ("name", "capacity"),
    [
        ("http.request", 200),
        ("http.request.body", 100),
        ("http.response!abc", 10),
        ("http.disconnect", 10),
        ("websocket.receive", 7),
        ("other", 100),
    ],
)
def test_a_name_has_the_capacity_of_its_pattern(name: str, capacity: int) -> None:
    """Globs match the whole name, regexes its beginning."""
    patterns = {
        "http.request": 200,
        "http.response!*": 10,
        "http.d?sconnect": 10,
        re.compile(r"websocket\.(rec|conn)"): 7,
    }
    assert capacity_of(name, patterns) == capacity


def test_the_first_pattern_that_matches_wins() -> None:
    """The order in which the patterns were given decides."""
    assert capacity_of("a.b", {"a.*": 1, "*": 2, "a.b": 3}) == 1
    assert capacity_of("a.b", {"a.b": 3, "a.*": 1}) == 3


def test_no_patterns_means_the_default() -> None:
    """``None`` and ``{}`` compile to nothing."""
    assert compile_capacities(None) == compile_capacities({}) == []


@pytest.mark.parametrize("pattern", [3, None, b"a*", ("a",)])
def test_a_key_that_is_no_pattern_is_refused(pattern: Any) -> None:
    """Only globs and compiled regexes are patterns."""
    with pytest.raises(TypeError, match="globs or compiled regexes"):
        compile_capacities({pattern: 3})


@pytest.mark.parametrize("capacity", ["3", 2.5, None, True])
def test_a_capacity_that_is_no_int_is_refused(capacity: Any) -> None:
    """The refusal says which setting it is."""
    with pytest.raises(TypeError, match="'a\\*'"):
        compile_capacities({"a*": capacity})
    with pytest.raises(TypeError, match="capacity must be an int"):
        check_capacity(capacity, "capacity")


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    """A channel that may hold nothing is a mistake."""
    with pytest.raises(ValueError, match="at least 1"):
        compile_capacities({"a*": capacity})


async def test_the_layer_uses_the_patterns(make_layer: Any) -> None:
    """``get_capacity`` and ``send`` agree."""
    layer: AsyncIPCChannelLayer = make_layer(capacity=3, channel_capacity={"small.*": 1})
    assert layer.get_capacity("small.x") == 1
    assert layer.get_capacity("other") == 3
    await layer.send("small.x", {})
    with pytest.raises(layer.ChannelFull, match="1 of 1"):
        await layer.send("small.x", {})
    for _ in range(3):
        await layer.send("other", {})
    with pytest.raises(layer.ChannelFull, match="3 of 3"):
        await layer.send("other", {})
