"""The exploration catches what it is there to catch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from asgi_ipc._shm.segment import Segment

from . import broken
from .explorer import Explorer
from .world import Op, World

MakeExplorer = Callable[..., Explorer]
KILLS = "kills of broken variants"
IN_BETWEEN = "neither the state before nor the one after"
LOST = "lost: a"


def program(world: World) -> Iterator[Op]:
    """Yield a little of everything that is committed."""
    one, other = world.actors
    yield world.send(other, "c")
    yield world.add(one, "g", "home!x")
    yield world.add(one, "g", "home!y")  # beside another of its home: straight-lined
    yield world.flush_messages(other)


def is_caught(explorer: Explorer, *symptoms: str) -> bool:
    """Explore until every symptom was seen; whether they were."""
    world = explorer.world
    explorer.run(world.claim(world.actors[0]))
    explorer.run(world.wait(world.loops[0], ["c"]))
    for op in program(world):
        explorer.explore(op)
        text = str(explorer.report)
        if all(symptom in text for symptom in symptoms):
            return True
    return False


@pytest.mark.parametrize(
    ("variant", "symptoms"),
    [
        (broken.CommitsBeforeTheLogIsWritten, (IN_BETWEEN,)),
        (broken.HasNoLog, (IN_BETWEEN, LOST)),
        (broken.ClearsTheLogEarly, (IN_BETWEEN, LOST)),
        (broken.ForgetsTheLastWord, (IN_BETWEEN,)),
    ],
)
def test_a_broken_commit_is_caught(
    make_explorer: MakeExplorer, variant: type[Segment], symptoms: tuple[str, ...]
) -> None:
    """A redo log with any of its steps left out or out of order leaves a state in between."""
    explorer = make_explorer(segment_class=variant, enough=1000, counted_as=KILLS)
    assert is_caught(explorer, *symptoms), explorer.report


def test_a_ring_after_the_commit_is_caught(make_explorer: MakeExplorer) -> None:
    """A message that is committed before its reader is rung can be left with nobody awake."""
    explorer = make_explorer(segment_class=broken.RingsAfterTheCommit, counted_as=KILLS)
    broken.ring_late(explorer.world)
    assert is_caught(explorer, "not rung"), explorer.report


def test_the_unbroken_variant_is_not_caught(make_explorer: MakeExplorer) -> None:
    """The variants are caught for what is wrong with them, not for being variants."""
    explorer = make_explorer(segment_class=broken.Rewritten, counted_as=KILLS)
    assert not is_caught(explorer, "killed"), explorer.report
