"""Many event loops, threads and forks around one layer object; the sync twin."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels import exceptions as channels_exceptions

from tests.conftest import Child

from .conftest import MakeLayer

Start = Callable[..., Child]


def _descriptor_count() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# -- async_to_sync -------------------------------------------------------------------------


def test_ten_thousand_sends_from_sync_code_leave_nothing(
    make_backend: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each in an event loop of its own: constant descriptors, no warning, no log line."""
    layer = make_backend(capacity=20_000, message_memory=32 << 20)
    async_to_sync(layer.group_add)("g", "c")
    async_to_sync(layer.group_send)("g", {"n": 0})
    before = _descriptor_count()
    for number in range(1, 10_000):
        async_to_sync(layer.group_send)("g", {"n": number})
    assert _descriptor_count() == before
    assert caplog.records == []
    got = [layer.sync.receive("c", 0) for _ in range(10_001)]
    assert got == [*({"n": number} for number in range(10_000)), None]


def test_a_thousand_receives_from_sync_code_leave_nothing(make_backend: MakeLayer) -> None:
    """Each claims a slot and a bell, waits, and gives both back."""
    layer = make_backend()

    async def receive_late(channel: str, number: int) -> dict[str, Any]:
        receive = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await layer.send(channel, {"n": number})
        message: dict[str, Any] = await receive
        return message

    before = None
    channel = async_to_sync(layer.new_channel)()
    for number in range(1000):
        name = channel if number % 2 else "c"
        assert async_to_sync(receive_late)(name, number) == {"n": number}
        if number == 10:
            before = _descriptor_count()
    assert _descriptor_count() == before


def test_sync_code_in_many_threads(make_backend: MakeLayer) -> None:
    """Management commands and thread pools: nothing is attached to another loop."""
    layer = make_backend(capacity=10_000)
    before = _descriptor_count()

    def work(number: int) -> None:
        channel = async_to_sync(layer.new_channel)()
        async_to_sync(layer.group_add)("g", channel)
        for n in range(100):
            async_to_sync(layer.send)(channel, {"n": n})
            assert async_to_sync(layer.receive)(channel) == {"n": n}
            async_to_sync(layer.send)("c", {"who": number, "n": n})
        async_to_sync(layer.group_discard)("g", channel)

    _in_threads(6, work)
    assert _descriptor_count() == before + 1  # the witness: one for the process
    got: dict[int, list[int]] = {number: [] for number in range(6)}
    while (message := layer.sync.receive("c", 0)) is not None:
        got[message["who"]].append(message["n"])
    assert got == {number: list(range(100)) for number in range(6)}


async def test_sync_code_below_a_running_loop(make_backend: MakeLayer) -> None:
    """A view that calls ``async_to_sync`` in a server's thread reaches the server's sockets."""
    layer = make_backend()
    channel = await layer.new_channel()
    await layer.group_add("g", channel)

    def view(number: int) -> None:
        async_to_sync(layer.group_send)("g", {"n": number})
        layer.sync.group_send("g", {"n": number + 1})

    for number in range(0, 20, 2):
        receive = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await sync_to_async(view)(number)
        assert await receive == {"n": number}
        assert await layer.receive(channel) == {"n": number + 1}


