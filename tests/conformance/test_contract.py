"""What every face promises, and where they agree Channels' in-memory layer and channels_redis.

Where those do not agree, ``peers.py`` says so.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from tests.test_names import THUMBS

from .conftest import OURS, PEERS, MakeFace
from .faces import Face

NAMES = ["c", "specific.x!abc"]

# Not every face has everything; the reason stands beside each use.
WITH_SINGLE_READERS = pytest.mark.parametrize("make_face", ["async", "sync"], indirect=True)
CANCELLABLE = pytest.mark.parametrize("make_face", ["async", "channels4", *PEERS], indirect=True)


async def all_of(face: Face, channel: str) -> list[int]:
    found = []
    while (message := await face.receive_now(channel)) is not None:
        found.append(message["n"])
    return found


# -- ordering ----------------------------------------------------------------------------


@pytest.mark.parametrize("channel", NAMES)
async def test_first_in_first_out(face: Face, channel: str) -> None:
    """Messages of one channel arrive in the order they were sent."""
    for number in range(90):
        await face.send(channel, {"n": number})
    assert [(await face.receive(channel))[1]["n"] for _ in range(90)] == list(range(90))


@pytest.mark.parametrize("channel", NAMES)
async def test_a_waiting_receive_is_woken(face: Face, channel: str) -> None:
    """A message sent later reaches a receive that began earlier, with its name."""
    for number in range(5):
        receive = asyncio.create_task(face.receive(channel))
        await asyncio.sleep(0)
        await face.send(channel, {"n": number})
        assert await receive == (channel, {"n": number})


@pytest.mark.parametrize("channel", NAMES)
async def test_several_receives_wait_on_one_channel(face: Face, channel: str) -> None:
    """One message each, whenever it comes."""
    receives = [asyncio.create_task(face.receive(channel)) for _ in range(4)]
    try:
        got = []
        for number in range(4):
            await face.send(channel, {"n": number})
            done, _ = await asyncio.wait(receives, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            receives.remove(receive := done.pop())
            got.append(receive.result()[1]["n"])
        assert got == list(range(4))
    finally:
        for receive in receives:
            receive.cancel()
        await asyncio.gather(*receives, return_exceptions=True)


async def test_direct_and_group_messages_keep_one_order(face: Face) -> None:
    """To an ordinary channel and to a process-specific one."""
    for channel in NAMES:
        await face.group_add("g", channel)
    for number in range(0, 30, 2):
        for channel in NAMES:
            await face.send(channel, {"n": number})
        await face.group_send("g", {"n": number + 1})
    for channel in NAMES:
        assert await all_of(face, channel) == list(range(30))


async def test_another_object_is_the_same_layer(make_face: MakeFace) -> None:
    """What one sends the other receives."""
    face, other = make_face(), make_face()
    for number in range(10):
        await (face, other)[number % 2].send("c", {"n": number})
    assert await all_of(other, "c") == list(range(10))
    await other.group_add("g", "c")
    await face.group_send("g", {"n": 1})
    assert await all_of(face, "c") == [1]


# -- names -------------------------------------------------------------------------------


@pytest.mark.parametrize("known_before", [False, True])
@pytest.mark.parametrize("name", THUMBS, ids=lambda name: type(name).__name__)
@pytest.mark.parametrize("make_face", OURS, indirect=True)
async def test_a_member_of_an_enumeration_names_its_value(
    make_face: MakeFace, name: Any, known_before: bool
) -> None:
    """Of channels and groups, whether or not the name has been used as a plain str before."""
    face = make_face(channel_capacity={name: 3} if isinstance(name, str) else None)
    if known_before:
        await face.send("thumbs", {"n": 0})
        await face.receive("thumbs")
        await face.group_add("thumbs", "other")
    await face.send(name, {"n": 1})
    await face.group_add(name, name)
    await face.group_send(name, {"n": 2})
    assert await face.receive("thumbs") == ("thumbs", {"n": 1})
    assert await face.receive(name) == ("thumbs", {"n": 2})
    await face.group_discard("thumbs", "thumbs")
    await face.group_send("thumbs", {"n": 3})
    assert await face.receive_now(name) is None
    await face.group_add(name, name)
    await face.group_discard(name, name)
    await face.group_send("thumbs", {"n": 4})
    assert await face.receive_now("thumbs") is None


# -- capacity ----------------------------------------------------------------------------


@pytest.mark.parametrize("channel", NAMES)
async def test_a_full_channel_refuses(make_face: MakeFace, channel: str) -> None:
    """The capacity is how many it holds; a receive makes room for one."""
    face = make_face(capacity=3)
    for number in range(3):
        await face.send(channel, {"n": number})
    for _ in range(2):
        with pytest.raises(face.full):
            await face.send(channel, {"n": 99})
    await face.receive(channel)
    await face.send(channel, {"n": 3})
    with pytest.raises(face.full):
        await face.send(channel, {"n": 99})
    assert await all_of(face, channel) == [1, 2, 3]


async def test_a_pattern_overrides_the_capacity(make_face: MakeFace) -> None:
    """The first that matches wins."""
    face = make_face(capacity=1, channel_capacity={"big.*": 5, "big.x": 2})
    for number in range(5):
        await face.send("big.x", {"n": number})
    with pytest.raises(face.full):
        await face.send("big.x", {})
    await face.send("small", {"n": 1})
    with pytest.raises(face.full):
        await face.send("small", {})


async def test_capacity_of_specific_names(make_face: MakeFace) -> None:
    """Channels 4 counts each full name for itself, Channels 1 all of a home together."""
    face = make_face(capacity=2)
    await face.send("x!a", {"n": 1})
    await face.send("x!b", {"n": 2})
    if face.counts_by_name:
        await face.send("x!a", {"n": 3})
        with pytest.raises(face.full):
            await face.send("x!a", {"n": 99})
    else:
        with pytest.raises(face.full):
            await face.send("x!c", {"n": 99})


async def test_a_full_member_misses_a_group_message_and_nobody_hears(make_face: MakeFace) -> None:
    """The others get it; group_send raises nothing."""
    face = make_face(capacity=1)
    for channel in ("a", "b"):
        await face.group_add("g", channel)
    await face.send("a", {"n": 0})
    await face.group_send("g", {"n": 1})
    assert await all_of(face, "a") == [0]
    assert await all_of(face, "b") == [1]


@pytest.mark.parametrize("make_face", OURS, indirect=True)
async def test_a_group_send_says_whom_it_reached(make_face: MakeFace) -> None:
    """How many members, and how many were full, whatever kind of channel they have."""
    face = make_face(capacity=1)
    assert await face.group_send("g", {"n": 0}) == (0, 0)
    for channel in ("a", "b", "x!a", "x!b", "y!a"):
        await face.group_add("g", channel)
    await face.send("a", {"n": 1})
    assert await face.group_send("g", {"n": 2}) == (4, 1)
    await face.receive("b")
    await face.receive("y!a")
    assert await face.group_send("g", {"n": 3}) == (2, 3)
    await face.group_discard("g", "x!a")
    await face.receive("y!a")
    assert await face.group_send("g", {"n": 4}) == (1, 3)


# -- expiry ------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", NAMES)
async def test_an_expired_message_is_gone(make_face: MakeFace, channel: str) -> None:
    """And does not count against the capacity."""
    face = make_face(expiry=10, capacity=3)
    for number in range(3):
        await face.send(channel, {"n": number})
    face.advance(11)
    assert await face.receive_now(channel) is None
    for number in range(3, 6):
        await face.send(channel, {"n": number})
    face.advance(9)
    assert await all_of(face, channel) == [3, 4, 5]


async def test_a_channel_full_of_expired_messages_takes_as_many_again(
    make_face: MakeFace,
) -> None:
    """Without anybody having received."""
    face = make_face(expiry=10, capacity=3)
    for channel in NAMES:
        for number in range(3):
            await face.send(channel, {"n": number})
        face.advance(11)
        for number in range(3, 6):
            await face.send(channel, {"n": number})
        with pytest.raises(face.full):
            await face.send(channel, {"n": 99})
        assert await all_of(face, channel) == [3, 4, 5]


async def test_a_membership_ends_after_group_expiry(make_face: MakeFace) -> None:
    """Counted from the last time it was added."""
    face = make_face(group_expiry=100)
    for channel in NAMES:
        await face.group_add("g", channel)
    face.advance(60)
    await face.group_add("g", "c")
    face.advance(60)
    await face.group_send("g", {"n": 1})
    assert await all_of(face, "c") == [1]
    assert await all_of(face, NAMES[1]) == []
    face.advance(60)
    await face.group_send("g", {"n": 2})
    assert await all_of(face, "c") == []


# -- groups ------------------------------------------------------------------------------


async def test_members_get_what_others_do_not(face: Face) -> None:
    """Added twice is a member once; discarded is none; strangers are fine."""
    for channel in ("a", "b", "x!1", "a"):
        await face.group_add("g", channel)
    await face.group_discard("g", "b")
    await face.group_discard("g", "stranger")
    await face.group_discard("nothing", "stranger")
    await face.group_send("g", {"n": 1})
    await face.group_send("nothing", {"n": 2})
    assert await all_of(face, "a") == [1]
    assert await all_of(face, "x!1") == [1]
    assert await all_of(face, "b") == []


async def test_a_message_sent_before_joining_or_after_leaving_is_not_for_you(face: Face) -> None:
    """A member gets what was sent while it was one, even when it reads later."""
    await face.group_add("g", "y!stays")
    for number, step in enumerate((None, face.group_add, None, face.group_discard, None)):
        if step is not None:
            await step("g", "y!comes")
        await face.group_send("g", {"n": number})
    for channel, expected in (("y!stays", [0, 1, 2, 3, 4]), ("y!comes", [1, 2])):
        if face.counts_by_name:
            assert await all_of(face, channel) == expected


async def test_leaving_and_joining_again_keeps_what_was_sent(face: Face) -> None:
    """A message already on its way is not lost by it."""
    for channel in NAMES:
        await face.group_add("g", channel)
        await face.group_send("g", {"n": 1})
        await face.group_discard("g", channel)
        await face.group_add("g", channel)
        assert await all_of(face, channel) == [1]


@pytest.mark.parametrize("members", [("a", "b"), ("x!a", "x!b")], ids=["normal", "specific"])
async def test_every_member_gets_its_own_copy(face: Face, members: tuple[str, str]) -> None:
    """What one changes the other does not see, nor the sender."""
    message = {"n": 1, "list": [1]}
    for channel in members:
        await face.group_add("g", channel)
    await face.group_send("g", message)
    first, second = [await face.receive_now(channel) for channel in members]
    assert first is not None and second is not None
    first["list"].append(2)
    assert second["list"] == message["list"] == [1]


# -- values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "text é\U0001f600",
        b"\0\xff",
        2**63 - 1,
        -(2**63),
        1.5,
        math.inf,
        None,
        True,
        [1, [2, {"three": 3}]],
        {},
        "x" * 1_000_000,
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_value_arrives_as_it_was(face: Face, value: Any) -> None:
    """Everything a consumer may put into a message."""
    await face.send("c", {"value": value})
    _, message = await face.receive("c")
    assert message == {"value": value}
    assert type(message["value"]) is type(value)


async def test_the_empty_message_arrives(face: Face) -> None:
    """It is a message like any other."""
    for channel in NAMES:
        await face.send(channel, {})
        assert (await face.receive(channel))[1] == {}


async def test_the_empty_message_reaches_receives_that_wait(face: Face) -> None:
    """On two names of one home, whichever of them takes it from there."""
    names = ["x!a", "x!b"]
    receives = [asyncio.create_task(face.receive(name)) for name in names]
    await asyncio.sleep(0)
    for name in names:
        await face.send(name, {})
    assert sorted([await receive for receive in receives]) == [(name, {}) for name in names]


async def test_the_sender_keeps_its_message(face: Face) -> None:
    """Neither changed by sending nor by what the receiver does."""
    message = {"list": [1]}
    await face.send("c", message)
    message["list"].append(2)
    _, got = await face.receive("c")
    assert got == {"list": [1]}


async def test_what_is_no_message_is_refused(face: Face) -> None:
    """By an AssertionError, and nothing is sent."""
    refused: tuple[Any, ...] = (None, [], "text", {"__asgi_channel__": "x"})
    for bad in refused:
        with pytest.raises(AssertionError):
            await face.send("c", bad)
    assert await face.receive_now("c") is None


# -- names -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "", "x" * 101, "a/b", "é", "a!b!c", None, 3, b"a"])
async def test_a_bad_name_is_a_type_error(face: Face, name: Any) -> None:
    """Whatever the call."""
    with pytest.raises(TypeError):
        await face.send(name, {})
    with pytest.raises(TypeError):
        await face.group_add("g", name)
    with pytest.raises(TypeError):
        await face.group_add(name, "c")
    with pytest.raises(TypeError):
        await face.group_send(name, {})


async def test_only_ascii_is_in_a_name(face: Face) -> None:
    """Also where the original let it through."""
    for name in ("a\n", "a!٣"):
        with pytest.raises(TypeError):
            await face.send(name, {})


async def test_new_channels_are_unused_and_work(face: Face) -> None:
    """Each of them process-specific, all of them different."""
    names = [await face.new_channel() for _ in range(20)]
    assert len(set(names)) == 20
    for number, name in enumerate(names):
        assert "!" in name
        await face.send(name, {"n": number})
        assert (await face.receive(name))[1] == {"n": number}


async def test_a_home_stands_for_everything_below_it(face: Face) -> None:
    """In the order it was sent, with full names; other homes stay apart."""
    sent = [("x!b", 1), ("y!a", 9), ("x!a", 2), ("x!", 3), ("x!b", 4)]
    for name, number in sent:
        await face.send(name, {"n": number})
    got = [await face.receive("x!") for _ in range(4)]
    assert [(name, message["n"]) for name, message in got] == [
        (name, number) for name, number in sent if name.startswith("x")
    ]
    assert await face.receive_now("x!") is None
    assert (await face.receive("y!"))[1] == {"n": 9}


@WITH_SINGLE_READERS  # Channels 4 has no such names
async def test_a_single_reader_channel_is_in_order(face: Face) -> None:
    """Names with a "?", whoever made them."""
    for number in range(20):
        await face.send("reply?made.elsewhere", {"n": number})
    assert await all_of(face, "reply?made.elsewhere") == list(range(20))


# -- cancellation ------------------------------------------------------------------------


@pytest.mark.parametrize("channel", NAMES)
@CANCELLABLE  # a thread that blocks cannot be cancelled
async def test_a_cancelled_receive_takes_nothing_along(face: Face, channel: str) -> None:
    """The next one gets the message."""
    for turns in range(6):
        receive = asyncio.create_task(face.receive(channel))
        await asyncio.sleep(0)
        await face.send(channel, {"n": turns})
        for _ in range(turns):
            await asyncio.sleep(0)
        receive.cancel()
        try:
            got = (await receive)[1]
        except asyncio.CancelledError:
            got = (await face.receive(channel))[1]
        assert got == {"n": turns}
        assert await face.receive_now(channel) is None


# -- flush -------------------------------------------------------------------------------


async def test_flush_empties_messages_and_groups(face: Face) -> None:
    """And everything works as before."""
    for channel in NAMES:
        await face.send(channel, {"n": 1})
        await face.group_add("g", channel)
    await face.flush()
    await face.group_send("g", {"n": 2})
    for channel in NAMES:
        assert await face.receive_now(channel) is None
        await face.send(channel, {"n": 3})
        assert (await face.receive(channel))[1] == {"n": 3}
