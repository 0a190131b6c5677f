"""Groups: membership, delivery, full and expired and dead members, exclude, introspection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Child, Clock

from .conftest import MakeLayer

Start = Callable[..., Child]


async def _has_nothing(layer: Any, *channels: str) -> bool:
    """Whether none of the channels has a message now."""
    for channel in channels:
        receive = asyncio.create_task(layer.receive(channel))
        for _ in range(10):
            await asyncio.sleep(0)
        if receive.done():
            return False
        receive.cancel()
        await asyncio.gather(receive, return_exceptions=True)
    return True


async def test_a_group_message_reaches_every_member_once(make_any: MakeLayer) -> None:
    """Normal and process-specific channels, added once or twice."""
    layer = make_any()
    members = ["normal", "x.z!foreign", *[await layer.new_channel() for _ in range(3)]]
    for name in (*members, *members):
        await layer.group_add("g", name)
    await layer.group_send("g", {"n": 1})
    assert [await layer.receive(name) for name in members] == [{"n": 1}] * 5
    assert await _has_nothing(layer, *members)


async def test_leaving_ends_delivery(make_any: MakeLayer) -> None:
    """Of what is sent afterwards; what was sent before still arrives."""
    layer = make_any()
    stays, leaves = await layer.new_channel(), await layer.new_channel()
    for name in (stays, leaves):
        await layer.group_add("g", name)
    await layer.group_send("g", {"n": 1})
    await layer.group_discard("g", leaves)
    await layer.group_send("g", {"n": 2})
    assert [await layer.receive(stays) for _ in range(2)] == [{"n": 1}, {"n": 2}]
    assert await layer.receive(leaves) == {"n": 1}
    assert await _has_nothing(layer, leaves)


async def test_joining_later_misses_what_was_before(make_any: MakeLayer) -> None:
    """A message is for those who are members when it is sent."""
    layer = make_any()
    early, late = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("g", early)
    await layer.group_send("g", {"n": 1})
    await layer.group_add("g", late)
    await layer.group_send("g", {"n": 2})
    assert await layer.receive(late) == {"n": 2}
    assert [await layer.receive(early) for _ in range(2)] == [{"n": 1}, {"n": 2}]


async def test_strangers_and_empty_groups_are_silent(make_any: MakeLayer) -> None:
    """No error from discarding who never joined, or from sending to nobody."""
    layer = make_any()
    await layer.group_discard("nobody", "c")
    await layer.group_send("nobody", {"n": 1})
    await layer.group_add("g", "c")
    await layer.group_discard("g", "d")
    await layer.group_discard("g", "c")
    await layer.group_discard("g", "c")
    await layer.group_send("g", {"n": 1})
    assert await _has_nothing(layer, "c", "d")


async def test_groups_are_separate(make_any: MakeLayer) -> None:
    """A channel in two groups gets the messages of both, another one those of one."""
    layer = make_any()
    for group, name in (("g", "a"), ("h", "a"), ("h", "b")):
        await layer.group_add(group, name)
    await layer.group_send("g", {"to": "g"})
    await layer.group_send("h", {"to": "h"})
    assert [await layer.receive("a") for _ in range(2)] == [{"to": "g"}, {"to": "h"}]
    assert await layer.receive("b") == {"to": "h"}
    assert await _has_nothing(layer, "a", "b")


async def test_full_members_are_skipped(make_any: MakeLayer) -> None:
    """Without an error, and without harm to the others."""
    layer = make_any(capacity=2)
    slow, quick, normal = await layer.new_channel(), await layer.new_channel(), "normal"
    for name in (slow, quick, normal):
        await layer.group_add("g", name)
    for number in range(5):
        assert not await layer.group_send("g", {"n": number})
        assert await layer.receive(quick) == {"n": number}
    for name in (slow, normal):
        assert [(await layer.receive(name))["n"] for _ in range(2)] == [0, 1]
    assert await _has_nothing(layer, slow, quick, normal)


async def test_flush_empties_channels_and_groups(make_any: MakeLayer) -> None:
    """Those who wait wait on, and get what comes."""
    layer = make_any()
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.send("c", {})
    await layer.send(channel, {})
    await layer.group_send("g", {})
    await layer.flush()
    await layer.group_send("g", {"n": 1})
    assert await _has_nothing(layer, "c", channel)
    await layer.send(channel, {"n": 2})
    assert await layer.receive(channel) == {"n": 2}


# -- beyond the peers ----------------------------------------------------------------------


async def test_membership_ends_at_group_expiry(make_ours: MakeLayer, clock: Clock) -> None:
    """Counted from the latest ``group_add``; nothing else renews it."""
    layer = make_ours(group_expiry=100, expiry=1000)
    for name in ("old", "x.y!old", "renewed", "x.y!renewed"):
        await layer.group_add("g", name)
    clock.advance(60)
    for name in ("renewed", "x.y!renewed"):
        await layer.group_add("g", name)
    await layer.group_send("g", {"n": 1})
    clock.advance(60)
    await layer.group_send("g", {"n": 2})
    assert sorted(await layer.group_channels("g")) == ["renewed", "x.y!renewed"]
    for name in ("renewed", "x.y!renewed"):
        assert [await layer.receive(name) for _ in range(2)] == [{"n": 1}, {"n": 2}]
    assert await layer.receive("old") == {"n": 1}
    assert await _has_nothing(layer, "old", "x.y!renewed")


async def test_a_group_can_be_counted_and_listed(make_ours: MakeLayer) -> None:
    """From any process; an unknown group is empty."""
    layer, other = make_ours(), make_ours()
    assert await layer.group_channels("g") == []
    assert await layer.group_count("g") == 0
    names = ["normal", *[await layer.new_channel() for _ in range(4)]]
    for name in (*names, names[0]):
        await layer.group_add("g", name)
    assert sorted(await other.group_channels("g")) == sorted(names)
    assert await other.group_count("g") == 5
    await other.group_discard("g", names[1])
    assert await layer.group_count("g") == 4
    for operation in (layer.group_channels("a b"), layer.group_count("a b")):
        with pytest.raises(TypeError):
            await operation


async def test_exclude_leaves_members_out(make_ours: MakeLayer) -> None:
    """Normal and process-specific ones, also a stranger; of one message only."""
    layer, other = make_ours(), make_ours()
    mine, yours = await layer.new_channel(), await layer.new_channel()
    theirs = await other.new_channel()
    for name in (mine, yours, theirs, "normal", "other"):
        await layer.group_add("g", name)
    await layer.group_send("g", {"n": 1}, exclude=[mine, "normal", theirs, "stranger", "q.r!s"])
    await layer.group_send("g", {"n": 2}, exclude=iter((mine,)))
    await layer.group_send("g", {"n": 3}, exclude=())
    assert await layer.receive(mine) == {"n": 3}
    for name, reader in (("normal", layer), (theirs, other)):
        assert [await reader.receive(name) for _ in range(2)] == [{"n": 2}, {"n": 3}]
    for name in (yours, "other"):
        assert [(await layer.receive(name))["n"] for _ in range(3)] == [1, 2, 3]


async def test_exclude_takes_valid_names_only(make_ours: MakeLayer) -> None:
    """And nothing was sent."""
    layer = make_ours()
    await layer.group_add("g", "c")
    with pytest.raises(TypeError):
        await layer.group_send("g", {}, exclude=["a b"])
    assert await _has_nothing(layer, "c")


async def test_excluding_everybody_sends_nothing(make_ours: MakeLayer) -> None:
    """Not even a message without readers."""
    layer = make_ours()
    channel = await layer.new_channel()
    for name in (channel, "normal"):
        await layer.group_add("g", name)
    for _ in range(300):
        await layer.group_send("g", {}, exclude=[channel, "normal"])
        assert await _has_nothing(layer, channel)
    await layer.send(channel, {"n": 1})
    assert await layer.receive(channel) == {"n": 1}


async def test_drops_are_told_counted_and_warned_of(
    make_ours: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """The callback hears of each, the log once, the statistics count them."""
    drops: list[Any] = []
    layer = make_ours(capacity=2, on_drop=drops.append)
    slow = await layer.new_channel()
    quick = await layer.new_channel()
    for name in (slow, quick, "normal"):
        await layer.group_add("g", name)
    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        for _ in range(6):
            await layer.group_send("g", {})
            await layer.receive(quick)
    told = {
        name: sum(drop.members for drop in drops if drop.channel == name)
        for name in {drop.channel for drop in drops}
    }
    assert told == {slow: 4, "normal": 4}
    assert {(drop.depth, drop.capacity, drop.cause) for drop in drops} == {(2, 2, "channel full")}
    assert (await layer.global_statistics())["dropped_count"] == 8
    (record,) = caplog.records
    line = record.getMessage()
    assert "channel full" in line
    assert "2 of 2" in line
    assert "normal" in line or slow in line


async def test_a_send_of_a_failing_callback_has_still_happened(make_ours: MakeLayer) -> None:
    """What ``on_drop`` raises is seen, and the others have their message."""

    def explode(drop: Any) -> None:
        raise RuntimeError(drop.channel)

    layer = make_ours(capacity=1, on_drop=explode)
    for name in ("full", "free"):
        await layer.group_add("g", name)
    await layer.send("full", {})
    with pytest.raises(RuntimeError, match="full"):
        await layer.group_send("g", {"n": 1})
    assert await layer.receive("free") == {"n": 1}


VICTIM = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    names = [await layer.new_channel() for _ in range(50)]
    for name in names:
        await layer.group_add("g", name)
        await layer.group_add("only", name)
    receives = [asyncio.create_task(layer.receive(name)) for name in names]
    await asyncio.sleep(0)
    for name in names:
        await layer.send(name, {})
    await asyncio.gather(*receives)
    say("joined")
    await asyncio.gather(*(layer.receive(name) for name in names))
asyncio.run(main())
"""


