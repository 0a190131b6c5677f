"""Subscriptions: join, receive and leave, whatever ends the block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.channels import IPCChannelLayer as DjangoLayer
from asgi_ipc.exceptions import InvalidName, IPCError, LayerClosed

from .conftest import PATIENCE_S

if TYPE_CHECKING:
    from .conftest import Child, Clock

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

HOLD_LOCK = """
import fcntl
fd = os.open(f"/dev/shm/{PREFIX}-groups", os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
say("locked")
sys.stdin.readline()
fcntl.flock(fd, fcntl.LOCK_UN)
"""


async def test_a_subscription_joins_receives_and_leaves(make_layer: MakeLayer) -> None:
    """Several groups, each message once, in order; its channel may be sent to as well."""
    layer = make_layer()
    async with layer.subscribe("a", "b", "a") as messages:
        assert await layer.group_channels("a") == await layer.group_channels("b")
        await layer.group_send("a", {"n": 0})
        await layer.group_send("b", {"n": 1})
        await layer.send(messages.channel, {"n": 2})
        got = []
        async for message in messages:
            got.append(message["n"])
            if len(got) == 3:
                break
    assert got == [0, 1, 2]
    assert await layer.group_count("a") == await layer.group_count("b") == 0
    assert [message async for message in messages] == []


async def test_a_subscription_to_a_channel_only_receives(make_layer: MakeLayer) -> None:
    """An ordinary channel, whose messages its readers share; or one that joins groups."""
    layer = make_layer()
    await layer.send("tasks", {"n": 0})
    async with layer.subscribe(channel="tasks") as messages:
        assert await anext(messages) == {"n": 0}
        assert messages.groups == ()
    async with layer.subscribe("g", channel="sink") as messages:
        assert await layer.group_channels("g") == ["sink"]
    async with layer.subscribe() as messages:
        await layer.send(messages.channel, {"n": 1})
        assert await anext(messages) == {"n": 1}


@pytest.mark.parametrize("end", ["error", "cancelled", "closed"])
async def test_a_subscription_leaves_whatever_ends_it(
    make_layer: MakeLayer, prefix: str, end: str
) -> None:
    """What ended it goes on; a layer that was closed stays closed."""
    layer, other = make_layer(), make_layer()
    entered = asyncio.Event()

    async def listen() -> None:
        async with layer.subscribe("g") as messages:
            entered.set()
            async for _ in messages:
                raise ZeroDivisionError

    task = asyncio.create_task(listen())
    await entered.wait()
    assert await other.group_count("g") == 1
    await asyncio.sleep(0)
    if end == "error":
        await other.group_send("g", {})
    elif end == "cancelled":
        task.cancel()
    else:
        await layer.close()
    await asyncio.wait((task,))
    if end == "cancelled":
        assert task.cancelled()
    else:
        kind = {"error": ZeroDivisionError, "closed": LayerClosed}[end]
        assert isinstance(task.exception(), kind)
    assert await other.group_count("g") == 0
    assert layer._site.is_open == (end != "closed")


async def test_leaving_is_not_cut_short(make_layer: MakeLayer, start: Start) -> None:
    """Cancelled again and again while another process holds the lock, it leaves all the same."""
    layer = make_layer()
    entered = asyncio.Event()

    async def listen() -> None:
        async with layer.subscribe("a", "b") as messages:
            entered.set()
            await anext(messages)

    task = asyncio.create_task(listen())
    await entered.wait()
    child = start(HOLD_LOCK)
    child.expect("locked")
    for _ in range(20):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    child.tell()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait((task,))
    assert task.cancelled()
    assert await layer.group_count("a") == await layer.group_count("b") == 0


async def test_joining_is_all_or_nothing(make_layer: MakeLayer, start: Start) -> None:
    """Cancelled in the middle of it, the subscription leaves what it had joined."""
    layer = make_layer()
    child = start(HOLD_LOCK)
    child.expect("locked")

    async def listen() -> None:
        async with layer.subscribe("a", "b"):
            raise AssertionError("it cannot have joined")

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    child.tell()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait((task,))
    assert task.cancelled()
    assert await layer.group_count("a") == await layer.group_count("b") == 0


async def test_a_membership_is_renewed_while_it_waits(make_layer: MakeLayer) -> None:
    """A quiet group does not lose who waits for it."""
    layer = make_layer(group_expiry=0.1)
    async with layer.subscribe("g") as messages, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0.3)
        while not waiting.done():
            await layer.group_send("g", {"n": 1})
            await asyncio.sleep(0)
        assert waiting.result() == {"n": 1}


async def test_a_membership_is_renewed_while_it_is_busy(
    make_layer: MakeLayer, clock: Clock
) -> None:
    """Who never waits renews between two messages."""
    layer = make_layer(group_expiry=10)
    async with layer.subscribe("g") as messages:
        await layer.send(messages.channel, {"n": 1})
        clock.advance(6)
        messages._renew_at = 0.0  # it goes by the other clock
        await anext(messages)
        clock.advance(6)
        assert await layer.group_count("g") == 1


async def test_what_is_dropped_is_counted(make_layer: MakeLayer) -> None:
    """The oldest wait for a slow reader; what found no room here, or was sent here, is told."""
    layer = make_layer(capacity=2)
    async with layer.subscribe("g") as slow, layer.subscribe("h", channel="sink") as other:
        for number in range(5):
            await layer.group_send("g", {"n": number})
        assert slow.dropped == 3
        assert [(await anext(slow))["n"] for _ in range(2)] == [0, 1]
        for number in range(3):  # now one by one into the inbox
            await layer.group_send("g", {"n": number})
            await layer.receive_async([await layer.new_channel()], block=False)
        assert slow.dropped == 4
        assert other.dropped == 0


@pytest.mark.parametrize("kind", [AsyncIPCChannelLayer, DjangoLayer])
async def test_subscriptions_of_two_processes_hear_each_other(
    prefix: str, start: Start, kind: Callable[..., Any]
) -> None:
    """Each process with its own layer."""
    async with kind(prefix, message_memory=8 << 20, group_memory=4 << 20) as layer:
        child = start(
            """
            async def main():
                layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
                async with layer.subscribe("room") as messages:
                    say("in")
                    async for message in messages:
                        if message["text"] == "bye":
                            break
                        await layer.group_send("room", {"text": "bye"})
            asyncio.run(main())
            """
        )
        child.expect("in")
        async with layer.subscribe("room") as messages:
            await layer.group_send("room", {"text": "hello"})
            assert await anext(messages) == {"text": "hello"}
            assert await anext(messages) == {"text": "bye"}
        child.end()
        assert await layer.group_count("room") == 0


async def test_a_subscription_is_used_in_its_block(make_layer: MakeLayer) -> None:
    """Otherwise it says so; names are checked at once."""
    layer = make_layer()
    messages = layer.subscribe("g")
    with pytest.raises(IPCError, match="async with"):
        await anext(messages)
    async with messages:
        pass
    with pytest.raises(IPCError, match="subscribe\\(\\) again"):
        async with messages:
            pass
    with pytest.raises(InvalidName, match="group name"):
        layer.subscribe("a b")
    with pytest.raises(InvalidName, match="channel name"):
        layer.subscribe("g", channel="a b")
