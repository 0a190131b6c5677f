"""Nobody sleeps beside a message, however many wait for whatever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._wake.waiting import Waiter
from asgi_ipc.exceptions import ChannelFull, IPCError

from .stepping import World, drive

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeWorld = Callable[[int], World]
Keys = tuple[str, ...]

NAMES: list[Keys] = [("x!a",), ("x!b",), ("x!a",), ("y!a",), ("y!b",), ("c",), ("d",)]
MIXED: list[Keys] = [("x!a",), ("x!b",), ("c",), ("d",), ("c", "d"), ("c", "x!a"), ("d", "y!a")]
HOMES: list[Keys] = [("x!a",), ("x!b",), ("x!",), ("y!",), ("y!a",)]
SEVERAL: list[Keys] = [("x!a",), ("x!b",), ("x!a", "x!b"), ("y!a", "x!b"), ("y!a",), ("y!b",)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_reader_of_a_whole_home_is_woken(make_world: MakeWorld, count: int) -> None:
    """Each takes one, although the first that looks could take them all."""
    world = make_world(1)
    for _ in range(count):
        world.wait(0, "x!")
    for number in range(count):
        world.send(f"x!{number}")
    world.settle()
    assert world.problem() is None


def test_readers_of_a_home_in_two_processes_share_it(make_world: MakeWorld) -> None:
    """None takes more than it asked for, so that the others have some."""
    world = make_world(2)
    for where in (0, 1):
        for _ in range(2):
            world.wait(where, "x!")
    for number in range(4):
        world.send(f"x!{number}")
    world.settle()
    assert world.problem() is None


def test_a_message_wakes_one_reader_of_a_home(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many, and none a second time."""
    world = make_world(1)
    for _ in range(20):
        world.wait(0, "x!")
    slept = 0
    sleep_on = Waiter.sleep_on

    def counted(waiter: Waiter, future: asyncio.Future[None]) -> None:
        nonlocal slept
        slept += 1
        sleep_on(waiter, future)

    monkeypatch.setattr(Waiter, "sleep_on", counted)
    world.send("x!a")
    world.settle()
    assert slept == 0  # who is woken in vain sleeps again
    assert world.problem() is None


