"""The asyncio face: what it promises to one process; other files have many."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from django.utils.functional import lazystr

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.exceptions import (
    InvalidName,
    LayerClosed,
    MessageTooLarge,
    StoreLocked,
    UnserialisableValue,
)

from .conftest import problems_of
from .stepping import SteppingLoop, World, drive

if TYPE_CHECKING:
    from .conftest import Child, Clock

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

HOLD_LOCK = """
import fcntl
fd = os.open(f"/dev/shm/{PREFIX}-messages", os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
say("locked")
sys.stdin.readline()
"""


# -- construction ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefix": ""}, InvalidName),
        ({"prefix": "a/b"}, InvalidName),
        ({"prefix": "x" * 61}, InvalidName),
        ({"prefix": 3}, InvalidName),
        ({"capacity": 0}, ValueError),
        ({"capacity": "10"}, TypeError),
        ({"expiry": 0}, ValueError),
        ({"expiry": None}, TypeError),
        ({"group_expiry": -1}, ValueError),
        ({"message_memory": 1000}, ValueError),
        ({"group_memory": 1000}, ValueError),
        ({"lock_timeout": 0}, ValueError),
        ({"channel_capacity": {"a": 0}}, ValueError),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_made(
    prefix: str, options: dict[str, Any], error: type[Exception]
) -> None:
    """No segment is left by a layer that was never built."""
    with pytest.raises(error):
        AsyncIPCChannelLayer(**{"prefix": prefix, **options})
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def test_the_options_are_attributes(make_layer: MakeLayer) -> None:
    """Positional in upstream's order, and readable."""
    layer = make_layer(expiry=7, group_expiry=8, capacity=9)
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (7, 8, 9)
    assert {"groups", "flush"} <= set(layer.extensions)
    assert bool(layer)


def test_a_layer_is_made_without_a_loop_and_used_in_many(make_layer: MakeLayer) -> None:
    """One object, one loop after the other."""
    layer = make_layer()

    async def use(number: int) -> None:
        await layer.send("c", {"n": number})
        assert await layer.receive("c") == {"n": number}

    for number in range(20):
        asyncio.run(use(number))


# -- send and receive --------------------------------------------------------------------


async def test_a_waiting_receive_gets_what_is_sent(make_layer: MakeLayer) -> None:
    """From another layer object as from its own."""
    layer, other = make_layer(), make_layer()
    for sender in (layer, other):
        for channel in ("c", "c?x", "x!a", "x!"):
            receive = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0)
            await sender.send(channel, {"to": channel})
            assert await receive == {"to": channel}


async def test_what_is_sent_first_is_received_first(make_layer: MakeLayer) -> None:
    """Per channel, and for everything below a home together."""
    layer = make_layer(capacity=1000)
    for number in range(500):
        await layer.send(f"x!{number % 3}", {"n": number})
    assert [(await layer.receive("x!"))["n"] for _ in range(500)] == list(range(500))
    for number in range(300):
        await layer.send(f"x!{number % 3}", {"n": number})
    for name in range(3):
        got = [(await layer.receive(f"x!{name}"))["n"] for _ in range(100)]
        assert got == list(range(name, 300, 3))


async def test_a_busy_channel_does_not_starve_a_quiet_one(make_layer: MakeLayer) -> None:
    """A receive of several channels looks at each of them first in turn."""
    layer = make_layer(capacity=1000)
    for number in range(200):
        await layer.send("busy", {"n": number})
    await layer.send("quiet", {})
    seen = [(await layer.receive_async(["busy", "quiet", "silent"]))[0] for _ in range(6)]
    assert "quiet" in seen


@pytest.mark.parametrize("channels", [[], (), None, set(), iter(())])
async def test_receiving_from_nothing_ends(make_layer: MakeLayer, channels: Any) -> None:
    """At once without blocking, after ``block_timeout`` with."""
    layer = make_layer(block_timeout=0.01)
    assert await layer.receive_async(channels, block=False) == (None, None)
    assert await layer.receive_async(channels) == (None, None)


