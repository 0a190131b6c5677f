"""Receives that wait the straight way, beside others of their home: by the thousand, in life."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from asgi_ipc._receive.inbox import Entry
from asgi_ipc._store.codec import PLAIN
from asgi_ipc._wake.waiting import ASLEEP, RUNG
from asgi_ipc.exceptions import SegmentCorrupt

from .stepping import World, drive

MakeWorld = Callable[[int], World]

WAYS = ["resting"]


def put_aside(world: World, name: str) -> None:
    """Let a message lie in an inbox, drained by another thread, say."""
    reception = world.layers[0]._reception
    reception._check_inbox_epoch()
    entry = Entry("x!", PLAIN.encode({"n": 7}), time.monotonic_ns() + 10**10)
    reception.inboxes.put(entry, [name])


def test_nothing_is_left_when_all_are_served(make_world: MakeWorld) -> None:
    """No waiter, no home, no parked bit: the next message rings nobody."""
    world = make_world(1)
    tasks = [world.wait(0, name) for name in ("x!a", "x!b", "x!c")]
    for name in ("x!a", "x!b", "x!c"):
        world.send(name)
    world.settle()
    assert all(task.done() for task in tasks)
    (port,) = world.layers[0]._site.ports()
    assert not port.waiting.by_key and not port.waiting.by_home
    slots = world.layers[0]._site.messages.slots
    record = slots.records.find("x!")
    assert record and not slots.records.is_parked(record)


def test_what_lies_there_already_is_returned(make_world: MakeWorld) -> None:
    """Drained by the thread of another loop between two looks of this one, say."""
    world = make_world(1)
    world.wait(0, "x!b")
    put_aside(world, "x!a")
    assert world.wait(0, "x!a").result() == ("x!a", {"n": 7})


def test_nobody_rests_on_a_loop_that_is_not_parked(make_world: MakeWorld) -> None:
    """The one who was to park it waited for the lock, and gave up."""
    world = make_world(1)
    world.wait(0, "x!a").cancel()  # the loop has its slot, the home its record
    world.settle()
    world.lock()
    first = world.begin_to_wait(0, "x!a")
    assert world.loops[0].step()
    second = world.begin_to_wait(0, "x!b")
    assert world.loops[0].step()
    first.cancel()
    assert world.loops[0].step()
    world.unlock()
    world.settle()
    world.send("x!b")
    world.settle()
    assert second.done()


def test_who_was_rung_for_a_home_and_is_served_lets_another_look(make_world: MakeWorld) -> None:
    """Rung while the lock was busy; served by a receive that drains, and stops at an envelope."""
    world = make_world(1)
    for name in ("x!a", "x!b"):
        drive(world.outside.group_add(f"only.{name[-1]}", name))
    not_resting = world.wait(0, "x!c")
    first = world.wait(0, "x!a")
    second = world.wait(0, "x!b")
    not_resting.cancel()
    world.settle()
    (port,) = world.layers[0]._site.ports()
    drive(world.outside.group_send("only.a", {}))
    world.send("x!d")
    drive(world.outside.group_send("only.b", {}))
    world.lock()
    assert world.loops[0].step()
    waiter: Any = port.waiting.by_key["x!a"]
    assert waiter.state == RUNG
    world.unlock()
    assert drive(world.layers[0].receive_async(["x!d", "x!e"], block=False)) == ("x!d", {"n": 1})
    world.settle()
    assert first.done() and second.done()


def test_a_flush_leaves_nothing_to_return(make_world: MakeWorld) -> None:
    """Nor to one that was woken already by what had been drained for it."""
    world = make_world(1)
    world.wait(0, "x!b")
    task = world.wait(0, "x!a")
    world.send("x!a")
    while not world.layers[0]._reception.inboxes.count:
        assert world.loops[0].step()
    drive(world.outside.flush())
    world.settle()
    assert not task.done()
    task.cancel()
    world.settle()


def test_damage_met_while_leaving_is_what_is_raised(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an error of leaving twice."""
    world = make_world(1)
    other = world.wait(0, "x!b")
    task = world.wait(0, "x!a")
    other.cancel()
    world.settle()
    put_aside(world, "x!a")

    def withdraw(*_: object) -> None:
        raise SegmentCorrupt("damaged")

    (port,) = world.layers[0]._site.ports()
    with monkeypatch.context() as patched:
        patched.setattr(world.layers[0]._site.messages.slots, "withdraw", withdraw)
        port.wake("x!a", 1)
        world.settle()
    assert isinstance(task.exception(), SegmentCorrupt)
    assert not port.waiting.by_key and not port.waiting.by_home
    world.waiting.clear()


def test_what_lies_there_needs_no_loop(make_world: MakeWorld) -> None:
    """As a receive of what is queued in shared memory needs none."""
    world = make_world(1)
    world.wait(0, "x!b")
    put_aside(world, "x!a")
    assert drive(world.layers[0].receive("x!a")) == {"n": 7}


def test_a_waiter_that_is_used_again_is_as_good_as_new(make_world: MakeWorld) -> None:
    """Nothing of the wait that it served before is left on it."""
    world = make_world(1)
    for name in ("x!c", "x!b", "x!a"):
        world.wait(0, name)
    world.send("x!a")
    world.settle()
    (port,) = world.layers[0]._site.ports()
    spare: Any
    (spare,) = port.spare
    world.wait(0, "x!d")
    assert dict[str, Any](port.waiting.by_key)["x!d"] is spare
    assert not port.spare
    assert (spare.keys, spare.homes, spare.state) == (("x!d",), ("x!",), ASLEEP)
    assert not spare.future.done()
