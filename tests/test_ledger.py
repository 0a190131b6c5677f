"""What counts against a channel's capacity, wherever it lies, and when it no longer does."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from asgi_ipc import (
    AsyncIPCChannelLayer,
    ChannelFull,
    Drop,
    IPCChannelLayer,
)
from asgi_ipc._store import membership
from asgi_ipc._store.membership import GroupStore
from asgi_ipc._wake.bell import bells_directory

from .conftest import PATIENCE_S, Child, Clock
from .stepping import SteppingLoop, World, drive

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., Child]
WAYS = ["receive_async", "resting"]
HOLDER = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES, capacity=10)
async def main():
    asyncio.ensure_future(layer.receive("h!c"))
    await layer.receive("h!b")  # drains what is in front of it
    say("holds")
    await asyncio.sleep(3600)
asyncio.run(main())
"""

POLLER = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES, capacity=10)
assert asyncio.run(layer.receive_async(["h!b"], block=False)) == ("h!b", {})
say("holds")
time.sleep(3600)
"""


def room(layer: AsyncIPCChannelLayer, channel: str) -> int:
    """Fill a channel; return how many messages it took."""
    count = 0
    try:
        while True:
            drive(layer.send(channel, {"n": count}))
            count += 1
    except ChannelFull:
        return count


def everything(layer: AsyncIPCChannelLayer, channel: str) -> list[dict[str, Any]]:
    """Receive all there is."""
    found: list[dict[str, Any]] = []
    while True:
        _, message = drive(layer.receive_async([channel], block=False))
        if message is None:
            return found
        found.append(message)


def pending(layer: AsyncIPCChannelLayer, channel: str) -> float:
    return drive(layer.channel_statistics(channel))["messages_pending"]


# -- sent directly -----------------------------------------------------------------------


async def hold_nine(layer: AsyncIPCChannelLayer) -> None:
    """Have nine messages for ``h!a`` drained into a layer's inbox."""
    for number in range(9):
        await layer.send("h!a", {"n": number})
    await layer.send("h!b", {})
    await layer.receive("h!b")


async def test_what_a_killed_process_held_counts_no_more(
    start: Start, make_layer: MakeLayer
) -> None:
    """Whoever receives for the same names next has room for a whole capacity, at once."""
    layer = make_layer(capacity=10)
    for number in range(9):
        await layer.send("h!a", {"n": number})
    await layer.send("h!b", {})
    first = start(HOLDER)
    first.expect("holds")
    first.signal(signal.SIGSTOP)
    first.wait_for_state("T")  # so that it takes no more
    assert pending(layer, "h!a") == 9
    assert room(layer, "h!a") == 1  # as long as it lives they are there
    first.kill()
    second = start(HOLDER)
    await layer.send("h!b", {})
    second.expect("holds")
    assert pending(layer, "h!a") == 1
    assert room(layer, "h!a") == 9


async def test_who_takes_without_waiting_holds_what_it_took(
    start: Start, make_layer: MakeLayer
) -> None:
    """As long as it lives; and the home stays with the process that waits there."""
    layer, owner = make_layer(capacity=10), make_layer(capacity=10)
    task = asyncio.ensure_future(owner.receive("h!c"))
    await asyncio.sleep(0)
    await owner.group_add("g", "h!c")
    owner._site.messages.slots.withdraw(next(iter(owner._site.ports())).slot, ["h!"])
    for number in range(9):
        await layer.send("h!a", {"n": number})
    await layer.send("h!b", {})
    child = start(POLLER)
    child.expect("holds")
    assert pending(layer, "h!a") == 9
    assert room(layer, "h!a") == 1
    child.kill()
    assert pending(layer, "h!a") == 1
    assert room(layer, "h!a") == 9
    assert await layer.group_channels("g") == ["h!c"]
    await layer.send("h!c", {})
    task.cancel()


async def test_what_is_held_when_the_doors_go_is_settled(
    make_layer: MakeLayer, prefix: str
) -> None:
    """By the same process, which has another token since."""
    layer, other = make_layer(capacity=10), make_layer(capacity=10)
    await hold_nine(layer)
    shutil.rmtree(bells_directory(prefix))
    layer._site.watch()
    await layer.send("h!b", {})
    await layer.receive("h!b")
    assert pending(other, "h!a") == 9
    for number in range(3):
        assert await layer.receive("h!a") == {"n": number}
    await asyncio.sleep(0)
    assert pending(other, "h!a") == 6