async def test_a_receive_ends_after_block_timeout(make_layer: MakeLayer) -> None:
    """With nothing; and the next one gets what comes later."""
    layer = make_layer(block_timeout=0.01)
    for channels in (["c"], ["a", "b", "x!y"], ["x!"]):
        assert await layer.receive_async(channels) == (None, None)
    await layer.send("c", {})
    assert await layer.receive_async(["c"]) == ("c", {})


def test_a_cancellation_at_the_moment_of_the_timeout_is_not_swallowed(
    make_layer: MakeLayer,
) -> None:
    """Whichever of the two comes first, a cancelled task ends cancelled."""
    layer = make_layer(block_timeout=0.0)
    for place in range(12):
        loop = SteppingLoop()
        task = loop.create_task(layer.receive_async(["c"]))
        for _ in range(place):
            loop.step()
        is_too_late = task.done()
        task.cancel()
        loop.settle()
        assert task.cancelled() or is_too_late, f"cancelled before step {place}"
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def test_a_receive_makes_room_at_once(make_layer: MakeLayer) -> None:
    """Also when somebody else's receive had drawn the message into the inbox."""
    layer = make_layer(capacity=1)
    await layer.send("x!a", {"n": 1})
    await layer.send("x!b", {"n": 2})
    assert await layer.receive("x!b") == {"n": 2}
    assert await layer.receive("x!a") == {"n": 1}
    await layer.send("x!a", {"n": 3})
    assert await layer.receive("x!a") == {"n": 3}


async def test_a_received_message_is_the_receivers_own(make_layer: MakeLayer) -> None:
    """Neither what was sent nor what others received is the same object."""
    layer = make_layer()
    message = {"list": [1]}
    for channel in ("a", "x!b", "x!c"):
        await layer.group_add("g", channel)
    await layer.group_send("g", message)
    await layer.send("a", message)
    assert message == {"list": [1]}
    got = [await layer.receive(channel) for channel in ("a", "x!b", "x!c", "a")]
    for one in got:
        one["list"].append(2)
    assert all(one == {"list": [1, 2]} for one in got)
    assert message == {"list": [1]}


async def test_refusals_name_their_reason_and_send_nothing(make_layer: MakeLayer) -> None:
    """A bad name, a bad value, a reserved key, a message too large."""
    layer = make_layer(max_message_bytes=1000)
    with pytest.raises(InvalidName):
        await layer.send("a b", {})
    with pytest.raises(UnserialisableValue, match=r"\['user'\]"):
        await layer.send("c", {"user": object()})
    with pytest.raises(AssertionError):
        await layer.send("c", [])  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        await layer.send("c", {"__asgi_channel__": 1})
    with pytest.raises(MessageTooLarge, match="1000") as caught:
        await layer.send("c", {"body": b"x" * 1001})
    assert caught.value.limit_bytes == 1000
    assert (caught.value.message_bytes or 0) > 1000
    with pytest.raises(InvalidName):
        await layer.receive("a b")
    with pytest.raises(InvalidName):
        await layer.receive_async(["a", "b?"])
    assert await layer.receive_async(["c"], block=False) == (None, None)


async def test_every_message_below_the_limit_fits(make_layer: MakeLayer) -> None:
    """In an empty segment the stated limit is the true one, to the byte, again and again."""
    layer = make_layer()
    with pytest.raises(MessageTooLarge) as caught:
        await layer.send("c", {"b": bytes(9 << 20)})
    limit = caught.value.limit_bytes
    assert limit is not None
    overhead = (caught.value.message_bytes or 0) - (9 << 20)
    for share in (0.1, 0.4, 0.6, 0.9, 1.0, 0.3, 0.95, 1.0):
        body = os.urandom(int(limit * share) - overhead)
        await layer.send("c", {"b": body})
        assert (await layer.receive("c"))["b"] == body
    with pytest.raises(MessageTooLarge):
        await layer.send("c", {"b": bytes(limit + 1)})


async def test_large_bodies_come_back_byte_for_byte(make_layer: MakeLayer) -> None:
    """Whatever the sizes before and after, as the memory grows underneath them."""
    layer = make_layer(message_memory=32 << 20)
    for megabytes in (1, 3, 2, 5, 4, 8, 1, 7, 13, 2, 20):
        body = os.urandom(megabytes << 20)
        await layer.send("c", {"b": body})
        await layer.send("d", {"small": megabytes})
        assert (await layer.receive("c"))["b"] == body
        assert await layer.receive("d") == {"small": megabytes}