async def test_the_memberships_of_a_killed_process_are_gone(
    start: Start, make_ours: MakeLayer
) -> None:
    """With the next ``group_send``, not after ``group_expiry``; the living get it."""
    layer = make_ours(on_drop=pytest.fail)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    victim = start(VICTIM)
    victim.expect("joined")
    assert await layer.group_count("g") == 51
    victim.wait_for_state("S")  # all of its receives wait again
    victim.kill()
    for number in range(3):
        await layer.group_send("g", {"n": number})
        assert await layer.receive(channel) == {"n": number}
        assert await layer.group_channels("g") == [channel]
    await layer.group_send("only", {})
    assert await layer.group_count("only") == 0


async def test_a_process_that_ends_well_leaves_no_member(
    start: Start, make_ours: MakeLayer
) -> None:
    """Its loop gives its place back."""
    layer = make_ours()
    child = start(VICTIM)
    child.expect("joined")
    names = await layer.group_channels("g")
    await layer.group_send("g", {"type": "bye"})
    child.end()
    assert len(names) == 50
    await layer.group_send("g", {})
    assert await layer.group_count("g") == 0


OWN_CHANNEL = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    name = await layer.new_channel()
    say(name)
    while True:
        message = await layer.receive(name)
        await layer.send("answers", {"n": message["n"], "from": name})
