"""Options of a layer: what is none, and what happens when one is set afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer, core
from asgi_ipc.channels import IPCChannelLayer as DjangoLayer
from asgi_ipc.exceptions import InvalidName
from asgi_ipc.names import check_prefix

if TYPE_CHECKING:
    from .conftest import Clock

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeSync = Callable[..., IPCChannelLayer]

FIXED = {
    "prefix": "other",
    "message_memory": 16 << 20,
    "group_memory": 16 << 20,
    "max_message_bytes": 5,
    "mode": 0o660,
    "lock_timeout": 1.0,
    "default": str,
    "object_hook": dict,
}
CHANGEABLE = {
    "expiry": 5,
    "group_expiry": 5,
    "capacity": 5,
    "channel_capacity": {"a": 5},
    "block_timeout": 0.1,
    "spin_rounds": 0,
    "on_drop": print,
}
OF_THE_BLOCKING_LAYER = sorted({*FIXED, *CHANGEABLE} - {"spin_rounds", "on_drop"})


def test_every_option_is_known_here() -> None:
    """Whoever adds one says what setting it does."""
    options = AsyncIPCChannelLayer.__init__.__annotations__.keys() - {"return"}
    assert options == {*FIXED, *CHANGEABLE}
    blocking = IPCChannelLayer.__init__.__annotations__.keys() - {"return"}
    assert sorted(blocking) == OF_THE_BLOCKING_LAYER


@pytest.mark.parametrize("kind", [AsyncIPCChannelLayer, DjangoLayer, IPCChannelLayer])
@pytest.mark.parametrize("option", FIXED)
def test_what_the_segments_were_opened_with_is_read_only(
    prefix: str, kind: Callable[..., Any], option: str
) -> None:
    """The error names the option and what to do, and the old value stays."""
    layer = kind(prefix, message_memory=8 << 20, group_memory=4 << 20)
    before = getattr(layer, option)
    with pytest.raises(AttributeError, match=f"{option} of a channel layer cannot be changed"):
        setattr(layer, option, FIXED[option])
    assert getattr(layer, option) == before
    getattr(layer, "core", layer).close_now()


@pytest.mark.parametrize("option", sorted(CHANGEABLE.keys() & {*OF_THE_BLOCKING_LAYER}))
def test_the_blocking_layer_hands_on_what_is_set(make_sync: MakeSync, option: str) -> None:
    """To the core, which has it; reading it again gives what holds."""
    layer = make_sync()
    setattr(layer, option, CHANGEABLE[option])
    assert getattr(layer, option) == getattr(layer.core, option)
    assert getattr(layer, option) != getattr(make_sync(), option)


async def test_expiry(make_layer: MakeLayer, clock: Clock) -> None:
    """Of messages sent from then on, to channels and groups."""
    layer = make_layer(expiry=60)
    await layer.send("c", {"n": 1})
    layer.expiry = 5
    await layer.send("c", {"n": 2})
    await layer.group_add("g", "c")
    await layer.group_send("g", {"n": 3})
    clock.advance(6)
    assert await layer.receive_async(["c"]) == ("c", {"n": 1})
    assert await layer.receive_async(["c"], block=False) == (None, None)


async def test_group_expiry(make_layer: MakeLayer, clock: Clock) -> None:
    """Of memberships that begin or are renewed from then on."""
    layer = make_layer()
    await layer.group_add("g", "before")
    layer.group_expiry = 5
    await layer.group_add("g", "after")
    clock.advance(6)
    assert await layer.group_channels("g") == ["before"]


@pytest.mark.parametrize(
    ("option", "value"), [("capacity", 2), ("channel_capacity", {re.compile("c"): 2})]
)
async def test_capacity(make_layer: MakeLayer, option: str, value: Any) -> None:
    """Of channels that were used before as well, for messages and for group messages."""
    layer = make_layer(capacity=1)
    await layer.group_add("g", "specific!c")
    await layer.send("c", {"n": 1})
    with pytest.raises(ChannelFull):
        await layer.send("c", {"n": 2})
    setattr(layer, option, value)
    await layer.send("c", {"n": 2})
    with pytest.raises(ChannelFull, match="2 of 2"):
        await layer.send("c", {"n": 3})
    assert layer.get_capacity("c") == 2


async def test_less_capacity_holds_in_the_inbox(make_layer: MakeLayer) -> None:
    """Group messages that were drained are counted against what holds by then."""
    drops: list[Any] = []
    layer = make_layer(capacity=100)
    layer.on_drop = drops.append
    slow, quick = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("g", slow)
    layer.capacity = 2
    for number in range(3):
        await layer.group_send("g", {"n": number})
        await layer.receive_async([quick], block=False)  # which drains their home
    assert [(drop.channel, drop.depth, drop.capacity) for drop in drops] == [(slow, 2, 2)]
    assert [(await layer.receive(slow))["n"] for _ in range(2)] == [0, 1]


async def test_block_timeout(make_layer: MakeLayer) -> None:
    """Of receives that begin from then on."""
    layer = make_layer()
    layer.block_timeout = 0.01
    assert await layer.receive_async(["c"]) == (None, None)


async def test_spin_rounds(make_layer: MakeLayer) -> None:
    """The part that receives has it."""
    layer = make_layer()
    layer.spin_rounds = 0
    assert layer._reception.spin_rounds == 0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("expiry", -1, "expiry must be a positive number of seconds"),
        ("group_expiry", "5", "group_expiry must be a number of seconds"),
        ("capacity", 0, "capacity must be at least 1"),
        ("channel_capacity", {"a": 0}, r"channel_capacity\['a'\] must be at least 1"),
        ("spin_rounds", -1, "spin_rounds must be 0 to"),
    ],
)
def test_a_value_that_is_not_valid_changes_nothing(
    make_layer: MakeLayer, option: str, value: Any, says: str
) -> None:
    """It is refused as the constructor does."""
    layer = make_layer()
    before = getattr(layer, option)
    with pytest.raises((TypeError, ValueError), match=says):
        setattr(layer, option, value)
    assert getattr(layer, option) == before


# -- what is no option -------------------------------------------------------------------

FACES = [AsyncIPCChannelLayer, DjangoLayer, IPCChannelLayer]


@pytest.mark.parametrize("kind", FACES)
def test_all_that_is_no_option_is_named_at_once(prefix: str, kind: Callable[..., Any]) -> None:
    """Those of channels_redis with what to do about them, and the class that was configured."""
    config = {
        "hosts": [("127.0.0.1", 6379)],
        "symmetric_encryption_keys": ["secret"],
        "expirey": 5,
        "channel_memory": 5,
        "capacity": 5,
    }
    with pytest.raises(TypeError) as caught:
        kind(prefix=prefix, **config)
    said = str(caught.value)
    assert said.startswith(f"{kind.__module__}.{kind.__qualname__}: ")
    assert "hosts, symmetric_encryption_keys: options of channels_redis; take them out" in said
    assert "there is no expirey (did you mean expiry?)" in said
    assert "channel_memory is now message_memory" in said
    assert not Path(f"/dev/shm/{prefix}-messages").exists()


def test_a_subclass_may_take_more(prefix: str) -> None:
    """By name, or whatever there is."""

    class Named(AsyncIPCChannelLayer):
        def __init__(self, *, colour: str, **options: Any) -> None:
            super().__init__(**options)
            self.colour = colour

    layer = Named(prefix=prefix, colour="red")
    assert (layer.prefix, layer.colour) == (prefix, "red")
    layer.unlink()


@pytest.mark.parametrize("kind", FACES)
@pytest.mark.parametrize(
    ("given", "like"),
    [
        ("my site", "my-site"),
        ("asgi:", "asgi"),
        ("a:b", "a-b"),
        ("x" * 100, "x" * 60),
        ("", "asgi"),
    ],
)
def test_a_prefix_that_cannot_be_one_comes_with_one_that_can(
    kind: Callable[..., Any], given: str, like: str
) -> None:
    """asgi_ipc 1.4.2 took these, and channels_redis does."""
    with pytest.raises(InvalidName) as caught:
        kind(prefix=given)
    assert f"prefix {given!r} is not valid" in str(caught.value)
    assert f"{like!r} would do" in str(caught.value)
    assert "group" not in str(caught.value)
    assert check_prefix(like) == like


def test_capacities_that_are_no_dict_are_refused(prefix: str) -> None:
    """As some write them."""
    with pytest.raises(TypeError, match=r"channel_capacity must be a dict.*\[\('a', 1\)\]"):
        AsyncIPCChannelLayer(prefix, channel_capacity=[("a", 1)])  # type: ignore[arg-type]


def test_the_module_of_1_x_has_the_layer() -> None:
    """And what it can do is said by the class, too."""
    assert core.IPCChannelLayer is IPCChannelLayer
    assert {"groups", "flush", "statistics"} <= set(IPCChannelLayer.extensions)


@pytest.mark.parametrize("old", ["version = (0, 5, 6)", ""], ids=["0.5.6", "what it left"])
def test_an_old_msgpack_is_named_at_import(tmp_path: Path, old: str) -> None:
    """The distribution msgpack-python of 1.4.2 has the same files as today's msgpack."""
    package = tmp_path / "msgpack"
    package.mkdir()
    if old:
        (package / "__init__.py").write_text(old)
    (package / "exceptions.py").touch()
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import asgi_ipc"
    if not old:  # a folder without `__init__` comes last of all that is found
        program = (
            "import sys, types; sys.modules['msgpack'] = types.ModuleType('msgpack'); " + program
        )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip uninstall msgpack-python" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("ImportError")
