"""Attributes, coroutine functions, names: what code written for Channels 4 finds."""

from __future__ import annotations

import inspect
import random
import re
from typing import Any

import pytest
from channels import exceptions as channels_exceptions
from channels.layers import BaseChannelLayer

from asgi_ipc import exceptions
from asgi_ipc.channels import IPCChannelLayer

from .conftest import MakeLayer

COROUTINES = [
    "send",
    "receive",
    "new_channel",
    "group_add",
    "group_discard",
    "group_send",
    "flush",
    "close",
]
OURS_ALONE = [
    "close_pools",
    "send_many",
    "group_channels",
    "group_count",
    "global_statistics",
    "channel_statistics",
]


def test_the_defaults_are_those_of_the_in_memory_layer(make_any: MakeLayer) -> None:
    """All options may be left out; the figures are the specification's."""
    layer = make_any()
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (60, 86400, 100)
    assert set(layer.extensions) >= {"groups", "flush"}
    assert bool(layer)
    assert layer.get_capacity("anything") == 100


@pytest.mark.parametrize("name", COROUTINES)
def test_operations_are_true_coroutine_functions(make_any: MakeLayer, name: str) -> None:
    """``async_to_sync`` and ``iscoroutinefunction`` see them as such."""
    assert inspect.iscoroutinefunction(getattr(make_any(), name))


@pytest.mark.parametrize("name", OURS_ALONE)
def test_what_the_peers_lack_is_a_coroutine_function_too(
    make_backend: MakeLayer, name: str
) -> None:
    """One rule for all of it."""
    assert inspect.iscoroutinefunction(getattr(make_backend(), name))


async def test_operations_return_nothing(make_any: MakeLayer) -> None:
    """But ``receive``, a dict, ``new_channel``, a str, and our ``group_send``, false counts."""
    layer = make_any()
    channel = await layer.new_channel()
    results = [await layer.send(channel, {"type": "a"}), await layer.group_add("g", channel)]
    sent = await layer.group_send("g", {"type": "b"})
    assert not sent
    assert sent in (None, (1, 0))
    results.append(await layer.group_discard("g", channel))
    assert type(channel) is str
    assert type(await layer.receive(channel)) is dict
    results += [await layer.flush(), await layer.close()]
    assert results == [None] * 5


def test_the_backend_is_a_channels_layer(make_backend: MakeLayer) -> None:
    """With everything of ``BaseChannelLayer``, the deprecated helpers included."""
    layer = make_backend(channel_capacity={"http.*": 7, re.compile(r"x\d"): 8})
    assert isinstance(layer, BaseChannelLayer)
    assert layer.extensions[:2] == ["groups", "flush"]
    assert isinstance(layer.extensions, list)
    assert layer.require_valid_channel_name("a.b!c") is True
    assert layer.require_valid_channel_name("a.b!", receive=True) is True
    assert layer.require_valid_group_name("a.b") is True
    assert layer.non_local_name("a.b!c") == "a.b!"
    assert layer.non_local_name("a.b") == "a.b"
    assert layer.match_type_and_length("a")
    assert not layer.match_type_and_length("a" * 100)
    assert layer.valid_channel_names(["a", "b!"], receive=True) is True
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert layer.valid_channel_name("a")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert layer.valid_group_name("a")
    with pytest.raises(TypeError):
        layer.require_valid_channel_name("a!b", receive=True)
    (pattern, capacity), *_ = layer.compile_capacities({"a*": 3})
    assert pattern.match("abc")
    assert capacity == 3


def test_every_name_of_the_base_class_is_there(make_backend: MakeLayer) -> None:
    """Third parties find what they find on any other layer."""
    layer = make_backend()
    for name in dir(BaseChannelLayer):
        assert hasattr(layer, name)


def test_the_exceptions_are_both_packages(make_backend: MakeLayer) -> None:
    """Reached through the instance, caught as Channels' or as ours."""
    layer = make_backend()
    for name in ("ChannelFull", "MessageTooLarge"):
        error = getattr(layer, name)
        assert issubclass(error, getattr(channels_exceptions, name))
        assert issubclass(error, getattr(exceptions, name))
        assert issubclass(error, getattr(type(layer), name))
        assert isinstance(error("anything", 1), Exception)


