"""Messages: what goes through, capacity, expiry, order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from typing import Any

import pytest
from channels import exceptions as channels_exceptions

from asgi_ipc import exceptions
from tests.conftest import Clock

from .conftest import MakeLayer, full_error

VALUES: list[Any] = [
    b"",
    b"\x00\xff",
    "",
    "Ünïcödé \N{SNOWMAN} \N{GRINNING FACE}",
    0,
    -(2**63),
    2**63 - 1,
    2**64 - 1,
    0.1,
    math.inf,
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": {"c": None}}},
    True,
    False,
    None,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_values_come_back_as_they_went(make_any: MakeLayer, value: Any) -> None:
    """With their types."""
    layer = make_any()
    await layer.send("c", {"type": "t", "value": value})
    got = (await layer.receive("c"))["value"]
    assert got == value
    assert type(got) is type(value)


async def test_a_tuple_becomes_a_list(make_ours: MakeLayer) -> None:
    """As the specification's encoding has it."""
    layer = make_ours()
    await layer.send("c", {"value": (1, (2, 3))})
    assert await layer.receive("c") == {"value": [1, [2, 3]]}


async def test_an_empty_message_arrives(make_any: MakeLayer) -> None:
    """Unlike with channels_redis."""
    layer = make_any()
    await layer.send("c", {})
    await layer.group_add("g", "c")
    await layer.group_send("g", {})
    assert [await layer.receive("c"), await layer.receive("c")] == [{}, {}]


async def test_a_megabyte_arrives(make_any: MakeLayer) -> None:
    """Directly and through a group."""
    layer = make_any()
    channel = await layer.new_channel()
    body = os.urandom(1 << 20)
    await layer.group_add("g", channel)
    await layer.send(channel, {"body": body})
    await layer.group_send("g", {"body": body})
    assert [(await layer.receive(channel))["body"] for _ in range(2)] == [body, body]


@pytest.mark.parametrize("message", [None, [], "text", b"", 1, ("type", "a")], ids=repr)
async def test_a_message_that_is_no_dict_is_an_assertion_error(
    make_any: MakeLayer, message: Any
) -> None:
    """From ``send`` and ``group_send``."""
    layer = make_any()
    with pytest.raises(AssertionError):
        await layer.send("c", message)
    with pytest.raises(AssertionError):
        await layer.group_send("g", message)


async def test_the_reserved_key_is_refused(make_any: MakeLayer) -> None:
    """``__asgi_channel__`` belongs to the layers."""
    with pytest.raises(AssertionError):
        await make_any().send("c", {"__asgi_channel__": "x"})


async def test_a_value_that_cannot_be_carried_is_refused_on_send(make_ours: MakeLayer) -> None:
    """Its path is named and nothing is sent."""
    layer = make_ours()
    with pytest.raises(TypeError, match="user"):
        await layer.send("c", {"type": "t", "user": object()})
    await layer.send("c", {"n": 1})
    assert await layer.receive("c") == {"n": 1}


async def test_messages_are_never_shared(make_any: MakeLayer) -> None:
    """Neither sender and receiver nor the members of a group have the same object."""
    layer = make_any()
    message: dict[str, Any] = {"list": [1], "dict": {"a": 1}}
    for channel in ("a", "b"):
        await layer.group_add("g", channel)
    await layer.send("a", message)
    await layer.group_send("g", message)
    message["list"].append(2)
    got = [await layer.receive(channel) for channel in ("a", "a", "b")]
    for one in got:
        assert one == {"list": [1], "dict": {"a": 1}}
        one["list"].append(3)
        one["dict"]["b"] = 2
        one["new"] = True
    assert message == {"list": [1, 2], "dict": {"a": 1}}


# -- capacity ------------------------------------------------------------------------------


async def test_a_full_channel_raises(make_any: MakeLayer) -> None:
    """And takes one more for each that was received."""
    layer = make_any(capacity=3)
    for number in range(3):
        await layer.send("c", {"n": number})
    with pytest.raises(full_error(layer)):
        await layer.send("c", {"n": 3})
    assert await layer.receive("c") == {"n": 0}
    await layer.send("c", {"n": 4})
    with pytest.raises(full_error(layer)):
        await layer.send("c", {"n": 5})
    assert [(await layer.receive("c"))["n"] for _ in range(3)] == [1, 2, 4]


