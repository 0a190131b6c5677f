"""What a loop was rung for below a home is drained at once, for all who wait there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from asgi_ipc._receive.inbox import Entry
from asgi_ipc._store.codec import PLAIN

from .conftest import Clock
from .stepping import World, drive

MakeWorld = Callable[[int], World]
STEPS = 12


def drained(world: World) -> int:
    """Return how many messages have been drained and not been received yet."""
    return world.layers[0]._reception.inboxes.count


def until_drained(world: World) -> None:
    """Step until something is, and nobody who waits for it has run yet."""
    while not drained(world):
        assert world.loops[0].step()


def two_waiting(world: World) -> asyncio.Task[Any]:
    """Let two wait below one home; return the receive for ``x!a``, which comes second."""
    world.wait(0, "x!b")
    return world.wait(0, "x!a")


def end_all(world: World) -> None:
    """Cancel every receive, and forget what was sent."""
    for _, _, task in world.waiting:
        task.cancel()
    world.settle()
    world.waiting.clear()
    world.sent.clear()
    assert not world.faults


def received(world: World, channel: str) -> list[int]:
    """Take all there is."""
    numbers: list[int] = []
    while True:
        _, message = drive(world.layers[0].receive_async([channel], block=False))
        if message is None:
            return numbers
        numbers.append(message["n"])


def test_one_drain_serves_all_who_sleep(make_world: MakeWorld) -> None:
    """Without a look of their own."""
    world = make_world(1)
    tasks = {name: world.wait(0, name) for name in ("x!a", "x!b", "x!c")}
    for name in ("x!c", "x!a", "x!b"):
        world.send(name)
    until_drained(world)
    assert drained(world) == 3
    world.settle()
    assert {name: task.result() for name, task in tasks.items()} == {
        "x!c": ("x!c", {"n": 1}),
        "x!a": ("x!a", {"n": 2}),
        "x!b": ("x!b", {"n": 3}),
    }


def test_a_group_message_is_drained_for_all_members(make_world: MakeWorld) -> None:
    """A copy for each, so that one who changes it changes nobody else's."""
    world = make_world(1)
    tasks = [world.wait(0, name) for name in ("x!a", "x!b", "x!c")]
    for name in ("x!a", "x!b"):
        drive(world.outside.group_add("group", name))
    drive(world.outside.group_send("group", {"n": 1}))
    until_drained(world)
    assert drained(world) == 2
    world.settle()
    first, second, third = tasks
    assert first.result() == ("x!a", {"n": 1}) and second.result() == ("x!b", {"n": 1})
    assert first.result()[1] is not second.result()[1]
    assert not third.done()


def test_the_loop_drains_until_there_is_no_more(make_world: MakeWorld) -> None:
    """It is rung once for all of it, and one drain takes a part."""
    world = make_world(1)
    names = [f"x!{number}" for number in range(150)]
    tasks = [world.wait(0, name) for name in names]
    for name in names:
        world.send(name)
    world.settle()
    assert [task.result() for task in tasks] == [
        (name, {"n": number}) for number, name in enumerate(names, start=1)
    ]


def test_what_several_receive_under_one_name_is_counted_no_more(make_world: MakeWorld) -> None:
    """Nothing is pending, so a full capacity may be sent."""
    world = make_world(1)
    tasks = [world.wait(0, "x!a") for _ in range(3)]
    for _ in tasks:
        world.send("x!a")
    world.settle()
    assert sorted(task.result()[1]["n"] for task in tasks) == [1, 2, 3]
    assert drive(world.outside.channel_statistics("x!a"))["messages_pending"] == 0


def test_a_cancelled_receive_leaves_it_in_front(make_world: MakeWorld) -> None:
    """The next receive of that name has it, before what came later."""
    world = make_world(1)
    task = two_waiting(world)
    world.send("x!a")
    world.send("x!a")
    until_drained(world)
    task.cancel()
    world.settle()
    assert task.cancelled()
    assert received(world, "x!a") == [1, 2]


def test_what_a_cancelled_receive_leaves_wakes_another(make_world: MakeWorld) -> None:
    """Whoever else waits for that name has it at once."""
    world = make_world(1)
    task = two_waiting(world)
    other = world.wait(0, "x!a")
    world.send("x!a")
    until_drained(world)
    task.cancel()
    world.settle()
    assert task.cancelled() and other.result() == ("x!a", {"n": 1})


def test_it_is_found_by_a_receive_of_the_whole_home_too(make_world: MakeWorld) -> None:
    """It lies where everything of its home lies, in front."""
    world = make_world(1)
    task = two_waiting(world)
    world.send("x!a")
    world.send("x!c")
    until_drained(world)
    task.cancel()
    world.settle()
    assert received(world, "x!") == [1, 2]


def test_who_waits_for_a_home_gets_the_oldest_of_it(make_world: MakeWorld) -> None:
    """Not first what bears the home's own name."""
    world = make_world(1)
    task = world.wait(0, "x!")
    reception = world.layers[0]._reception
    reception._check_inbox_epoch()
    for name in ("x!a", "x!"):
        entry = Entry("x!", PLAIN.encode({"to": name}), time.monotonic_ns() + 10**10)
        reception.inboxes.put(entry, [name])
    (port,) = world.layers[0]._site.ports()
    port.wake("x!", 1)
    world.settle()
    assert task.result() == ("x!a", {"to": "x!a"})


def test_nothing_is_left_after_a_flush(make_world: MakeWorld) -> None:
    """Wherever a flush comes: what is not returned by then is gone."""
    world = make_world(1)
    caught = 0
    for place in range(STEPS):
        task = two_waiting(world)
        world.send("x!a")
        for _ in range(place):
            world.loops[0].step()
        caught += bool(drained(world))
        drive(world.outside.flush())
        task.cancel()
        world.settle()
        assert received(world, "x!a") == []
        end_all(world)
    assert caught  # one of the places was the one this is about


def test_what_expires_before_it_is_returned_is_not(make_world: MakeWorld, clock: Clock) -> None:
    """The receive waits on, and the channel has room again."""
    world = make_world(1)
    layer = world.layers[0]
    late = 0
    for place in range(STEPS):
        task = two_waiting(world)
        world.send("x!a")
        for _ in range(place):
            world.loops[0].step()
        late += bool(drained(world))
        was_done = task.done()
        clock.advance(layer.expiry + 1)
        world.settle()
        assert task.done() == was_done
        for _ in range(layer.capacity):
            world.send("x!c")
        assert len(received(world, "x!c")) == layer.capacity
        end_all(world)
    assert late
