"""A receive looks again for a few rounds before it sleeps, where that has been worth it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._spin import Spin
from asgi_ipc.exceptions import LayerClosed

from .stepping import World, drive

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeWorld = Callable[[int], World]
ROUNDS = 16


def skipped(spin: Spin) -> int:
    """Return how many waits go by without a spin, and begin one."""
    count = 0
    while not spin.begins():
        count += 1
    return count


def test_each_spin_in_vain_makes_the_next_rarer() -> None:
    """Up to one in 257 waits; one that finds something makes it usual again."""
    spin = Spin()
    seen = []
    for _ in range(12):
        seen.append(skipped(spin))
        spin.ended(found=False)
    assert seen == [0, 1, 3, 7, 15, 31, 63, 127, 255, 256, 256, 256]
    assert skipped(spin) == 256
    spin.ended(found=True)
    assert skipped(spin) == 0


def test_one_spins_at_a_time() -> None:
    """A second wait that begins meanwhile goes to sleep as always."""
    spin = Spin()
    assert spin.begins() and not spin.begins()
    spin.ended(found=True)
    assert spin.begins()


def spinning(world: World, channel: str) -> asyncio.Task[dict[str, int]]:
    """Begin a receive that spins: its loop has a port, and nothing speaks against it."""
    if world.layers[0]._site.port_of(world.loops[0]) is None:
        world.wait(0, "other").cancel()
        world.settle()
    (port,) = world.layers[0]._site.ports()
    port.spin.__init__()  # type: ignore[misc]
    task: asyncio.Task[dict[str, int]] = world.loops[0].create_task(
        world.layers[0].receive(channel)
    )
    world.loops[0].step()
    return task


def is_parked(world: World, channel: str) -> bool:
    """Whether anybody would be rung for a message."""
    records = world.outside._site.messages.records
    record = records.segment.transact(records.find, channel)
    return bool(record) and records.is_parked(record)


@pytest.mark.parametrize("channel", ["c", "x!a"])
def test_a_message_that_comes_soon_needs_no_ring(make_world: MakeWorld, channel: str) -> None:
    """In whichever of the rounds; after them the receive is parked, and rung."""
    world = make_world(1)
    for place in range(ROUNDS + 4):
        task = spinning(world, channel)
        for _ in range(place):
            world.loops[0].step()
        rung = is_parked(world, channel.rpartition("!")[0] + "!" if "!" in channel else channel)
        assert rung == (place >= ROUNDS)
        world.send(channel)
        world.settle()
        assert task.result()["n"]
        world.sent.clear()


def test_it_ends_in_sleep(make_world: MakeWorld) -> None:
    """After its rounds nothing is left to run on the loop."""
    world = make_world(1)
    task = spinning(world, "c")
    assert ROUNDS <= world.loops[0].settle() <= ROUNDS + 3
    assert is_parked(world, "c")
    task.cancel()
    world.settle()


@pytest.mark.parametrize("channel", ["c", "x!a"])
def test_it_can_be_cancelled_in_every_round(make_world: MakeWorld, channel: str) -> None:
    """Nothing is lost, and the next receive spins again."""
    world = make_world(1)
    for place in range(ROUNDS + 2):
        for is_sent_before in (False, True):
            task = spinning(world, channel)
            for _ in range(place):
                world.loops[0].step()
            if is_sent_before:
                world.send(channel)
            task.cancel()
            if not is_sent_before:
                world.send(channel)
            world.settle()
            _, message = drive(world.layers[0].receive_async([channel], block=False))
            assert (message is None) == (not task.cancelled())
            (port,) = world.layers[0]._site.ports()
            assert skipped(port.spin) <= 1
            world.sent.clear()


def test_closing_ends_it(make_world: MakeWorld) -> None:
    """As it ends any other wait."""
    world = make_world(1)
    for place in range(ROUNDS + 2):
        task = spinning(world, "c")
        for _ in range(place):
            world.loops[0].step()
        world.layers[0].close_now()
        world.settle()
        assert isinstance(task.exception(), LayerClosed)
        drive(world.layers[0].flush())  # attached again


def test_it_can_be_turned_off(make_layer: MakeLayer, make_world: MakeWorld) -> None:
    """With no rounds a receive sleeps at once."""
    world = make_world(1)
    world.layers[0] = make_layer(spin_rounds=0)
    task = spinning(world, "c")
    assert is_parked(world, "c") and world.loops[0].settle() == 0
    task.cancel()
    world.settle()
    for wrong in (-1, 1001):
        with pytest.raises(ValueError, match=f"spin_rounds.*{wrong}"):
            make_layer(spin_rounds=wrong)


def test_a_long_wait_costs_a_spin_now_and_then_only(make_world: MakeWorld) -> None:
    """Of a thousand waits in vain nine begin with one."""
    world = make_world(1)
    spinning(world, "c").cancel()
    world.settle()
    spun = 0
    for _ in range(1000):
        task = world.loops[0].create_task(world.layers[0].receive("c"))
        spun += world.loops[0].settle() > ROUNDS
        task.cancel()
        world.settle()
    assert spun == 9
