"""Receiving by one name: cancellation in every interleaving, many receivers at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.stepping import Action, World, drive, places

from .conftest import MakeLayer

BOTH = pytest.mark.parametrize("channel", ["c", "x.y!a"])


async def _named(layer: Any, channel: str) -> tuple[str, dict[str, Any]]:
    return channel, await layer.receive(channel)


class Channels4World(World):
    """A world whose receives are Channels 4's."""

    def wait(self, where: int, *channels: str) -> asyncio.Task[Any]:
        """Start a receive of one name and let it come to rest."""
        (channel,) = channels
        task = self.loops[where].create_task(_named(self.layers[where], channel))
        self.waiting.append((where, channels, task))
        self.settle()
        return task

    def send_to_group(self, group: str, *members: str) -> None:
        """Send the next number to a group that has these members."""
        self._number += 1
        for member in members:
            self.sent[member, self._number] += 1
        drive(self.outside.group_send(group, {"n": self._number}))

    def join(self, group: str, *members: str) -> None:
        """Make members of a group."""
        for member in members:
            drive(self.outside.group_add(group, member))


MakeWorld = Callable[[int], Channels4World]
Scenario = Callable[[Channels4World], list[Action]]


@pytest.fixture
def make_world(make_backend: MakeLayer) -> Iterator[MakeWorld]:
    made: list[Channels4World] = []

    def make(loop_count: int) -> Channels4World:
        made.append(Channels4World(make_backend, loop_count))
        return made[-1]

    yield make
    for world in made:
        world.close()


def a_normal_channel(world: Channels4World) -> list[Action]:
    first = world.wait(0, "c")
    return [lambda: world.send("c"), first.cancel]


def a_specific_channel(world: Channels4World) -> list[Action]:
    first = world.wait(0, "x.y!a")
    return [lambda: world.send("x.y!a"), first.cancel]


def one_of_two_on_a_name(world: Channels4World) -> list[Action]:
    first = world.wait(0, "x.y!a")
    world.wait(0, "x.y!a")
    return [lambda: world.send("x.y!a"), first.cancel]


def two_messages_for_two_on_a_name(world: Channels4World) -> list[Action]:
    world.wait(0, "x.y!a")
    second = world.wait(0, "x.y!a")
    return [lambda: world.send("x.y!a"), second.cancel, lambda: world.send("x.y!a")]


def the_drainer_of_a_home(world: Channels4World) -> list[Action]:
    first = world.wait(0, "x.y!a")
    world.wait(0, "x.y!b")
    return [lambda: world.send("x.y!b"), first.cancel, lambda: world.send("x.y!a")]


def another_name_of_the_home(world: Channels4World) -> list[Action]:
    world.wait(0, "x.y!a")
    second = world.wait(0, "x.y!b")
    return [lambda: world.send("x.y!a"), lambda: world.send("x.y!b"), second.cancel]


def a_member_of_a_group(world: Channels4World) -> list[Action]:
    world.join("g", "x.y!a", "x.y!b", "c")
    first = world.wait(0, "x.y!a")
    world.wait(0, "x.y!b")
    return [lambda: world.send_to_group("g", "x.y!a", "x.y!b", "c"), first.cancel]


def a_group_and_a_direct_message(world: Channels4World) -> list[Action]:
    world.join("g", "x.y!a", "x.y!b")
    first = world.wait(0, "x.y!b")
    return [
        lambda: world.send("x.y!b"),
        first.cancel,
        lambda: world.send_to_group("g", "x.y!a", "x.y!b"),
    ]


def two_loops_on_a_normal_channel(world: Channels4World) -> list[Action]:
    first = world.wait(0, "c")
    world.wait(1, "c")
    return [lambda: world.send("c"), first.cancel]


def two_loops_each_its_home(world: Channels4World) -> list[Action]:
    first = world.wait(0, "x.y!a")
    world.wait(1, "x.z!a")
    return [lambda: world.send("x.y!a"), first.cancel, lambda: world.send("x.z!a")]


SCENARIOS: list[tuple[Scenario, int, int]] = [
    (a_normal_channel, 1, 12),
    (a_specific_channel, 1, 12),
    (one_of_two_on_a_name, 1, 12),
    (two_messages_for_two_on_a_name, 1, 8),
    (the_drainer_of_a_home, 1, 8),
    (another_name_of_the_home, 1, 8),
    (a_member_of_a_group, 1, 12),
    (a_group_and_a_direct_message, 1, 8),
    (two_loops_on_a_normal_channel, 2, 12),
    (two_loops_each_its_home, 2, 8),
]


@pytest.mark.parametrize(
    ("scenario", "loop_count", "steps"), SCENARIOS, ids=lambda value: getattr(value, "__name__", "")
)
def test_no_cancellation_loses_doubles_or_forgets(
    make_world: MakeWorld, scenario: Scenario, loop_count: int, steps: int
) -> None:
    """Wherever it happens, each message arrives once or waits, and nobody sleeps beside it."""
    world = make_world(loop_count)
    for _ in range(2):  # the second time every name and every bell is known
        action_count = len(scenario(world))
        assert world.problem() is None
        for where in places(action_count, steps):
            world.run(scenario(world), where)
            problem = world.problem()
            assert problem is None, f"actions before steps {where}: {problem}"


