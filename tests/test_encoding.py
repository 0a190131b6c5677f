"""Values that msgpack does not know: hooks of a layer, on every face, and the ready ones."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer, encoding
from asgi_ipc._store.codec import Codec
from asgi_ipc.channels import IPCChannelLayer as DjangoLayer
from asgi_ipc.exceptions import SegmentCorrupt, UnserialisableValue
from tests.stepping import drive

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., Any]

HOOKS: dict[str, Any] = {"default": encoding.default, "object_hook": encoding.object_hook}
MESSAGE = {
    "at": datetime(2026, 12, 1, 16, 31, tzinfo=timezone(timedelta(hours=1))),
    "many": [date(2026, 12, 1), time(16, 31), {"price": Decimal("1.50")}],
    "who": uuid.UUID(int=7),
    "for": timedelta(days=-1, microseconds=3),
}
VALUES = st.one_of(
    st.datetimes(timezones=st.just(UTC) | st.none()),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)


@pytest.fixture
def layer(make_layer: MakeLayer) -> AsyncIPCChannelLayer:
    """Make a layer with the ready hooks."""
    return make_layer(**HOOKS)


@given(st.dictionaries(st.text(max_size=3), VALUES | st.lists(VALUES, max_size=3), max_size=3))
def test_what_was_sent_comes_back(message: dict[str, Any]) -> None:
    """Every value of every type, wherever it lies."""
    codec = Codec(**HOOKS)
    assert codec.decode(codec.encode(message)) == message


async def test_every_way_of_sending_and_receiving_goes_through_them(
    layer: AsyncIPCChannelLayer,
) -> None:
    """Asyncio, blocking, below a home, in batches, to groups, waited for and not."""
    name = await layer.new_channel()
    await layer.group_add("g", name)
    waits = [asyncio.create_task(layer.receive(name)) for _ in range(2)]
    await asyncio.sleep(0)
    await layer.group_send("g", MESSAGE)
    await layer.send_many([(name, MESSAGE), ("c", MESSAGE), ("d", MESSAGE), ("e", MESSAGE)])
    assert await asyncio.gather(*waits) == [MESSAGE, MESSAGE]
    assert await layer.receive("c") == MESSAGE
    assert await layer.receive_async(["d"], block=False) == ("d", MESSAGE)
    assert layer.sync.receive("e", timeout=0) == MESSAGE
    layer.sync.send(name, MESSAGE)
    assert await layer.receive(name) == MESSAGE
    async with layer.subscribe("g") as messages:
        await layer.group_send("g", MESSAGE)
        assert await anext(aiter(messages)) == MESSAGE


@pytest.mark.parametrize("kind", [AsyncIPCChannelLayer, DjangoLayer, IPCChannelLayer])
def test_settings_name_them(prefix: str, kind: Callable[..., Any]) -> None:
    """By a dotted name; what cannot be imported or called is said at once."""
    sizes: dict[str, Any] = {"message_memory": 8 << 20, "group_memory": 4 << 20}
    names = {option: f"asgi_ipc.encoding.{option}" for option in HOOKS}
    layer = kind(prefix, **sizes, **names)
    assert layer.default is encoding.default
    (layer if kind is IPCChannelLayer else layer.sync).send("c", MESSAGE)
    other = AsyncIPCChannelLayer(prefix, **sizes, **HOOKS)
    assert other.sync.receive("c", timeout=0) == MESSAGE
    for core in (other, getattr(layer, "core", layer)):
        core.unlink()
    with pytest.raises(ValueError, match=r"default='no\.such' cannot be imported"):
        kind(prefix, **sizes, default="no.such")
    with pytest.raises(TypeError, match=r"object_hook must be callable"):
        kind(prefix, **sizes, object_hook=7)


def test_without_hooks_such_a_value_is_refused_by_its_path(make_layer: MakeLayer) -> None:
    """And one that has them says the same of what they do not know."""
    with pytest.raises(UnserialisableValue, match=r"message\['at'\]: datetime"):
        drive(make_layer().send("c", MESSAGE))
    with pytest.raises(UnserialisableValue, match=r"message\['a'\]\[1\]: object"):
        drive(make_layer(**HOOKS).send("c", {"a": [Decimal(1), object()]}))


def test_who_has_no_hooks_receives_what_stands_for_it(make_layer: MakeLayer) -> None:
    """As the command, which knows nothing of a site's hooks, shows it."""
    drive(make_layer(**HOOKS).send("c", {"price": Decimal("1.50")}))
    got = drive(make_layer().receive_async(["c"], block=False))
    assert got == ("c", {"price": {"$decimal": "1.50"}})


def test_what_a_hook_raises_comes_out(make_layer: MakeLayer) -> None:
    """It is no damage to the memory, and the next message is received."""
    layer = make_layer(**HOOKS)
    for message in ({"a": {"$uuid": "no"}}, {"b\udc80": 1, "a": {"$uuid": "no"}}, {"n": 1}):
        drive(layer.send("c", message))
    for _ in range(2):
        with pytest.raises(ValueError, match="badly formed"):
            drive(layer.receive_async(["c"], block=False))
    assert drive(layer.receive_async(["c"], block=False)) == ("c", {"n": 1})


def test_a_message_is_a_dict_whatever_a_hook_makes(make_layer: MakeLayer) -> None:
    """An object in its place is refused; one inside of it is what hooks are for."""

    @dataclasses.dataclass
    class Point:
        x: int
        y: int

    layer = make_layer(
        default=dataclasses.asdict, object_hook=lambda made: Point(**made) if "x" in made else made
    )
    drive(layer.send("c", {"p": Point(1, 2)}))
    assert drive(layer.receive_async(["c"], block=False)) == ("c", {"p": Point(1, 2)})
    drive(layer.send("c", {"x": 1, "y": 2}))
    with pytest.raises(TypeError, match="object_hook must leave a message a dict"):
        drive(layer.receive_async(["c"], block=False))


def test_damage_is_damage_with_hooks_too() -> None:
    """What did not come from a sender."""
    for body in (b"\xc1", b"\x93\x01\x02\x03", b"\x81\xa1a"):
        with pytest.raises((SegmentCorrupt, TypeError)):
            Codec(**HOOKS).decode(body)


def test_what_channels_redis_has_overridden_is_refused(prefix: str) -> None:
    """Nobody would call it, and dates would go as they never went."""

    class Mine(DjangoLayer):
        def serialize(self, message: dict[str, Any]) -> bytes:
            return b""

    with pytest.raises(
        TypeError, match=r"Mine\.serialize would never be called: give the option d"
    ):
        Mine(prefix)