# -- cancellation ------------------------------------------------------------------------


async def test_timeouts_in_a_tight_loop_lose_nothing(make_layer: MakeLayer) -> None:
    """Receives that give up all the time, against a sender that never waits for them."""
    layer, sender = make_layer(capacity=10_000), make_layer(capacity=10_000)
    got: list[int] = []

    async def receive() -> None:
        while len(got) < 2000:
            with contextlib.suppress(TimeoutError):
                got.append((await asyncio.wait_for(layer.receive("c"), 0.0002))["n"])

    receiver = asyncio.create_task(receive())
    for number in range(2000):
        await sender.send("c", {"n": number})
        if number % 7 == 0:
            await asyncio.sleep(0.0002)
    await receiver
    assert got == list(range(2000))


@pytest.mark.parametrize("channel", ["c", "x!a"])
async def test_cancelled_receives_lose_nothing(make_layer: MakeLayer, channel: str) -> None:
    """Cancelled at every number of loop turns after the message."""
    layer, sender = make_layer(), make_layer()
    for turns in range(12):
        receive = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await sender.send(channel, {"turns": turns})
        for _ in range(turns):
            await asyncio.sleep(0)
        receive.cancel()
        try:
            got = await receive
        except asyncio.CancelledError:
            _, got_late = await layer.receive_async([channel], block=False)
            assert got_late is not None
            got = got_late
        assert got == {"turns": turns}


@pytest.mark.parametrize("way", ["receive", "receive_async", "receive_within"])
@pytest.mark.parametrize("channels", [["c"], ["x!a"], ["c", "d"]])
async def test_receives_that_never_wait_let_the_loop_turn(
    make_layer: MakeLayer, way: str, channels: list[str]
) -> None:
    """A timeout ends a loop of receives long before a long queue does, and loses nothing."""
    layer = make_layer(capacity=10_000)
    if len(channels) > 1:
        way = "receive_async"
    count = 2000
    for number in range(count):
        await layer.send(channels[number % len(channels)], {"n": number})
    got: list[int] = []
    over = asyncio.Event()

    async def receive_all() -> None:
        while True:
            if way == "receive_async":
                _, message = await layer.receive_async(channels)
            elif way == "receive":
                message = await layer.receive(channels[0])
            else:
                message = await layer.receive_within(channels[0], None)
            assert message is not None
            got.append(message["n"])
            if len(got) == 100:
                over.set()

    task = asyncio.create_task(receive_all())
    await over.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert 100 <= len(got) < 300
    while (message := (await layer.receive_async(channels, block=False))[1]) is not None:
        got.append(message["n"])
    assert sorted(got) == list(range(count))