# -- what all layers do --------------------------------------------------------------------


@BOTH
async def test_a_waiting_receive_gets_what_is_sent(make_any: MakeLayer, channel: str) -> None:
    """Sent directly, and to a group."""
    layer = make_any()
    await layer.group_add("g", channel)
    for number in range(5):
        receive = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        if number % 2:
            await layer.send(channel, {"n": number})
        else:
            await layer.group_send("g", {"n": number})
        assert await receive == {"n": number}


@BOTH
async def test_a_cancelled_receive_loses_nothing(make_any: MakeLayer, channel: str) -> None:
    """Cancelled at every number of loop turns after the message."""
    layer = make_any()
    for turns in range(12):
        receive = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await layer.send(channel, {"turns": turns})
        for _ in range(turns):
            await asyncio.sleep(0)
        receive.cancel()
        try:
            got = await receive
        except asyncio.CancelledError:
            got = await layer.receive(channel)
        assert got == {"turns": turns}


@BOTH
async def test_a_receive_waits_for_ever(make_any: MakeLayer, channel: str) -> None:
    """Many loop turns pass, and nothing comes out of it."""
    layer = make_any()
    receive = asyncio.create_task(layer.receive(channel))
    for _ in range(200):
        await asyncio.sleep(0)
    assert not receive.done()
    receive.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receive


async def test_many_receivers_each_get_their_own(make_any: MakeLayer) -> None:
    """Five hundred names, received from at once."""
    layer = make_any()
    names = [await layer.new_channel() for _ in range(500)]
    receives = [asyncio.create_task(layer.receive(name)) for name in names]
    await asyncio.sleep(0)
    for name in reversed(names):
        await layer.send(name, {"to": name})
    assert [message["to"] for message in await asyncio.gather(*receives)] == names


# -- what the in-memory layer does not -----------------------------------------------------


@BOTH
async def test_waiters_on_one_name_do_not_disturb_each_other(
    make_ours: MakeLayer, channel: str
) -> None:
    """The first of two is cancelled; the second one still gets the message."""
    layer = make_ours()
    first = asyncio.create_task(layer.receive(channel))
    second = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await layer.send(channel, {"n": 1})
    assert await second == {"n": 1}


@BOTH
async def test_each_message_goes_to_one_reader(make_ours: MakeLayer, channel: str) -> None:
    """A hundred waiters, sixty messages: sixty are served and forty wait on."""
    layer, sender = make_ours(), make_ours()
    got: list[int] = []
    enough = asyncio.Event()

    async def read() -> None:
        got.append((await layer.receive(channel))["n"])
        if len(got) == 60:
            enough.set()

    readers = [asyncio.create_task(read()) for _ in range(100)]
    await asyncio.sleep(0)
    for number in range(60):
        await sender.send(channel, {"n": number})
    await enough.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(got) == list(range(60))
    assert sum(reader.done() for reader in readers) == 60
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_a_receive_cancelled_all_the_time_loses_nothing(make_ours: MakeLayer) -> None:
    """The pace at which channels_redis loses messages, and any other."""
    layer, sender = make_ours(capacity=5000), make_ours(capacity=5000)
    channel = await layer.new_channel()
    got: list[int] = []

    async def read() -> None:
        for turns in itertools.cycle(range(7)):
            receive = asyncio.create_task(layer.receive(channel))
            for _ in range(turns):
                await asyncio.sleep(0)
            receive.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                got.append((await receive)["n"])
            if len(got) == 1500:
                return

    reader = asyncio.create_task(read())
    for number in range(1500):
        await sender.send(channel, {"n": number})
        if number % 3 == 0:
            await asyncio.sleep(0)
    await reader
    assert got == list(range(1500))


async def test_the_bare_home_receives_everything_below_it(make_ours: MakeLayer) -> None:
    """In order, beside receives of full names."""
    layer = make_ours()
    home = (await layer.new_channel("specific")).partition("!")[0] + "!"
    for number in range(9):
        await layer.send(f"{home}{number % 3}", {"n": number})
    assert [(await layer.receive(home))["n"] for _ in range(9)] == list(range(9))
    receive = asyncio.create_task(layer.receive(home))
    await asyncio.sleep(0)
    await layer.send(f"{home}x", {"n": 9})
    assert await receive == {"n": 9}


async def test_a_channel_nobody_reads_costs_its_capacity_only(make_ours: MakeLayer) -> None:
    """Its group messages are dropped, its neighbour's all arrive, and nothing piles up."""
    layer = make_ours(capacity=5)
    abandoned, busy = await layer.new_channel(), await layer.new_channel()
    for name in (abandoned, busy):
        await layer.group_add("g", name)
    for number in range(200):
        await layer.group_send("g", {"n": number})
        assert await layer.receive(busy) == {"n": number}
    assert layer._reception.inboxes.count <= 5
    assert [(await layer.receive(abandoned))["n"] for _ in range(5)] == list(range(5))
