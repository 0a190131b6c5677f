"""Random programs: the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .world import Op, World

CHANNELS = ("n0", "n1", "n2", "r?0", "r?1", "a!", "a!x", "a!y", "b!x", "b!z")
HOMES = ("n0", "n1", "n2", "r?0", "r?1", "a!", "b!")
GROUPS = ("g", "h")
LOOPS = 4


def random_program(world: World, seed: int, length: int) -> Iterator[Op]:
    """Yield operations, each fit for the state that the ones before have led to."""
    dice = random.Random(seed)
    for actor, homes in zip(world.actors, (["n0", "r?0"], ["n0", "a!", "b!"]), strict=True):
        yield world.claim(actor)
        yield world.wait(world.loops[-1], homes, limit=64)
    for _ in range(length):
        op = None
        while op is None:
            op = _random_op(world, dice)
        yield op


def _random_op(world: World, dice: random.Random) -> Op | None:
    actor = dice.choice(world.actors)
    what = dice.choices(
        (
            "send",
            "take",
            "wait",
            "look",
            "withdraw",
            "claim",
            "release",
            "die",
            "settle",
            "add",
            "discard",
            "send group",
            "drop home",
            "reap",
            "drop dead homes",
            "members",
            "pass time",
            "flush",
            "send many",
        ),
        (30, 12, 12, 8, 4, 3, 2, 2, 5, 14, 8, 10, 2, 2, 3, 2, 6, 1, 4),
    )[0]
    if what == "send":
        return world.send(
            actor,
            dice.choice(CHANNELS),
            dice.choice((0, 20, 20, 20, 200, 200, 5000, 17_000)),
            expiry_s=dice.choice((1.0, 10.0, 3600.0, 3600.0)),
            capacity=dice.choice((2, 5, 100)),
            by_name=actor is world.actors[0],
        )
    if what == "send many":
        names = dice.choices(CHANNELS, k=dice.randint(2, 5))
        return world.send_many(actor, names, capacity=dice.choice((2, 5, 100)))
    if what == "take":
        if dice.random() < 0.3:
            return world.take_one(actor, dice.choice(CHANNELS))
        wanted = dice.sample(CHANNELS, 3)
        homes = dice.sample(HOMES, dice.randint(1, 3))
        limit = dice.choice((1, 64))
        return world.take(
            actor,
            homes,
            limit=limit,
            wanted=wanted if dice.random() < 0.8 else None,
            settles=dice.random() < 0.5,
        )
    if what in ("wait", "look", "withdraw", "release", "die"):
        return _random_op_of_a_loop(world, dice, what)
    if what == "claim":
        return world.claim(actor) if len(world.loops) < LOOPS else None
    if what == "settle":
        world.read(actor, dice.randint(1, 5))
        return world.settle(actor) if actor.read else None
    group = dice.choice(GROUPS)
    if what == "add":
        return world.add(actor, group, dice.choice(CHANNELS), dice.choice((5.0, 3600.0)))
    if what == "discard":
        return world.discard(actor, group, dice.choice(CHANNELS))
    if what == "send group":
        return world.send_group(
            actor,
            group,
            dice.choice((20, 300, 2000)),
            capacity=dice.choice((2, 100)),
            exclude=dice.choice(("", "a!x")),
        )
    if what == "drop home":
        return world.drop_home(actor, dice.choice(HOMES))
    if what == "reap":
        return world.reap(actor)
    if what == "drop dead homes":
        return world.drop_dead_homes(actor, ("a!", "b!"))
    if what == "members":
        return world.members_at(actor, group, dice.choice(("a!", "b!")), dice.randint(0, 40))
    if what == "flush":
        return dice.choice((world.flush_messages, world.flush_groups))(actor)
    assert what == "pass time"
    world.pass_time(dice.choice((0.5, 2.0, 2.0, 70.0)))
    return None


def _random_op_of_a_loop(world: World, dice: random.Random, what: str) -> Op | None:
    loops = [loop for loop in world.loops if not loop.dead]
    if not loops:
        return None
    loop = dice.choice(loops)
    if what == "wait":
        if dice.random() < 0.2:
            return world.park_one(loop, dice.choice(HOMES))
        if not loop.homes:
            homes = dice.sample(HOMES, dice.randint(1, 3))
            return world.wait(loop, homes, limit=dice.choice((1, 64)))
        if not loop.rung:
            return None  # asleep
        others = dice.sample(loop.homes, dice.randint(0, 1))
        return world.wait(loop, list(loop.homes), limit=dice.choice((1, 64)), others_in=others)
    if what == "look":
        return world.look(loop) if loop.homes and loop.rung else None
    if what == "withdraw":
        return world.withdraw(loop) if loop.homes else None
    if what == "release":
        return world.release(loop)
    assert what == "die"
    # One that was rung dies with its ring: the safety look of the others is for that.
    loop.dead = not loop.rung
    return None