async def test_what_a_closed_layer_held_counts_no_more(make_layer: MakeLayer) -> None:
    """The channel is empty, for others and for the layer when it is used again."""
    layer, other = make_layer(capacity=10), make_layer(capacity=10)
    await hold_nine(layer)
    assert room(other, "h!a") == 1
    await layer.close()
    assert pending(other, "h!a") == 1
    assert room(other, "h!a") == 9
    assert len(everything(layer, "h!a")) == 10


async def test_what_is_held_counts_until_it_is_read(make_layer: MakeLayer) -> None:
    """Each message that is read makes room for one, for the reader's own process at once."""
    layer = make_layer(capacity=10)
    await hold_nine(layer)
    assert pending(layer, "h!a") == 9
    for number in range(3):
        assert await layer.receive("h!a") == {"n": number}
    assert room(layer, "h!a") == 4
    assert pending(layer, "h!a") == 10


def test_a_drained_message_counts_until_it_is_returned(make_world: Callable[[int], World]) -> None:
    """Also the first of a name that is waited for: a cancelled receive leaves no more than that."""
    world = make_world(1)
    capacity = world.outside.capacity
    task = world.wait(0, "x!a")
    world.wait(0, "x!b")
    world.send("x!a")
    while not world.layers[0]._reception.inboxes.count:
        assert world.loops[0].step()
    assert room(world.outside, "x!a") == capacity - 1
    task.cancel()
    world.settle()
    assert room(world.outside, "x!a") == 0
    assert len(everything(world.layers[0], "x!a")) == capacity
    world.settle()
    assert pending(world.outside, "x!a") == 0


