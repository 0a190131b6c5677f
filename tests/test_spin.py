"""A receive looks again for a few rounds before it sleeps, where that has been worth it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._wake.bell import bells_directory
from asgi_ipc._wake.spin import Spin
from asgi_ipc.exceptions import LayerClosed

from .stepping import World, drive
from .test_wakeups import HOMES, MIXED, NAMES, SEVERAL, Keys, random_waits_and_sends

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeWorld = Callable[[int], World]
ROUNDS = 16
WAYS = ["receive_async", "receive"]


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
    """Begin a receive that spins: the channel is known, and nothing speaks against it."""
    world.wait(0, channel).cancel()
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


@pytest.mark.parametrize("channel", ["c", "x!a"])
def test_new_doors_during_a_spin(make_world: MakeWorld, channel: str) -> None:
    """Somebody cleans up: the receive parks on the port that is made then, not on the closed."""
    world = make_world(1)
    layer = world.layers[0]
    task = spinning(world, channel)
    world.loops[0].step()
    shutil.rmtree(bells_directory(layer.prefix))
    world.loops[0].call_soon(layer._site.watch)  # what any send on this loop does
    world.settle()
    world.send(channel)
    world.settle()
    assert task.done()


def test_a_layer_that_is_closed_and_used_again_during_a_spin(make_world: MakeWorld) -> None:
    """The receive ends as one that sleeps does."""
    world = make_world(1)
    task = spinning(world, "c")
    world.loops[0].step()
    world.layers[0].close_now()
    drive(world.layers[0].send("c", {"n": 1}))
    world.settle()
    assert isinstance(task.exception(), LayerClosed)


@pytest.mark.parametrize("how", ["doors", "closed"])
def test_members_of_a_home_that_named_a_closed_loop_stay(make_world: MakeWorld, how: str) -> None:
    """The first wait for it parks, so that a group message finds somebody living there."""
    world = make_world(1)
    loop, layer = world.loops[0], world.layers[0]
    world.wait(0, "x!a").cancel()
    world.settle()
    drive(world.outside.group_add("g", "x!a"))
    if how == "doors":
        shutil.rmtree(bells_directory(layer.prefix))
        layer._site.watch()
    else:
        layer.close_now()
    world.settle()
    world.wait(0, "other").cancel()
    world.settle()
    port = layer._site.port_of(loop)
    assert port is not None
    port.spin.__init__()  # type: ignore[misc]
    task = loop.create_task(layer.receive("x!a"))
    loop.step()
    loop.step()
    drive(world.outside.group_send("g", {"n": 7}))
    world.settle()
    assert drive(world.outside.group_channels("g")) == ["x!a"]
    assert task.result() == {"n": 7}


def test_it_ends_when_the_time_is_over(make_world: MakeWorld) -> None:
    """However many rounds are left."""
    world = make_world(1)
    spinning(world, "c").cancel()
    world.settle()
    (port,) = world.layers[0]._site.ports()
    port.spin.__init__()  # type: ignore[misc]
    task = world.loops[0].create_task(world.layers[0].receive_within("c", time.monotonic() - 1))
    assert world.loops[0].settle() < ROUNDS
    assert task.result() is None


def test_a_busy_lock_ends_it(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try would hold up the loop; asleep it does not."""
    world = make_world(1)
    task = spinning(world, "c")
    segment = world.layers[0]._site.messages.segment
    tries = 0
    contend = segment.contend

    def counted() -> None:
        nonlocal tries
        tries += 1
        contend()

    monkeypatch.setattr(segment, "contend", counted)
    world.send("c")
    world.lock()
    for _ in range(ROUNDS // 2):
        world.loops[0].step()
    world.unlock()
    assert tries < ROUNDS // 2  # of one look, of parking, and of the first patient tries
    world.settle()
    assert task.result()["n"]


@pytest.mark.parametrize("loop_count", [1, 2])
@pytest.mark.parametrize(
    "choices", [NAMES, MIXED, HOMES, SEVERAL], ids=["names", "mixed", "homes", "several"]
)
def test_random_waits_that_all_spin(
    make_world: MakeWorld,
    choices: list[Keys],
    loop_count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several at once on a loop, beside others that sleep for the same: nobody for ever."""
    monkeypatch.setattr(Spin, "begins", lambda _: True)
    random_waits_and_sends(make_world(loop_count), choices, seeds=60, most=24)


@pytest.mark.parametrize("others", [(), ("x!b",), ("x!a",)])
def test_a_wait_is_counted_once(make_world: MakeWorld, others: tuple[str, ...]) -> None:
    """Alone, beside another name of its home, beside another for the same name."""
    world = make_world(1)
    for name in ("x!z", *others):
        world.wait(0, name)
    (port,) = world.layers[0]._site.ports()
    world.waiting[0][2].cancel()
    world.settle()
    port.spin._to_skip = 10
    world.wait(0, "x!a")
    assert port.spin._to_skip == 9
