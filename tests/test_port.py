"""A loop's port: who is woken, when, and that nobody sleeps beside a message."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import asgi_ipc._wake.bell as bell_module
from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._shm import layout as L
from asgi_ipc._wake import port as port_module
from asgi_ipc._wake.bell import PipeBell

from .stepping import Action, SteppingLoop, World, drive, places

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeWorld = Callable[[int], World]
STEPS = 9


# Each scenario starts receives and returns what then happens, in this order. Every way to
# place these between the steps of the loops is tried.

Scenario = Callable[[World], list[Action]]


def one_waiter_cancelled(world: World) -> list[Action]:
    first = world.wait(0, "c")
    return [lambda: world.send("c"), first.cancel]


def cancelled_before_the_message(world: World) -> list[Action]:
    first = world.wait(0, "c")
    return [first.cancel, lambda: world.send("c")]


def two_waiters_first_cancelled(world: World) -> list[Action]:
    first = world.wait(0, "c")
    world.wait(0, "c")
    return [lambda: world.send("c"), first.cancel]


def two_waiters_both_messages(world: World) -> list[Action]:
    first = world.wait(0, "c")
    world.wait(0, "c")
    return [lambda: world.send("c"), lambda: world.send("c"), first.cancel]


def waiters_of_many_channels(world: World) -> list[Action]:
    first = world.wait(0, "a", "b", "c")
    world.wait(0, "b", "d")
    world.wait(0, "c")
    return [lambda: world.send("b"), first.cancel, lambda: world.send("c")]


def woken_for_one_of_many_channels(world: World) -> list[Action]:
    world.wait(0, "a", "b", "d")
    world.wait(0, "b")
    world.wait(0, "a", "b")
    return [lambda: world.send("a"), lambda: world.send("b")]


def woken_for_a_channel_and_a_name(world: World) -> list[Action]:
    world.wait(0, "a", "x!a")
    world.wait(0, "x!b")
    world.wait(0, "a")
    return [lambda: world.send("a"), lambda: world.send("x!a")]


def own_sends(world: World) -> list[Action]:
    first = world.wait(0, "c")
    world.wait(0, "c", "d")
    return [lambda: world.send_from_loop(0, "c"), first.cancel, lambda: world.send("d")]


def names_of_one_home(world: World) -> list[Action]:
    first = world.wait(0, "x!a")
    second = world.wait(0, "x!b")
    world.wait(0, "x!b")
    world.wait(0, "other")
    return [lambda: world.send("x!b"), second.cancel, first.cancel]


def names_of_one_home_alone(world: World) -> list[Action]:
    first = world.wait(0, "x!a")
    second = world.wait(0, "x!b")
    world.wait(0, "x!b")
    return [lambda: world.send("x!b"), first.cancel, second.cancel]


def names_of_one_home_all_served(world: World) -> list[Action]:
    first = world.wait(0, "x!a")
    second = world.wait(0, "x!b")
    world.wait(0, "x!b")
    return [
        lambda: world.send("x!b"),
        lambda: world.send("x!a"),
        second.cancel,
        lambda: world.send("x!b"),
        first.cancel,
    ]


def names_of_one_home_and_a_busy_lock(world: World) -> list[Action]:
    first = world.wait(0, "x!a")
    world.wait(0, "x!b")
    return [lambda: world.send("x!a"), world.lock, first.cancel, world.unlock]


def a_home_and_its_names(world: World) -> list[Action]:
    first = world.wait(0, "x!a")
    world.wait(0, "x!")
    return [lambda: world.send("x!b"), lambda: world.send("x!a"), first.cancel]


def two_loops_one_cancelled(world: World) -> list[Action]:
    first = world.wait(0, "c")
    world.wait(1, "c")
    return [lambda: world.send("c"), first.cancel, lambda: world.send("c")]


def two_loops_of_many_channels(world: World) -> list[Action]:
    first = world.wait(0, "a", "b")
    world.wait(1, "b", "c")
    world.wait(0, "c")
    return [lambda: world.send("b"), lambda: world.send("c"), first.cancel]


def two_loops_both_rung(world: World) -> list[Action]:
    first = world.wait(0, "c")
    second = world.wait(1, "c")
    world.wait(1, "c")
    return [lambda: world.send("c"), lambda: world.send("c"), first.cancel, second.cancel]


def the_lock_is_busy(world: World) -> list[Action]:
    first = world.wait(0, "c")
    world.wait(0, "c")
    return [lambda: world.send("c"), world.lock, first.cancel, world.unlock]


def a_flush_in_between(world: World) -> list[Action]:
    world.wait(0, "a", "c")
    world.wait(1, "c")

    def flush() -> None:
        drive(world.outside.flush())

    return [flush, lambda: world.send("c"), lambda: world.send("a")]


SCENARIOS: list[tuple[Scenario, int, int]] = [
    (one_waiter_cancelled, 1, 12),
    (cancelled_before_the_message, 1, 12),
    (two_waiters_first_cancelled, 1, 14),
    (two_waiters_both_messages, 1, STEPS),
    (waiters_of_many_channels, 1, STEPS),
    (woken_for_one_of_many_channels, 1, 12),
    (woken_for_a_channel_and_a_name, 1, 12),
    (own_sends, 1, STEPS),
    (names_of_one_home, 1, STEPS),
    (names_of_one_home_alone, 1, STEPS),
    (names_of_one_home_all_served, 1, 7),
    (names_of_one_home_and_a_busy_lock, 1, 5),
    (a_home_and_its_names, 1, STEPS),
    (two_loops_one_cancelled, 2, STEPS),
    (two_loops_of_many_channels, 2, STEPS),
    (two_loops_both_rung, 2, 7),
    (the_lock_is_busy, 1, 5),
    (a_flush_in_between, 2, STEPS),
]


@pytest.mark.parametrize(
    ("scenario", "loop_count", "steps"), SCENARIOS, ids=lambda value: getattr(value, "__name__", "")
)
def test_no_interleaving_loses_doubles_or_forgets(
    make_world: MakeWorld, scenario: Scenario, loop_count: int, steps: int
) -> None:
    """Wherever things happen, each message arrives once or waits, and nobody sleeps beside it."""
    world = make_world(loop_count)
    is_flushed = scenario is a_flush_in_between
    for _ in range(2):  # the second time every name and every bell is known
        action_count = len(scenario(world))
        assert world.problem() is None
        for where in places(action_count, steps):
            actions = scenario(world)
            world.run(actions, where)
            problem = world.problem()
            if is_flushed and problem and problem.startswith("sent"):
                continue  # what a flush dropped is not lost
            assert problem is None, f"actions before steps {where}: {problem}"


@pytest.mark.parametrize("kind", ["EventBell", "PipeBell"])
def test_both_kinds_of_bell_wake(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The interleavings of two loops hold over eventfds and over pipes."""
    monkeypatch.setattr(port_module, "new_bell", getattr(bell_module, kind))
    world = make_world(2)
    for where in places(3, 6):
        world.run(two_loops_one_cancelled(world), where)
        assert world.problem() is None, where
    assert isinstance(world.layers[0]._site.ports()[0].fittings.bell, PipeBell) == (
        kind == "PipeBell"
    )