async def test_an_interrupted_settlement_is_made_later(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read counts no more, whenever the process is interrupted while it says so."""
    layer, other = make_layer(capacity=10), make_layer(capacity=10)
    await hold_nine(layer)
    settle = layer._site.messages.note_settled

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layer._site.messages, "note_settled", interrupted)
    assert await layer.receive("h!a") == {"n": 0}
    with pytest.raises(KeyboardInterrupt):
        layer._reception._settle()
    monkeypatch.setattr(layer._site.messages, "note_settled", settle)
    assert await layer.receive("h!a") == {"n": 1}
    layer._reception._settle()
    assert pending(other, "h!a") == 7


def test_a_loop_that_ends_early_stops_nobody_from_settling(make_layer: MakeLayer) -> None:
    """What the next loop reads is settled in its next round."""
    layer, other = make_layer(capacity=10), make_layer(capacity=10)
    drive(hold_nine_without_a_loop(layer))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(layer.receive("h!a"))
    loop.close()
    stepping = SteppingLoop()
    task = stepping.create_task(layer.receive("h!a"))
    stepping.settle()
    assert task.done()
    stepping.close()
    assert pending(other, "h!a") == 7


async def hold_nine_without_a_loop(layer: AsyncIPCChannelLayer) -> None:
    """Have nine messages for ``h!a`` drained into a layer's inbox."""
    for number in range(9):
        await layer.send("h!a", {"n": number})
    await layer.send("h!b", {})
    assert await layer.receive_async(["h!b"], block=False) == ("h!b", {})


# -- what has expired --------------------------------------------------------------------


async def test_held_messages_that_have_expired_do_not_count(
    make_layer: MakeLayer, clock: Clock
) -> None:
    """Whoever holds them may be blocked, and need not look."""
    layer, other = make_layer(capacity=10, expiry=5), make_layer(capacity=10, expiry=5)
    await hold_nine(layer)
    assert room(other, "h!a") == 1
    clock.advance(6)
    assert pending(other, "h!a") == 1  # it is queued, and nobody has met it yet
    assert room(other, "h!a") == 10


async def test_a_drain_lets_go_of_what_has_expired(make_layer: MakeLayer, clock: Clock) -> None:
    """Although it takes more for the same name."""
    layer, other = make_layer(capacity=10), make_layer(capacity=10)
    for number in range(9):
        await layer.send("h!a", {"n": number}, expiry=5)
    await layer.send("h!b", {})
    await layer.receive("h!b")
    clock.advance(6)
    await layer.send("h!a", {"n": 9})
    await layer.send("h!b", {})
    await layer.receive("h!b")
    assert pending(other, "h!a") == 1
    assert room(other, "h!a") == 9


async def test_a_waiting_loop_lets_go_of_what_has_expired(make_layer: MakeLayer) -> None:
    """By itself and in time, while others that it holds live on."""
    layer, other = make_layer(capacity=10), make_layer(capacity=10)
    for number in range(8):
        await layer.send("h!a", {"n": number}, expiry=0.05)
    await layer.send("h!a", {"n": 8})
    await layer.send("h!b", {})
    await layer.receive("h!b")
    give_up = time.monotonic() + PATIENCE_S
    while pending(other, "h!a") != 1:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    assert room(other, "h!a") == 9


async def test_a_group_send_skips_nobody_for_what_has_expired(
    make_layer: MakeLayer, clock: Clock
) -> None:
    """A member full of expired messages gets the next one, an ordinary channel or not."""
    layer = make_layer(capacity=3, on_drop=pytest.fail)
    for channel in ("ordinary", "h!a"):
        await layer.group_add("g", channel)
    for _ in range(3):
        await layer.group_send("g", {"n": "old"}, expiry=1)
    clock.advance(2)
    for number in range(3):
        await layer.group_send("g", {"n": number})
    for channel in ("ordinary", "h!a"):
        assert everything(layer, channel) == [{"n": number} for number in range(3)]


@pytest.mark.parametrize("channel", ["ordinary", "h!a"])
async def test_a_batch_finds_room_where_messages_have_expired(
    make_layer: MakeLayer, clock: Clock, channel: str
) -> None:
    """At the first try, wherever in the batch it turns out."""
    layer = make_layer(capacity=10)
    for _ in range(5):
        await layer.send(channel, {"n": "old"}, expiry=1)
    clock.advance(2)
    batch = [("other", {}), *((channel, {"n": number}) for number in range(8))]
    await layer.send_many(batch)
    assert everything(layer, channel) == [{"n": number} for number in range(8)]
    with pytest.raises(ChannelFull, match="is full: 10 of 10") as caught:
        await layer.send_many([(channel, {})] * 12)
    assert (caught.value.depth, caught.value.capacity) == (10, 10)
    assert everything(layer, channel) == []


# -- to a group --------------------------------------------------------------------------


@pytest.mark.parametrize("members", [("x!slow",), ("x!slow", "x!quick")])
async def test_a_member_has_no_more_group_messages_than_its_capacity(
    make_layer: MakeLayer, members: tuple[str, ...]
) -> None:
    """Thirty are sent while it reads one now and then; of what waits, three reach it."""
    drops: list[Drop] = []
    layer = make_layer(capacity=3, on_drop=drops.append)
    for name in members:
        await layer.group_add("g", name)
    number = 0
    for _ in range(4):
        for _ in range(30):
            await layer.group_send("g", {"n": number})
            number += 1
            if "x!quick" in members:
                await layer.receive("x!quick")
        got = await layer.receive("x!slow")
        assert got["n"] >= number - 120
    left = everything(layer, "x!slow")
    assert len(left) == 2
    assert {(drop.group, drop.capacity, drop.depth, drop.cause) for drop in drops} == {
        ("g", 3, 3, "channel full")
    }
    assert {drop.channel for drop in drops} <= {"x!", "x!slow"}


async def test_a_member_of_several_groups_has_one_capacity(make_layer: MakeLayer) -> None:
    """Before it reads, what waits for its home is sorted: what is beyond is dropped."""
    drops: list[Drop] = []
    layer = make_layer(channel_capacity={"x!tiny": 2}, on_drop=drops.append)
    for group in ("g", "h", "i"):
        await layer.group_add(group, "x!tiny")
        await layer.group_add(group, "x!big")
        for number in range(5):
            await layer.group_send(group, {"n": f"{group}{number}"})
    assert [one["n"] for one in everything(layer, "x!tiny")] == ["g0", "g1"]
    assert Counter(drop.group for drop in drops) == {"g": 3, "h": 5, "i": 5}
    assert {(drop.channel, drop.members, drop.depth, drop.capacity) for drop in drops} == {
        ("x!tiny", 1, 2, 2)
    }
    assert len(everything(layer, "x!big")) == 15


async def test_direct_and_group_messages_have_a_capacity_each(make_layer: MakeLayer) -> None:
    """One that is full of those it was sent directly gets those of its groups, and vice versa."""
    layer = make_layer(capacity=3)
    await layer.group_add("g", "x!a")
    assert room(layer, "x!a") == 3
    for number in range(5):
        await layer.group_send("g", {"g": number})
    assert everything(layer, "x!a") == [
        *({"n": number} for number in range(3)),
        *({"g": number} for number in range(3)),
    ]


def test_drops_are_told_by_a_loop_that_ends(make_layer: MakeLayer) -> None:
    """Also if it ends in the very round in which it found no room."""
    drops: list[Drop] = []
    layer = make_layer(channel_capacity={"x!c": 1}, on_drop=drops.append)
    sender = make_layer()
    loop = SteppingLoop()
    tasks = [loop.create_task(layer.receive(name)) for name in ("x!a", "x!b")]
    loop.settle()
    for name in ("x!a", "x!c"):
        drive(sender.group_add("g", name))
    for _ in range(2):
        drive(sender.group_send("g", {}))
    while not drops:
        assert loop.step()
        if tasks[0].done():
            break  # `run_until_complete` would have ended here
    assert [(drop.channel, drop.group, drop.depth) for drop in drops] == [("x!c", "g", 1)]
    for task in tasks:
        task.cancel()
    loop.settle()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize("names", [("x!c",), ("x!a", "x!c")])
def test_a_callback_may_wait_for_another_thread(
    make_layer: MakeLayer, names: tuple[str, ...]
) -> None:
    """One that receives from the same layer, whoever found that there is no room."""
    ended: list[bool] = []

    def on_drop(_: Drop) -> None:
        thread = threading.Thread(target=everything, args=(layer, "x!b"))
        thread.start()
        thread.join(PATIENCE_S / 10)
        ended.append(not thread.is_alive())

    layer = make_layer(channel_capacity={"x!c": 1}, on_drop=on_drop)
    sender = make_layer()
    drive(sender.group_add("g", "x!c"))
    for _ in range(2):
        drive(sender.group_send("g", {}))
    drive(sender.send("x!a", {}))
    for name in names:
        assert everything(layer, name) == [{}]
    assert ended == [True]


def interrupted(function: Callable[..., Any], step: int, action: Callable[[], object]) -> bool:
    """Do something, interrupted before the n-th line of a function; whether it has so many."""
    code = function.__code__
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code is not code:
            return None
        if event == "line":
            lines += 1
            if lines == step:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupted_look_at_the_members_leaves_nothing_half_read(
    make_layer: MakeLayer, clock: Clock
) -> None:
    """Wherever it comes, the next message of the group reaches them all."""
    reader, other = make_layer(group_expiry=10), make_layer(group_expiry=10)
    names = ["x!a", "x!b", "x!c"]

    def receive() -> None:
        drive(reader.receive_async(["x!a"], block=False))

    for step in range(1, 100):
        for name in names:
            drive(reader.group_add("g", name))
        clock.advance(6)
        for name in names:
            drive(other.group_add("g", name))  # a renewal, which the reader does not know of
        clock.advance(6)
        drive(other.group_send("g", {"n": 1}))
        went_on = interrupted(GroupStore._read_members, step, receive)
        for name in names:
            everything(reader, name)
        drive(other.group_send("g", {"n": 2}))
        for name in names:
            assert everything(reader, name) == [{"n": 2}], f"{name}, interrupted at line {step}"
        if not went_on:
            break
    assert step > 10


def test_an_interrupted_renewal_leaves_nobody_out(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The general way notes it in steps, and is interrupted between any two of them."""
    layer = make_layer()
    names = ["x!a", "x!b", "x!c"]
    for name in names:
        drive(layer.group_add("g", name))
    monkeypatch.setattr(membership, "renew", lambda *_: False)
    for step in range(1, 100):
        went_on = interrupted(GroupStore._note, step, lambda: drive(layer.group_add("g", "x!b")))
        drive(layer.group_send("g", {}))
        for name in names:
            assert everything(layer, name) == [{}], f"{name}, interrupted at line {step}"
        if not went_on:
            break
    assert step > 5


def test_reading_one_of_many_leaves_the_others_in_the_queue(
    make_layer: MakeLayer, make_sync: Callable[..., IPCChannelLayer]
) -> None:
    """What Channels 1 sends counts on the home: while that is full, the sender waits."""
    layer, sender = make_layer(capacity=10), make_sync(capacity=10)
    for name in ("h!a", "h!b"):
        sender.send(name, {})
    assert drive(layer.receive_async(["h!b"], block=False)) == ("h!b", {})  # takes the other along
    for _ in range(10):
        sender.send("h!a", {})
    assert drive(layer.receive_async(["h!a"], block=False)) == ("h!a", {})
    with pytest.raises(ChannelFull):
        sender.send("h!a", {})