async def test_capacity_counts_per_full_name(make_any: MakeLayer) -> None:
    """One slow websocket does not fill its neighbours."""
    layer = make_any(capacity=2)
    slow, other = await layer.new_channel(), await layer.new_channel()
    for number in range(2):
        await layer.send(slow, {"n": number})
    with pytest.raises(full_error(layer)):
        await layer.send(slow, {"n": 2})
    for number in range(2):
        await layer.send(other, {"n": number})
    assert await layer.receive(other) == {"n": 0}
    assert await layer.receive(slow) == {"n": 0}


async def test_capacity_still_holds_while_a_neighbour_drains_the_home(make_ours: MakeLayer) -> None:
    """What waits in the process for its reader counts as much as what waits in memory."""
    layer = make_ours(capacity=2)
    slow, quick = "x.y!slow", "x.y!quick"
    for number in range(2):
        await layer.send(slow, {"n": number})
        await layer.send(quick, {"n": number})
    assert [(await layer.receive(quick))["n"] for _ in range(2)] == [0, 1]
    with pytest.raises(full_error(layer)):
        await layer.send(slow, {"n": 2})
    assert [(await layer.receive(slow))["n"] for _ in range(2)] == [0, 1]
    await asyncio.sleep(0)  # what was taken is reported in the loop's next round
    await layer.send(slow, {"n": 3})
    assert await layer.receive(slow) == {"n": 3}


async def test_the_error_says_what_is_full(make_backend: MakeLayer) -> None:
    """Channel, depth and capacity, for Channels' class as for ours."""
    layer = make_backend(channel_capacity={"chat.*": 1})
    await layer.send("chat.a!b", {})
    with pytest.raises(channels_exceptions.ChannelFull, match=r"chat\.a!b.*1 of 1") as caught:
        await layer.send("chat.a!b", {})
    error: Any = caught.value
    assert isinstance(error, exceptions.ChannelFull)
    assert (error.channel, error.depth, error.capacity) == ("chat.a!b", 1, 1)


async def test_a_message_too_large_is_channels_error_too(make_backend: MakeLayer) -> None:
    """From each operation that sends."""
    layer = make_backend(max_message_bytes=1000)
    message = {"body": bytes(2000)}
    await layer.group_add("g", "c")
    for operation in (
        layer.send("c", message),
        layer.group_send("g", message),
        layer.send_many([("c", message)]),
    ):
        with pytest.raises(channels_exceptions.MessageTooLarge) as caught:
            await operation
        assert isinstance(caught.value, exceptions.MessageTooLarge)
        assert caught.value.limit_bytes == 1000


async def test_full_memory_is_channels_error_too(make_backend: MakeLayer) -> None:
    """A channel whose capacity is not used up; after a flush there is room again."""
    layer = make_backend(capacity=10_000)

    async def fill() -> None:
        while True:
            await layer.send("c", {"body": bytes(100_000)})

    with pytest.raises(channels_exceptions.ChannelFull, match="memory"):
        await fill()
    await layer.flush()
    await layer.send("c", {"n": 1})
    assert await layer.receive("c") == {"n": 1}


# -- expiry --------------------------------------------------------------------------------


async def test_an_expired_message_is_not_received(make_any: MakeLayer, every_clock: Clock) -> None:
    """The younger one behind it is."""
    layer = make_any(expiry=10)
    await layer.send("c", {"n": 1})
    every_clock.advance(6)
    await layer.send("c", {"n": 2})
    every_clock.advance(6)
    assert await layer.receive("c") == {"n": 2}


@pytest.mark.parametrize("channel", ["c", "x.y!a"])
async def test_expired_messages_do_not_count_against_capacity(
    make_ours: MakeLayer, clock: Clock, channel: str
) -> None:
    """The in-memory layer counts them until somebody receives."""
    layer = make_ours(capacity=2, expiry=10)
    for number in range(2):
        await layer.send(channel, {"n": number})
    clock.advance(11)
    for number in range(2, 4):
        await layer.send(channel, {"n": number})
    assert [(await layer.receive(channel))["n"] for _ in range(2)] == [2, 3]


@pytest.mark.parametrize("channel", ["c", "x.y!a"])
async def test_a_message_may_have_an_expiry_of_its_own(
    make_ours: MakeLayer, clock: Clock, channel: str
) -> None:
    """Shorter or longer than the layer's; on ``send``, ``send_many`` and ``group_send``."""
    layer = make_ours(expiry=10)
    await layer.group_add("g", channel)
    for expiry, n in ((5, 0), (20, 1), (None, 2)):
        await layer.send(channel, {"send": n}, expiry=expiry)
        await layer.send_many([(channel, {"many": n})], expiry=expiry)
        await layer.group_send("g", {"group": n}, expiry=expiry)
    clock.advance(6)
    kept = [await layer.receive(channel) for _ in range(3)]
    assert kept == [{"send": 1}, {"many": 1}, {"group": 1}]
    clock.advance(6)
    await layer.send(channel, {"last": True})
    assert await layer.receive(channel) == {"last": True}