def test_who_drains_meets_what_is_wrong(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while the bell is answered wakes one who waits: its receive raises it."""
    world = make_world(1)
    tasks = [world.wait(0, name) for name in ("x!a", "x!b")]

    def take(*_: object, **__: object) -> None:
        raise IPCError("damaged")

    monkeypatch.setattr(world.layers[0]._site.messages, "take", take)
    world.send("x!a")
    world.settle()
    assert any(task.done() for task in tasks) and not world.faults
    for task in tasks:
        task.cancel()
        if task.done() and not task.cancelled():
            task.exception()
    world.settle()
    world.waiting.clear()


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_who_waits_for_two_names_of_a_home(make_world: MakeWorld, order: str) -> None:
    """Woken for one, it takes the other: the first is passed on."""
    world = make_world(1)
    world.wait(0, "x!a", "x!b")
    world.wait(0, "x!b")
    for name in order:
        world.send(f"x!{name}")
    world.settle()
    assert world.problem() is None


def test_the_safety_look_wakes_readers_of_a_home_too(make_world: MakeWorld) -> None:
    """What was drained by one of them and then left lies in an inbox, not in the queue."""
    world = make_world(1)
    first = world.wait(0, "x!a")
    world.wait(0, "x!b")
    world.send("x!a")
    world.send("x!c")
    world.settle()
    assert first.done()
    late = world.loops[0].create_task(world.layers[0].receive_async(["x!"]))
    world.settle()
    assert late.result() == ("x!c", {"n": 2})
    world.waiting.append((0, ("x!",), late))
    assert world.problem() is None


def test_a_ring_while_somebody_waits_for_nothing(make_world: MakeWorld) -> None:
    """A receive of no channels sleeps through it."""
    world = make_world(1)
    task = world.wait(0)
    drive(world.outside.flush())
    world.settle()
    assert not world.faults and not task.done()
    task.cancel()
    world.settle()


@pytest.mark.parametrize("error", [RuntimeError, ChannelFull])
def test_a_callback_that_raises_leaves_nobody_asleep(
    make_layer: MakeLayer, error: type[Exception]
) -> None:
    """What ``on_drop`` raises is seen by the loop's handler, and all who wait are woken."""

    def on_drop(_: object) -> None:
        raise error("of the callback's own")

    world = World(lambda: make_layer(channel_capacity={"x!c": 1}, on_drop=on_drop), 1)
    tasks = {name: world.wait(0, name) for name in ("x!a", "x!b", "y!a", "y!b")}
    drive(world.outside.group_add("g", "x!c"))
    for _ in range(2):
        drive(world.outside.group_send("g", {"n": 0}))  # the second finds x!c full
    world.send("y!a")
    world.settle()
    assert tasks["y!a"].done()
    assert [str(fault["exception"]) for fault in world.faults] == ["of the callback's own"]
    for task in tasks.values():
        task.cancel()
    world.settle()
    world.close()


@pytest.mark.parametrize("loop_count", [1, 2])
@pytest.mark.parametrize(
    "choices", [NAMES, MIXED, HOMES, SEVERAL], ids=["names", "mixed", "homes", "several"]
)
def test_random_waits_and_sends(
    make_world: MakeWorld, choices: list[Keys], loop_count: int
) -> None:
    """Sent, cancelled and begun between any steps, on loops that share one layer."""
    random_waits_and_sends(make_world(loop_count), choices, seeds=150, most=14)


def random_waits_and_sends(world: World, choices: list[Keys], *, seeds: int, most: int) -> None:
    """Let up to ``most`` things happen on loops of one layer, for each seed anew."""
    world.layers = [world.layers[0]] * len(world.loops)
    names = sorted({name for keys in choices for name in keys if name[-1] != "!"})
    for seed in range(seeds):
        dice = random.Random(seed)
        for _ in range(dice.randint(2, 4)):
            world.wait(dice.randrange(len(world.loops)), *dice.choice(choices))
        for _ in range(dice.randint(3, most)):
            something_happens(world, dice, choices, names)
        if world._lock_fd is not None:
            world.unlock()
        world.settle()
        problem = world.problem()
        assert problem is None, f"seed {seed}: {problem}"


def something_happens(
    world: World, dice: random.Random, choices: list[Keys], names: list[str]
) -> None:
    """Let one thing happen that may."""
    what = dice.choice(["send", "send", "send", "cancel", "step", "step", "wait", "own", "lock"])
    is_locked = world._lock_fd is not None
    where = dice.randrange(len(world.loops))
    if what == "lock":
        (world.unlock if is_locked else world.lock)()
    elif what in ("send", "own") and not is_locked:
        layer = world.outside if what == "send" else world.layers[where]
        world.send(dice.choice(names), layer)
    elif what == "cancel":
        dice.choice(world.waiting)[2].cancel()
    elif what == "wait":
        keys = dice.choice(choices)
        world.begin_to_wait(where, *keys)
    elif what == "step":
        for _ in range(dice.randint(1, 5)):
            for loop in world.loops:
                loop.step()


@pytest.mark.parametrize("ending", ["takes", "gives up"])
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize(("channel", "other"), [("c", "d"), ("y!a", "x!a")])
def test_who_waits_for_the_lock_answers_for_the_bit_of_who_left(
    make_world: MakeWorld, channel: str, other: str, turn: int, ending: str
) -> None:
    """One had parked the loop and goes; the next, still without the lock, is alone with that."""
    world = make_world(2)
    world.layers = [world.layers[0]] * 2
    for _ in range(turn):  # whose turn it is to be rung
        drive(world.outside.send(channel, {}))
        drive(world.outside.receive_async([channel], block=False))
    world.wait(0, other)
    first = world.wait(0, channel)
    world.wait(1, channel)
    world.send(channel)  # rings one of both loops
    world.lock()
    second = world.begin_to_wait(0, channel)
    world.loops[0].step()
    first.cancel()
    for _ in range(2):
        world.loops[0].step()
    if ending == "gives up":
        second.cancel()
        world.loops[0].step()
    world.unlock()
    world.loops[0].settle()
    world.settle()
    for sent in (2, 3):
        world.send(channel)
        world.settle()
        tasks = [task for _, channels, task in world.waiting if channels == (channel,)]
        received = [task for task in tasks if task.done() and not task.cancelled()]
        assert len(received) == sent or all(task.done() for task in tasks)
    assert world.problem() is None
