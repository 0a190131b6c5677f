"""Whoever finishes the work of the killed may be killed as well."""

from __future__ import annotations

from collections.abc import Callable

from .explorer import Explorer
from .programs import random_program

MakeExplorer = Callable[..., Explorer]


def check(explorer: Explorer) -> None:
    assert not explorer.report.problems, explorer.report
    assert explorer.report.double_points, "nothing was killed twice"


def test_a_replay_can_be_killed_everywhere(make_explorer: MakeExplorer) -> None:
    """After a kill behind the commit and one at any store of the replay, the third finishes."""
    explorer = make_explorer(doubles=3)
    world = explorer.world
    one, other = world.actors
    for actor in world.actors:
        explorer.run(world.claim(actor))
        explorer.run(world.wait(world.loops[-1], ["c"]))
    explorer.explore(world.send(one, "home!x"))
    explorer.explore(world.send(one, "c", 300))
    explorer.explore(world.add(one, "g", "home!x"))
    explorer.explore(world.take(other, ["home!"], limit=64))
    check(explorer)


def test_a_flush_can_be_killed_twice(make_explorer: MakeExplorer) -> None:
    """Emptying heap and table, too, can be broken off and begun again at any store."""
    explorer = make_explorer(doubles=4)
    world = explorer.world
    one, other = world.actors
    explorer.run(world.claim(one))
    explorer.run(world.wait(world.loops[-1], ["d"]))
    for channel in ("c", "c", "home!x"):
        explorer.run(world.send(one, channel, 300))
    explorer.explore(world.flush_messages(other))
    assert not [key for key in explorer.look().state if key[0] == "queue"]
    check(explorer)


def test_a_random_program_can_be_killed_twice(make_explorer: MakeExplorer) -> None:
    """A sample of the kills of a random program is followed by kills of every replay."""
    explorer = make_explorer(doubles=1)
    for op in random_program(explorer.world, 4, 6):
        explorer.explore(op)
    check(explorer)