@pytest.mark.parametrize("expiry", [0, -1, math.nan])
async def test_an_expiry_must_be_positive(make_ours: MakeLayer, expiry: float) -> None:
    """Zero would be a message that nobody can receive."""
    layer = make_ours()
    await layer.group_add("g", "c")
    for operation in (
        layer.send("c", {}, expiry=expiry),
        layer.send_many([("c", {})], expiry=expiry),
        layer.group_send("g", {}, expiry=expiry),
    ):
        with pytest.raises(ValueError, match="expiry"):
            await operation


# -- order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["c", "x.y!a"])
async def test_first_in_first_out(make_any: MakeLayer, channel: str) -> None:
    """Direct and group messages of one sender alike."""
    layer = make_any(capacity=1000)
    await layer.group_add("g", channel)
    for number in range(300):
        if number % 3 == 0:
            await layer.group_send("g", {"n": number})
        else:
            await layer.send(channel, {"n": number})
    assert [(await layer.receive(channel))["n"] for _ in range(300)] == list(range(300))


async def test_order_holds_for_each_of_many_interleaved_receivers(make_ours: MakeLayer) -> None:
    """Fifty names of one home, their readers running all at once, some slower than others."""
    layer, sender = make_ours(capacity=1000), make_ours(capacity=1000)
    names = [await layer.new_channel() for _ in range(50)]
    for name in names:
        await layer.group_add("g", name)

    async def read(number: int, name: str) -> list[int]:
        got = []
        for _ in range(40):
            got.append((await layer.receive(name))["n"])
            for _ in range(number % 4):
                await asyncio.sleep(0)
        return got

    readers = [asyncio.create_task(read(*pair)) for pair in enumerate(names)]
    for number in range(40):
        if number % 2:
            await sender.group_send("g", {"n": number})
        else:
            await sender.send_many([(name, {"n": number}) for name in names])
        if number % 5 == 0:
            await asyncio.sleep(0)
    assert await asyncio.gather(*readers) == [list(range(40))] * 50


# -- send_many -----------------------------------------------------------------------------


async def test_send_many_is_all_or_nothing(make_ours: MakeLayer) -> None:
    """One without room, one with a bad name, one with a bad value: none was sent."""
    layer = make_ours(capacity=2)
    await layer.send("full", {"n": 0})
    await layer.send("full", {"n": 1})
    refused: list[tuple[list[tuple[str, Any]], type[Exception]]] = [
        ([("a", {}), ("full", {}), ("b", {})], full_error(layer)),
        ([("a", {}), ("a", {}), ("a", {})], full_error(layer)),
        ([("x.y!a", {}), ("x.y!b", {}), ("x.y!a", {}), ("x.y!a", {})], full_error(layer)),
        ([("a", {}), ("a b", {})], TypeError),
        ([("a", {}), ("b", {"x": object()})], TypeError),
        ([("a", {}), ("b", [])], AssertionError),
    ]
    for letters, error in refused:
        with pytest.raises(error):
            await layer.send_many(letters)
    for channel in ("a", "b", "x.y!"):
        assert await layer.receive_async([channel], block=False) == (None, None)
    assert (await layer.receive("full"), await layer.receive("full")) == ({"n": 0}, {"n": 1})


async def test_send_many_keeps_the_order_and_wakes_everybody(make_ours: MakeLayer) -> None:
    """Of forty messages and of more."""
    layer, sender = make_ours(capacity=200), make_ours(capacity=200)
    names = [await layer.new_channel() for _ in range(5)]
    for count in (0, 1, 40, 100):
        receives = [asyncio.create_task(layer.receive(name)) for name in names]
        await asyncio.sleep(0)
        await sender.send_many((names[n % 5], {"n": n}) for n in range(count))
        expected = {name: list(range(k, count, 5)) for k, name in enumerate(names)}
        for name, receive in zip(names, receives, strict=True):
            got = []
            if expected[name]:
                got.append((await receive)["n"])
            else:
                receive.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await receive
            while len(got) < len(expected[name]):
                got.append((await layer.receive(name))["n"])
            assert got == expected[name]


async def test_send_many_raises_channels_error(make_backend: MakeLayer) -> None:
    """With the channel that had no room."""
    layer = make_backend(capacity=1)
    with pytest.raises(channels_exceptions.ChannelFull) as caught:
        await layer.send_many([("a", {}), ("a", {})])
    error: Any = caught.value
    assert error.channel == "a"