async def test_a_cancelled_receive_leaves_no_waiter(make_layer: MakeLayer) -> None:
    """A thousand of them, and nothing is parked or remembered."""
    layer = make_layer()
    tasks = [asyncio.create_task(layer.receive_async([f"c{n}", "x!a"])) for n in range(1000)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    (port,) = layer._site.ports()
    assert not port.waiting.by_key
    assert not port.waiting.by_home


async def test_many_waiters_of_one_channel_share_its_messages(make_layer: MakeLayer) -> None:
    """Each message goes to one of them, and those without keep waiting."""
    layer, sender = make_layer(), make_layer()
    for channel in ("c", "x!a"):
        tasks = [asyncio.create_task(layer.receive(channel)) for _ in range(100)]
        await asyncio.sleep(0)
        for number in range(60):
            await sender.send(channel, {"n": number})
        done: set[asyncio.Task[Any]] = set()
        while len(done) < 60:
            done, _ = await asyncio.wait(tasks, timeout=0.001)
        assert sorted(task.result()["n"] for task in done) == list(range(60))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- loops and threads -------------------------------------------------------------------


def test_two_loops_in_two_threads_receive_at_once(make_layer: MakeLayer) -> None:
    """One layer object; ordinary and process-specific channels; nothing lost."""
    layer = make_layer(capacity=1000)
    results: dict[str, list[int]] = {}

    def run(name: str) -> None:
        async def receive() -> None:
            own = await layer.new_channel()
            results[own] = []
            ready.put(own)
            for _ in range(200):
                results[own].append((await layer.receive(own))["n"])

        asyncio.run(receive())

    import queue

    ready: queue.Queue[str] = queue.Queue()
    threads = [threading.Thread(target=run, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    names = [ready.get() for _ in threads]
    for number in range(200):
        for name in names:
            drive(layer.send(name, {"n": number}))
    for thread in threads:
        thread.join()
    assert all(results[name] == list(range(200)) for name in names)


def test_sends_from_many_threads_keep_each_threads_order(make_layer: MakeLayer) -> None:
    """While a loop receives, and with the smallest switch interval."""
    layer = make_layer(capacity=100_000)

    def send(who: int) -> None:
        for number in range(300):
            drive(layer.send("c", {"who": who, "n": number}))

    async def receive() -> dict[int, list[int]]:
        got: dict[int, list[int]] = {}
        for _ in range(6 * 300):
            message = await layer.receive("c")
            got.setdefault(message["who"], []).append(message["n"])
        return got

    threads = [threading.Thread(target=send, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    got = asyncio.run(receive())
    for thread in threads:
        thread.join()
    assert got == {who: list(range(300)) for who in range(6)}


def test_closing_in_one_thread_while_others_send(make_layer: MakeLayer) -> None:
    """A send meets an open layer or opens it again; nothing but that ever comes out."""
    layer = make_layer(capacity=100_000)
    stop = threading.Event()
    failures: list[BaseException] = []

    async def use(channel: str) -> None:
        while not stop.is_set():
            await layer.send(channel, {"n": 1})
            await layer.receive_async([channel], block=False)
            await layer.group_add("g", channel)

    def work(channel: str) -> None:
        try:
            asyncio.run(use(channel))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(f"c{who}",)) for who in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        layer.close_now()
        time.sleep(0.0005)  # let them open it again
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_closing_wakes_those_who_wait(make_layer: MakeLayer) -> None:
    """From another thread too; the layer is usable afterwards."""
    layer = make_layer()

    async def wait(started: threading.Event) -> None:
        receive = asyncio.create_task(layer.receive("c"))
        await asyncio.sleep(0)
        started.set()
        with pytest.raises(LayerClosed):
            await receive

    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(wait(started)))
    thread.start()
    started.wait()
    layer.close_now()
    thread.join()
    asyncio.run(layer.send("c", {"again": True}))
    assert asyncio.run(layer.receive("c")) == {"again": True}


async def test_closing_is_idempotent_and_keeps_the_messages(make_layer: MakeLayer) -> None:
    """A closed layer attaches again when it is next used."""
    layer = make_layer()
    async with layer as same:
        assert same is layer
        await layer.send("c", {"n": 1})
        await layer.group_add("g", "c")
    await layer.close()
    await layer.close()
    assert await layer.group_channels("g") == ["c"]
    assert await layer.receive("c") == {"n": 1}


def test_a_loop_closed_with_a_receive_pending_is_silent(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """``asyncio.run`` ends, slot and door are given back, the message is still there."""
    layer = make_layer()

    async def leave() -> None:
        layer.receiving = asyncio.create_task(layer.receive("c"))  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert os.listdir(f"/dev/shm/{layer.prefix}-bells") == ["alive"]  # the witness file
    drive(layer.send("c", {"n": 1}))
    assert asyncio.run(layer.receive("c")) == {"n": 1}
    assert not caplog.records


# -- groups ------------------------------------------------------------------------------


async def test_a_group_message_reaches_every_member_once(make_layer: MakeLayer) -> None:
    """Ordinary channels, several names of one home, other loops' names."""
    layer, other = make_layer(), make_layer()
    members = ["a", "b", "x!1", "x!2", "y!1"]
    for member in [*members, "a"]:
        await layer.group_add("g", member)
    assert sorted(await other.group_channels("g")) == members
    await other.group_send("g", {"n": 1})
    for member in members:
        receiver = other if member.startswith("y") else layer
        assert await receiver.receive(member) == {"n": 1}
        assert await receiver.receive_async([member], block=False) == (None, None)


async def test_direct_and_group_messages_keep_one_order(make_layer: MakeLayer) -> None:
    """What one sender sends to one channel arrives in its order, whichever way it went."""
    layer, sender = make_layer(), make_layer()
    for channel in ("c", "x!a"):
        await layer.group_add("g", channel)
    for number in range(0, 60, 3):
        await sender.send("c", {"n": number})
        await sender.send("x!a", {"n": number})
        await sender.group_send("g", {"n": number + 1})
        await sender.send("c", {"n": number + 2})
        await sender.send("x!a", {"n": number + 2})
    for channel in ("c", "x!a"):
        assert [(await layer.receive(channel))["n"] for _ in range(60)] == list(range(60))


async def test_leaving_and_joining_again_loses_nothing(make_layer: MakeLayer) -> None:
    """A message sent to a member reaches it, wherever it has been meanwhile."""
    layer = make_layer()
    await layer.group_add("g", "x!a")
    await layer.group_send("g", {"n": 1})
    await layer.group_discard("g", "x!a")
    await layer.group_send("g", {"n": 2})
    await layer.group_add("g", "x!a")
    await layer.group_send("g", {"n": 3})
    assert [(await layer.receive("x!a"))["n"] for _ in range(2)] == [1, 3]
    assert await layer.receive_async(["x!a"], block=False) == (None, None)


async def test_a_member_that_left_keeps_what_was_sent_before(make_layer: MakeLayer) -> None:
    """Also when its process has just looked into its home, and when another process sent it."""
    layer, sender = make_layer(), make_layer()
    for channel in ("x!a", "x!b"):
        await layer.group_add("g", channel)
    for number in range(3):
        await sender.group_send("g", {"n": number})
        if number < 2:
            assert (await layer.receive("x!b"))["n"] == number
            assert (await layer.receive("x!a"))["n"] == number
        else:
            await layer.group_discard("g", "x!a")
            assert (await layer.receive("x!a"))["n"] == number
    assert (await layer.receive("x!b"))["n"] == 2
    assert await layer.group_channels("g") == ["x!b"]


@pytest.mark.parametrize("call", ["group_add", "group_discard"])
async def test_a_groups_name_is_checked_every_time(make_layer: MakeLayer, call: str) -> None:
    """A valid one is remembered, an invalid one and what is no plain str never is."""
    layer = make_layer()
    change = getattr(layer, call)
    for _ in range(2):
        await change("g", "c")
        for wrong in ("g!", "", "x" * 100, b"g", ["g"], None, 3):
            with pytest.raises(InvalidName):
                await change(wrong, "c")


async def test_a_slow_member_loses_its_own_messages_only(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its neighbours of the same home get every one; the drops are counted and said once."""
    layer = make_layer(capacity=5)
    for member in ("x!slow", "x!quick", "c"):
        await layer.group_add("g", member)
    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        for number in range(50):
            await layer.group_send("g", {"n": number})
            assert (await layer.receive("x!quick"))["n"] == number
    assert 5 <= len([n for n in range(50) if (await _now(layer, "x!slow"))]) <= 6
    assert (await layer.global_statistics())["dropped_count"] > 40
    assert 1 <= len(caplog.records) <= 2


async def _now(layer: AsyncIPCChannelLayer, channel: str) -> dict[str, Any] | None:
    return (await layer.receive_async([channel], block=False))[1]


async def test_a_group_of_nobody_is_sent_to_in_vain(make_layer: MakeLayer) -> None:
    """No error, nothing kept."""
    layer = make_layer()
    await layer.group_send("nobody", {"n": 1})
    await layer.group_discard("nobody", "c")
    assert await layer.group_channels("nobody") == []


async def test_a_killed_processs_memberships_go(start: Start, make_layer: MakeLayer) -> None:
    """Long before ``group_expiry``."""
    layer = make_layer()
    child = start(
        """
async def main():
    layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
    name = await layer.new_channel()
    await layer.group_add("g", name)
    receive = asyncio.create_task(layer.receive(name))
    await asyncio.sleep(0)
    say(name)
    await receive
    await layer.receive(name)
asyncio.run(main())
"""
    )
    name = child.line()
    await layer.group_add("g", "c")
    await layer.group_send("g", {"n": 1})
    assert sorted(await layer.group_channels("g")) == sorted(["c", name])
    child.kill()
    for _ in range(1000):
        await layer.group_send("g", {"n": 2})
        if await layer.group_channels("g") == ["c"]:
            break
        await asyncio.sleep(0.002)  # its socket tells; a living peer is asked once a millisecond
    assert await layer.group_channels("g") == ["c"]


# -- everything --------------------------------------------------------------------------


async def test_flush_empties_everything_and_waiters_go_on(make_layer: MakeLayer) -> None:
    """Queues, inboxes, groups, for every layer; receives that wait still get what comes."""
    layer, other = make_layer(), make_layer()
    waiting = [asyncio.create_task(layer.receive(channel)) for channel in ("c", "x!a")]
    await asyncio.sleep(0)
    for number in range(3):
        await other.send("d", {"n": number})
        await other.send("x!b", {"n": number})
    await layer.receive("x!b")  # drains the others into the inbox
    await other.group_add("g", "d")
    await other.flush()
    for channel in ("d", "x!b"):
        assert await layer.receive_async([channel], block=False) == (None, None)
    assert await layer.group_channels("g") == []
    await other.send("c", {"after": 1})
    await other.send("x!a", {"after": 2})
    assert [await task for task in waiting] == [{"after": 1}, {"after": 2}]


async def test_statistics_have_the_keys_of_the_specification(make_layer: MakeLayer) -> None:
    """Global and per channel."""
    layer = make_layer(capacity=2)
    for _ in range(2):
        await layer.send("c", {})
    with pytest.raises(layer.ChannelFull):
        await layer.send("c", {})
    await layer.receive("c")
    for statistics in (await layer.global_statistics(), await layer.channel_statistics("c")):
        assert statistics["messages_count"] == 2
        assert statistics["messages_pending"] == 1
        assert statistics["channel_full_count"] == 1
        assert statistics["messages_max_age"] >= 0
        assert statistics["messages_count_per_second"] >= 0
        assert statistics["channel_full_count_per_second"] >= 0


async def test_a_deleted_segment_is_said_loudly_and_followed(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """RemoveIPC=yes and the like: an error in the log, and both sides meet in the new one."""
    layer = make_layer()
    await layer.send("c", {})
    for name in ("messages", "groups"):
        os.unlink(f"/dev/shm/{layer.prefix}-{name}")
    newcomer = make_layer()
    layer._site.watch_at_ns = 0  # a second has passed
    with caplog.at_level(logging.ERROR, "asgi_ipc"):
        await layer.send("c", {"n": 2})
    assert "deleted underneath" in caplog.text
    assert await newcomer.receive("c") == {"n": 2}


async def test_new_channels_are_unique_and_valid(make_layer: MakeLayer) -> None:
    """Independent of ``random.seed``; of one loop's own home, or single-reader."""
    import random

    layer, other = make_layer(), make_layer()
    names = []
    for one in (layer, other):
        random.seed(1)
        names += [await one.new_channel() for _ in range(50)]
        names += [await one.new_channel("reply?") for _ in range(50)]
    assert len(set(names)) == 200
    assert len({name.split("!")[0] for name in names if "!" in name}) == 2
    assert names[0].startswith("specific.")
    for bad in ("a!", "a!b", "a b", "x" * 99):
        with pytest.raises(InvalidName):
            await layer.new_channel(bad)


# -- the lock ----------------------------------------------------------------------------


async def test_a_busy_lock_holds_up_the_operation_and_not_the_loop(
    start: Start, make_layer: MakeLayer
) -> None:
    """Others run meanwhile; once the lock is free everything goes through."""
    layer = make_layer()
    child = start(HOLD_LOCK)
    child.expect("locked")
    sends = [asyncio.create_task(layer.send("c", {"n": number})) for number in range(3)]
    receive = asyncio.create_task(layer.receive("d"))
    ticks = 0
    while ticks < 20:
        await asyncio.sleep(0.001)
        ticks += 1
    assert not any(task.done() for task in [*sends, receive])
    child.tell()
    await asyncio.gather(*sends)
    await layer.send("d", {"n": 9})
    assert await receive == {"n": 9}
    assert sorted([(await layer.receive("c"))["n"] for _ in range(3)]) == [0, 1, 2]
    child.end()


async def test_a_lock_that_is_never_free_is_an_error_that_names_the_holder(
    start: Start, make_layer: MakeLayer
) -> None:
    """After ``lock_timeout``; a send cancelled before that has sent nothing."""
    layer = make_layer(lock_timeout=0.05)
    child = start(HOLD_LOCK)
    child.expect("locked")
    with pytest.raises(StoreLocked, match=str(child.pid)) as caught:
        await layer.send("c", {"n": 1})
    assert caught.value.holder_pid == child.pid
    with pytest.raises(StoreLocked):
        await layer.receive("c")
    send = asyncio.create_task(layer.send("c", {"n": 2}))
    await asyncio.sleep(0)
    send.cancel()
    with pytest.raises(asyncio.CancelledError):
        await send
    child.tell()
    child.end()
    assert await layer.receive_async(["c"], block=False) == (None, None)


async def test_who_was_stopped_itself_tries_again(start: Start, make_layer: MakeLayer) -> None:
    """Time that passed without a try is no waiting: the lock may have been busy for a moment."""
    layer = make_layer(lock_timeout=1e-6)
    child = start(HOLD_LOCK)
    child.expect("locked")
    tries = 0

    async def pause(_: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 5:
            child.tell()
            child.end()

    await layer._site.patiently(pause, layer._site.messages.depth, "c")
    assert tries == 5


def test_closing_ends_a_receive_that_waits_for_the_lock(make_world: Callable[[int], World]) -> None:
    """At every step of it; none is left asleep on a port that is closed."""
    world = make_world(1)
    for place in range(8):
        task = world.loops[0].create_task(world.layers[0].receive("c"))
        drive(world.layers[0].flush())  # attached again
        world.lock()
        for _ in range(place):
            world.loops[0].step()
        world.layers[0].close_now()
        world.unlock()
        world.settle()
        world.send("c")
        world.settle()
        assert task.done(), f"closed before step {place}"
        if isinstance(task.exception(), LayerClosed):
            drive(world.outside.receive_async(["c"], block=False))
        world.sent.clear()


# -- forks -------------------------------------------------------------------------------

FORK = """
import faulthandler
faulthandler.dump_traceback_later(25, exit=True)
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def wait_a_little(name):
    try:
        await asyncio.wait_for(layer.receive(name), 0.001)
    except TimeoutError:
        pass
if sys.argv[2] == "after":
    asyncio.run(wait_a_little("warm"))
async def echo(channel, other, first):
    if first:
        await layer.send(other, {"n": 0})
    for _ in range(50):
        n = (await layer.receive(channel))["n"]
        await layer.send(other, {"n": n + 1})
pid = os.fork()
if pid == 0:
    asyncio.run(echo("to.child", "to.parent", False))
    os._exit(0)
asyncio.run(echo("to.parent", "to.child", True))
assert os.waitpid(pid, 0)[1] == 0
say("both")
"""


@pytest.mark.parametrize("use", ["before", "after"])
def test_fork_and_talk(start: Start, use: str) -> None:
    """Parent and child of a fork, before or after the first wait, wake each other."""
    assert start(FORK, use).end() == "both\n"


def test_a_child_forked_inside_a_running_loop_has_its_own_names(
    start: Start,
) -> None:
    """New channels of parent and child never share a home."""
    child = start(
        """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def name():
    return await layer.new_channel()
say(asyncio.run(name()))
first = layer.new_channel()
try:
    first.send(None)
except StopIteration as done:
    say(done.value)
pid = os.fork()
if pid:
    os.waitpid(pid, 0)  # so that two do not write at once
coroutine = layer.new_channel()
try:
    coroutine.send(None)
except StopIteration as done:
    say(done.value)
if pid == 0:
    os._exit(0)
"""
    )
    homes = {child.line().split("!")[0] for _ in range(4)}
    assert len(homes) == 3  # the loop's, the parent's (twice), the child's
    child.end()


def test_what_was_given_up_as_expired_is_not_uncounted_twice(
    make_layer: MakeLayer, clock: Clock
) -> None:
    """A message that expired in an inbox leaves the count of those sent after it alone."""
    layer = make_layer(capacity=2, expiry=10)
    drive(layer.send("x!a", {"n": 0}))
    assert drive(layer.receive_async(["x!b"], block=False)) == (None, None)  # draws it
    drive(layer.send("x!a", {"n": 1}))
    clock.advance(11)
    drive(layer.send("x!a", {"n": 2}))  # full, but for what has expired
    assert drive(layer.receive_async(["x!a"], block=False)) == ("x!a", {"n": 2})
    assert problems_of(layer) == []


async def test_a_receive_ends_when_a_thread_closes_while_it_waits_for_the_lock(
    make_layer: MakeLayer, start: Start
) -> None:
    """Woken after the closing has begun and before its loop is told, it attaches to nothing."""
    layer = make_layer(lock_timeout=60.0)
    await layer.receive_async(["d"], block=False)
    receive = asyncio.create_task(layer.receive("d"))
    for _ in range(20):
        await asyncio.sleep(0)
    child = start(HOLD_LOCK)
    child.expect("locked")
    layer._site.closings += 1  # what close() does first, on whatever thread
    port = layer._site.port_of(asyncio.get_running_loop())
    assert port is not None
    port.wake("d", 1)
    with pytest.raises(LayerClosed):
        await asyncio.wait_for(receive, 30)
    child.tell()
    child.end()


async def test_every_operation_takes_a_name_by_its_value(
    make_layer: MakeLayer, prefix: str
) -> None:
    """The prefix, the start of a new name, whom to exclude, and whose counts to return."""

    class Name(str, enum.Enum):  # noqa: UP042 - of a StrEnum str() is the value
        SITE = prefix
        KIND = "kind"
        GROUP = "g"

    layer = make_layer(prefix=Name.SITE)
    assert type(layer.prefix) is str
    assert layer.prefix == prefix
    mine = await layer.new_channel(Name.KIND)
    assert mine.startswith("kind.")
    await layer.group_add(Name.GROUP, mine)
    assert await layer.group_channels(Name.GROUP) == [mine]
    await layer.group_send("g", {"n": 1}, exclude=[lazystr(mine)])
    await layer.send_many([(Name.KIND, {"n": 2})])
    assert await layer.receive_async([mine, Name.KIND]) == ("kind", {"n": 2})
    assert (await layer.channel_statistics(Name.KIND))["messages_count"] == 1
    assert layer.sync.receive(Name.KIND, timeout=0) is None


async def test_a_group_send_counts_nobody_who_is_excluded(make_layer: MakeLayer) -> None:
    """Once each, and only members; a home of which nobody is left costs nothing."""
    layer = make_layer()
    mine, other = await layer.new_channel(), await layer.new_channel()
    for channel in (mine, other, "ordinary"):
        await layer.group_add("g", channel)
    stranger = await layer.new_channel()
    excluded = (name for name in (mine, mine, stranger))
    assert await layer.group_send("g", {"n": 1}, exclude=excluded) == (2, 0)
    assert await layer.group_send("g", {"n": 2}, exclude=["ordinary", other]) == (1, 0)
    assert await layer.group_send("g", {"n": 3}, exclude=["ordinary", other, mine]) == (0, 0)
    assert layer.sync.group_send("g", {"n": 4}) == (3, 0)


async def test_a_group_send_counts_nobody_who_is_dead(make_layer: MakeLayer, start: Start) -> None:
    """A process that was killed is no member any more."""
    layer = make_layer()
    await layer.group_add("g", await layer.new_channel())
    child = start(
        """
        layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
        mine = layer.sync.new_channel()
        layer.sync.group_add("g", mine)
        layer.sync.receive(mine, timeout=0)
        say("joined")
        sys.stdin.readline()
        """
    )
    child.expect("joined")
    assert await layer.group_send("g", {"n": 1}) == (2, 0)
    child.kill()
    assert await layer.group_send("g", {"n": 2}) == (1, 0)


async def test_what_a_group_send_returns_passes_for_nothing(make_layer: MakeLayer) -> None:
    """Where None did: it is false, and goes through JSON as the result of a task."""
    layer = make_layer()
    await layer.group_add("g", "c")
    sent = await layer.group_send("g", {})
    assert (sent.reached, sent.skipped) == (1, 0)
    assert not sent
    assert json.loads(json.dumps(sent)) == [1, 0]