def test_a_loop_closed_while_receives_wait_is_silent(
    make_backend: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning at the end of ``asyncio.run``, and the next loop receives."""
    layer = make_backend()

    async def leave() -> str:
        channel: str = await layer.new_channel()
        tasks.extend(asyncio.create_task(layer.receive(name)) for name in (channel, "c"))
        await asyncio.sleep(0)
        return channel

    tasks: list[asyncio.Task[Any]] = []
    for _ in range(20):
        channel = asyncio.run(leave())
        asyncio.run(layer.send(channel, {"n": 1}))
        assert asyncio.run(layer.receive(channel)) == {"n": 1}
    assert caplog.records == []


# -- several loops at once -----------------------------------------------------------------


def test_two_loops_receive_their_process_specific_channels_at_once(
    make_backend: MakeLayer,
) -> None:
    """Each with a process part of its own; groups reach both."""
    layer = make_backend(capacity=1000)
    names: queue.Queue[str] = queue.Queue()

    def serve(number: int) -> None:
        async def main() -> list[int]:
            channel = await layer.new_channel()
            await layer.group_add("g", channel)
            receive = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0)
            names.put(channel)
            got = [(await receive)["n"]]
            while len(got) < 300:
                got.append((await layer.receive(channel))["n"])
            return got

        assert asyncio.run(main()) == list(range(300))

    def send() -> None:
        channels = [names.get() for _ in range(3)]
        assert len({channel.split("!")[0] for channel in channels}) == 3
        for number in range(300):
            if number % 2:
                layer.sync.group_send("g", {"n": number})
            else:
                for channel in channels:
                    layer.sync.send(channel, {"n": number})

    _in_threads(4, lambda number: send() if number == 3 else serve(number))


def test_a_name_is_received_in_another_loop_than_made_it(make_backend: MakeLayer) -> None:
    """One after the other, and while its own loop goes on receiving others of its names."""
    layer = make_backend()
    made: queue.Queue[str] = queue.Queue()
    done = threading.Event()

    async def own() -> None:
        mine, given_away = await layer.new_channel(), await layer.new_channel()
        stop = await layer.new_channel()
        stopping = asyncio.create_task(layer.receive(stop))
        await asyncio.sleep(0)
        made.put(given_away)
        made.put(mine)
        made.put(stop)
        for number in range(50):
            assert await layer.receive(mine) == {"n": number}
        await stopping

    async def other() -> None:
        given_away, mine, stop = made.get(), made.get(), made.get()
        for number in range(50):
            receive = asyncio.create_task(layer.receive(given_away))
            await asyncio.sleep(0)
            await layer.send(mine, {"n": number})
            await layer.send(given_away, {"n": number})
            assert await receive == {"n": number}
        await layer.send(stop, {})
        done.set()

    _in_threads(2, lambda number: asyncio.run(other() if number else own()))
    assert done.is_set()


# -- forks ---------------------------------------------------------------------------------

FORK = """
import json
from asgi_ipc.channels import IPCChannelLayer
layer = IPCChannelLayer(PREFIX, **SIZES)
async def warm():
    name = await layer.new_channel()
    await layer.group_add("warm", name)
    receive = asyncio.create_task(layer.receive(name))
    await asyncio.sleep(0)
    await layer.send(name, {})
    await receive
    await layer.group_discard("warm", name)
if sys.argv[2] == "after":
    asyncio.run(warm())
    layer.sync.receive("nothing", 0.001)
async def worker(number):
    name = await layer.new_channel()
    await layer.group_add("g", name)
    receive = asyncio.create_task(layer.receive(name))
    await asyncio.sleep(0)
    await layer.send("ready", {"name": name})
    for n in range(50):
        assert (await receive) == {"n": n}
        receive = asyncio.create_task(layer.receive(name))
        await asyncio.sleep(0)
        await layer.send("echo", {"n": n, "worker": number})
    receive.cancel()
    await layer.group_discard("g", name)
async def parent():
    names = [(await layer.receive("ready"))["name"] for _ in range(3)]
    assert len({name.split("!")[0] for name in names}) == 3
    assert sorted(await layer.group_channels("g")) == sorted(names)
    for n in range(50):
        await layer.group_send("g", {"n": n})
        got = [await layer.receive("echo") for _ in range(3)]
        assert sorted(one["worker"] for one in got) == [0, 1, 2]
        assert {one["n"] for one in got} == {n}
pids = []
for number in range(3):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            asyncio.run(worker(number))
            status = 0
        finally:
            os._exit(status)
    pids.append(pid)
asyncio.run(parent())
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
say("all", layer.sync.group_count("g"))
"""


@pytest.mark.parametrize("use", ["before", "after"])
def test_a_layer_made_before_a_fork_works_on_both_sides(start: Start, use: str) -> None:
    """As ``gunicorn --preload`` and Celery's prefork do, unused until then or in use."""
    child = start(FORK, use)
    child.expect("all 0")
    child.end()


# -- the sync twin -------------------------------------------------------------------------


def test_the_sync_twin_does_what_the_coroutines_do(make_ours: MakeLayer) -> None:
    """With the same arguments and results, and without an event loop."""
    layer = make_ours(capacity=2)
    twin = layer.sync
    assert twin is layer.sync
    channel = twin.new_channel("cmd")
    assert channel.startswith("cmd.")
    twin.group_add("g", channel)
    twin.group_add("g", "c")
    assert sorted(twin.group_channels("g")) == sorted([channel, "c"])
    assert twin.group_count("g") == 2
    twin.group_send("g", {"n": 1}, exclude=["c"], expiry=5)
    twin.send_many([("c", {"n": 2}), (channel, {"n": 3})], expiry=5)
    twin.send("c", {"n": 4}, expiry=5)
    assert [twin.receive(channel), twin.receive(channel)] == [{"n": 1}, {"n": 3}]
    assert [twin.receive("c"), twin.receive("c"), twin.receive("c", 0)] == [
        {"n": 2},
        {"n": 4},
        None,
    ]
    assert twin.receive("c", timeout=0.001) is None
    assert twin.channel_statistics("c")["messages_count"] == 2
    assert twin.global_statistics()["messages_pending"] == 0
    twin.group_discard("g", "c")
    assert twin.group_channels("g") == [channel]
    twin.send("c", {})
    twin.flush()
    assert twin.receive("c", 0) is None
    assert twin.group_count("g") == 0


def test_the_sync_twin_raises_channels_errors(make_backend: MakeLayer) -> None:
    """The same as the coroutines."""
    twin = make_backend(capacity=1, max_message_bytes=1000).sync
    twin.send("c", {})
    with pytest.raises(channels_exceptions.ChannelFull):
        twin.send("c", {})
    with pytest.raises(channels_exceptions.ChannelFull):
        twin.send_many([("c", {})])
    with pytest.raises(channels_exceptions.MessageTooLarge):
        twin.group_send("g", {"body": bytes(2000)})
    with pytest.raises(TypeError):
        twin.receive("a b", 0)


def test_the_sync_twin_waits_for_what_another_thread_sends(make_backend: MakeLayer) -> None:
    """In turns, both on private loops of their threads."""
    layer = make_backend()

    def play(number: int) -> None:
        mine, theirs = ("ping", "pong")[number], ("pong", "ping")[number]
        if number:
            layer.sync.send(theirs, {"n": 0})
        for _ in range(100):
            message = layer.sync.receive(mine)
            layer.sync.send(theirs, {"n": message["n"] + 1})

    _in_threads(2, play)
    assert layer.sync.receive("pong", 0) or layer.sync.receive("ping", 0)


async def test_the_sync_twin_works_on_a_loop_s_own_thread(make_backend: MakeLayer) -> None:
    """Sending wakes the loop it was called on; a receive of what is there returns at once."""
    layer = make_backend()
    channel = await layer.new_channel()
    receive = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    layer.sync.send(channel, {"n": 1})
    assert await receive == {"n": 1}
    layer.sync.send("c", {"n": 2})
    assert layer.sync.receive("c") == {"n": 2}


# -- life ----------------------------------------------------------------------------------


async def test_close_and_close_pools_are_idempotent(make_backend: MakeLayer) -> None:
    """The object stays usable, the messages stay."""
    layer = make_backend()
    await layer.send("c", {"n": 1})
    for close in (layer.close, layer.close_pools, layer.close_pools, layer.close):
        await close()
    assert await layer.receive("c") == {"n": 1}
    await layer.close()
    await layer.group_add("g", "c")
    await layer.close_pools()
    await layer.group_send("g", {"n": 2})
    assert await layer.receive("c") == {"n": 2}


def test_closing_in_each_of_many_loops(make_backend: MakeLayer) -> None:
    """What test suites do with ``close_pools`` after every test."""
    layer = make_backend()
    before = _descriptor_count()

    async def test() -> None:
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", {"n": 1})
        assert await layer.receive(channel) == {"n": 1}
        await layer.group_discard("g", channel)
        await layer.close_pools()

    for _ in range(200):
        asyncio.run(test())
    assert _descriptor_count() <= before