asyncio.run(main())
"""


async def test_another_process_s_channel_may_be_added_and_discarded_from_here(
    start: Start, make_ours: MakeLayer
) -> None:
    """It gets what is sent while it is a member, and nothing else."""
    layer = make_ours()
    name = start(OWN_CHANNEL).line()
    await layer.group_add("g", name)
    await layer.group_send("g", {"n": 1})
    assert await layer.receive("answers") == {"n": 1, "from": name}
    await layer.group_discard("g", name)
    await layer.group_send("g", {"n": 2})
    await layer.send(name, {"n": 3})
    assert await layer.receive("answers") == {"n": 3, "from": name}


@pytest.mark.parametrize("channel", ["normal", "x.y!a"])
async def test_a_backlog_grows_the_memory_for_group_messages(
    make_ours: MakeLayer, channel: str
) -> None:
    """Nothing is dropped as long as there is memory that was not used yet."""
    layer = make_ours(capacity=8000, message_memory=16 << 20, on_drop=pytest.fail)
    await layer.group_add("g", channel)
    for number in range(8000):
        await layer.group_send("g", {"n": number})
    assert [(await layer.receive(channel))["n"] for _ in range(8000)] == list(range(8000))


async def test_a_single_reader_channel_of_another_face_is_a_member_like_any(
    make_backend: MakeLayer, make_layer: Callable[..., Any]
) -> None:
    """What Channels 1 has joined, and Channels 4 knows no such name, gets the message."""
    other, layer = make_layer(), make_backend()
    reply = await other.new_channel("reply?")
    await other.group_add("g", reply)
    await layer.group_send("g", {"n": 1})
    assert await other.receive(reply) == {"n": 1}
    with pytest.raises(TypeError):
        await layer.send(reply, {"n": 2})