def test_a_ring_before_the_wait_is_not_lost(make_world: MakeWorld) -> None:
    """A message that is there already is returned without sleeping."""
    world = make_world(1)
    for channel in ("c", "x!a"):
        world.send(channel)
        task = world.wait(0, channel)
        assert task.done()
    assert world.problem() is None


def test_many_rings_wake_as_many_receives(make_world: MakeWorld) -> None:
    """Rings that came together into one still wake everybody there is a message for."""
    world = make_world(1)
    for _ in range(50):
        world.wait(0, "c", "d")
    for number in range(50):
        world.send("cd"[number % 2])
    world.settle()
    assert all(task.done() for _, _, task in world.waiting)
    assert world.problem() is None


def test_a_ring_between_draining_and_looking_is_not_lost(
    make_layer: MakeLayer, only_rings: None
) -> None:
    """A second sender that has rung but not committed when the bell is drained is waited for."""
    layer, first, second = make_layer(), make_layer(), make_layer()
    store = layer._site.messages
    rung, drained, committed = threading.Event(), threading.Event(), threading.Event()
    segment = second._site.messages.segment

    async def scenario() -> None:
        for name in ("h1", "h2"):
            await layer.send(name, {})
            await layer.receive(name)
        receives = {asyncio.create_task(layer.receive(name)) for name in ("h1", "h2")}
        for _ in range(20):
            await asyncio.sleep(0)
        await first.send("h1", {"n": 1})

        def slow_send() -> None:

            def slowly(function: Any) -> Any:
                def wait_then(*arguments: Any) -> Any:
                    rung.set()
                    assert drained.wait(20)
                    return function(*arguments)

                return wait_then

            for name in ("commit", "commit_four", "commit_six"):
                setattr(segment, name, slowly(getattr(segment, name)))
            drive(second.send("h2", {"n": 2}))
            committed.set()

        thread = threading.Thread(target=slow_send)
        thread.start()
        assert rung.wait(20)
        # The loop's next turn drains both rings. The sender goes on when the bell is empty
        # and the loop has just read what it reads without the lock.
        for name in ("hinted",):
            real = getattr(store, name, None)
            if real is not None:

                def then_commit(*arguments: Any, real: Any = real) -> Any:
                    found = real(*arguments)
                    drained.set()
                    assert committed.wait(20)
                    return found

                setattr(store, name, then_commit)
                break
        else:
            drained.set()
        done, _ = await asyncio.wait(receives, timeout=60)
        thread.join()
        assert done == receives

    asyncio.run(scenario())