def test_channel_capacity_knows_globs_and_regexes(make_ours: MakeLayer) -> None:
    """On the full name; the first match wins; a regex is anchored at its start only."""
    layer = make_ours(
        channel_capacity={"chat.*!vip*": 500, "chat.*": 5, re.compile(r"job\d"): 9, "job*": 2}
    )
    names = ["chat.x!vip1", "chat.x!a", "job1.more", "jobs", "other", "my.chat.x"]
    assert [layer.get_capacity(name) for name in names] == [500, 5, 9, 2, 100, 100]


GOOD_CHANNELS = ["a", "A-b_c.9", "a!b", "a!", "specific.x!abc", "x" * 99]
BAD_CHANNELS: list[Any] = ["", "a b", "a/b", "é", "!a", "a!b!c", "x" * 100, "a:b", None, 3, b"a"]
BAD_GROUPS: list[Any] = ["", "a b", "a!b", "a!", "é", "x" * 100, None, 3, b"a"]


@pytest.mark.parametrize("name", GOOD_CHANNELS)
async def test_valid_channel_names_are_accepted(make_any: MakeLayer, name: str) -> None:
    """Up to 99 characters; one exclamation mark."""
    layer = make_any()
    await layer.send(name, {"n": 1})
    assert await layer.receive(name) == {"n": 1}
    await layer.group_add("g", name)
    await layer.group_discard("g", name)


@pytest.mark.parametrize("name", BAD_CHANNELS, ids=repr)
async def test_bad_channel_names_are_type_errors(make_any: MakeLayer, name: Any) -> None:
    """From each operation that takes a channel."""
    layer = make_any()
    for operation in (
        layer.send(name, {}),
        layer.receive(name),
        layer.group_add("g", name),
        layer.group_discard("g", name),
    ):
        with pytest.raises(TypeError):
            await operation


@pytest.mark.parametrize("name", BAD_GROUPS, ids=repr)
async def test_bad_group_names_are_type_errors(make_any: MakeLayer, name: Any) -> None:
    """From each operation that takes a group."""
    layer = make_any()
    for operation in (
        layer.group_add(name, "c"),
        layer.group_discard(name, "c"),
        layer.group_send(name, {}),
    ):
        with pytest.raises(TypeError):
            await operation


@pytest.mark.parametrize("name", ["a?b", "a?", "a\n", "a!b\n", "a!٣", "a!é"])
async def test_the_backend_is_as_strict_as_the_specification(
    make_backend: MakeLayer, name: str
) -> None:
    """ASCII, no single-reader channels, no trailing newline."""
    layer = make_backend()
    for operation in (layer.send(name, {}), layer.receive(name), layer.group_add("g", name)):
        with pytest.raises(TypeError):
            await operation
    with pytest.raises(TypeError):
        layer.require_valid_channel_name(name)


async def test_new_channel_is_unique_and_process_specific(make_any: MakeLayer) -> None:
    """``prefix.<process part>!<random>``, of one home within a loop."""
    layer = make_any()
    names = [await layer.new_channel("chat") for _ in range(200)]
    assert len(set(names)) == 200
    assert all(re.fullmatch(r"chat\.[a-zA-Z0-9]+![a-zA-Z0-9]+", name) for name in names)
    assert len({name.split("!")[0] for name in names}) == 1


async def test_new_channel_has_the_default_prefix_of_the_peers(make_ours: MakeLayer) -> None:
    """By position and by name."""
    layer = make_ours()
    assert (await layer.new_channel()).startswith("specific.")
    assert (await layer.new_channel(prefix="other")).startswith("other.")


async def test_new_channel_does_not_follow_the_random_module(make_ours: MakeLayer) -> None:
    """Two processes that call ``random.seed(0)`` do not share names."""
    layer = make_ours()
    state = random.getstate()
    try:
        random.seed(0)
        first = await layer.new_channel()
        random.seed(0)
        assert await layer.new_channel() != first
    finally:
        random.setstate(state)


async def test_two_layers_have_two_process_parts(make_backend: MakeLayer) -> None:
    """Each object is the only reader of its own homes."""
    one, two = make_backend(), make_backend()
    parts = {(await layer.new_channel()).split("!")[0] for layer in (one, two)}
    assert len(parts) == 2


def test_the_backend_is_configured_by_keyword_only_options_too(make_backend: MakeLayer) -> None:
    """Everything a CONFIG may hold."""
    layer = make_backend(
        expiry=1,
        group_expiry=2,
        capacity=3,
        channel_capacity={},
        max_message_bytes=1 << 20,
        lock_timeout=5.0,
        on_drop=None,
    )
    assert isinstance(layer, IPCChannelLayer)
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (1, 2, 3)