def test_a_ring_during_the_look_is_not_lost(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that comes right after the loop has looked rings it again."""
    world = make_world(1)
    slots = world.layers[0]._site.messages.slots
    look = slots.look
    sends = 0

    def look_then_send(*arguments: Any, **options: Any) -> Any:
        nonlocal sends
        found = look(*arguments, **options)
        if sends:
            sends -= 1
            world.send("c")
        return found

    monkeypatch.setattr(slots, "look", look_then_send)
    for channel in ("a", "b", "c", "c"):  # the first time rings at the door, then the bell
        tasks = [world.wait(0, name) for name in ("a", "b", "c")]
        sends = 1
        world.send(channel)
        world.settle()
        assert tasks[2].done()
        assert world.problem() is None


def test_a_closed_loop_is_not_rung_in_place_of_a_living_one(make_layer: MakeLayer) -> None:
    """A loop that was closed with a receive pending does not swallow rings."""
    layer, other = make_layer(), make_layer()
    dropped = SteppingLoop()
    task = dropped.create_task(layer.receive("c"))
    dropped.settle()
    dropped.close()
    loop = SteppingLoop()
    for number in range(6):
        receive = loop.create_task(other.receive("c"))
        loop.settle()
        drive(layer.send("c", {"n": number}))
        loop.settle()
        assert receive.done(), f"message {number}"
        assert receive.result() == {"n": number}
    _finish(loop)
    coroutine: Any = task.get_coro()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_dropped_loop_takes_its_descriptors_along(make_layer: MakeLayer) -> None:
    """Neither bell nor door outlives a loop that was closed without a word."""
    layer = make_layer()

    def use() -> weakref.ref[Any]:
        loop = SteppingLoop()
        task = loop.create_task(layer.receive("c"))
        loop.settle()
        task.cancel()
        loop.settle()
        loop.close()
        return weakref.ref(loop)

    use()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert use()() is None or gc.collect() >= 0
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    drive(layer.flush())  # rings every slot there is
    loop = SteppingLoop()
    receive = loop.create_task(layer.receive("c"))
    loop.settle()
    drive(layer.send("c", {}))
    loop.settle()
    assert receive.done()
    _finish(loop)


def test_closing_a_loop_gives_its_slot_back(make_layer: MakeLayer) -> None:
    """A thousand loops, one after the other, fit into 256 slots, and leave no door."""
    layer = make_layer()

    async def receive() -> None:
        await layer.send("c", {})
        await layer.receive("c")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(layer.receive("c"), 0.0001)

    for _ in range(300):
        asyncio.run(receive())
    assert os.listdir(f"/dev/shm/{layer.prefix}-bells") == ["alive"]  # the witness file
    layer.close_now()
    assert os.listdir(f"/dev/shm/{layer.prefix}-bells") == ["alive"]


def test_a_port_that_lost_its_slot_still_gets_its_messages(make_layer: MakeLayer) -> None:
    """Doors removed by a cleaner of /dev/shm do not leave their loops deaf for ever."""
    layer, other = make_layer(), make_layer()
    loop = SteppingLoop()
    receive = loop.create_task(layer.receive("c"))
    loop.settle()
    directory = f"/dev/shm/{layer.prefix}-bells"
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    drive(other.send("c", {"n": 1}))  # finds no door, and takes the loop for dead
    port = layer._site.ports()[0]
    asyncio._set_running_loop(loop)
    port._safety()
    asyncio._set_running_loop(None)
    loop.settle()
    assert receive.done()
    _finish(loop)


def test_a_loop_whose_slot_was_freed_waits_in_another(
    make_layer: MakeLayer, only_rings: None
) -> None:
    """It does not park where nobody, or somebody else, is rung."""
    layer, other = make_layer(spin_rounds=0), make_layer()
    segment = other._site.messages.segment

    async def receive(number: int) -> None:
        waiting = asyncio.create_task(layer.receive("c"))
        for _ in range(5):
            await asyncio.sleep(0)
        await other.send("c", {"n": number})
        assert await asyncio.wait_for(waiting, 20) == {"n": number}

    async def main() -> None:
        await receive(1)
        (port,) = layer._site.ports()
        token = L.SLOTS + L.SLOT_WORDS * port.slot + L.SLOT_TOKEN
        segment.transact(segment.commit, {token: 0})  # as who takes its process for dead
        await receive(2)

    asyncio.run(main())


def test_a_look_that_fails_is_tried_again(
    make_layer: MakeLayer, only_rings: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What a loop was rung for comes when its look succeeds; that it failed is said once."""
    layer, other = make_layer(), make_layer()
    words = layer._site.messages.segment.words

    async def main() -> None:
        waiting = [asyncio.create_task(layer.receive(name)) for name in ("a", "b")]
        await asyncio.sleep(0.01)
        await other.send("a", {})
        await other.send("b", {})
        words[L.LOG_N] = 1 << 40  # no transaction succeeds
        while not caplog.records:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        words[L.LOG_N] = 0
        async with asyncio.timeout(20):
            assert await asyncio.gather(*waiting) == [{}, {}]

    asyncio.run(main())
    assert [vars(record)["event"] for record in caplog.records] == ["look-failed"]
    caplog.clear()  # its traceback holds the segment
