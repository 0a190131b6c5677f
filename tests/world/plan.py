"""What a site does, drawn from a seed: who lives in it, and what is done to whom, when.

The same seed gives the same plan, and each process draws what it does from a seed of its
own. The schedule, which decides what these meet, is the machine's.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["ALL_CAPACITY", "GROUPS", "LEAVES", "SLOTS", "SMALL", "SMALL_CAPACITY", "WORK"]
__all__ += ["Event", "Life", "Plan", "home_of_slot", "make_plan"]

SLOTS = 3  # processes at once, beside their children
WORK = ("work.0", "work.1", "work.2")  # ordinary channels that everybody reads
SMALL = ("small.0", "small.1")  # ordinary channels of little capacity; nobody reads the second
GROUPS = ("g0", "g1", "g2")
LEAVES = ("a", "b", "c")  # names below the home of a slot that always have a reader
ALL_CAPACITY = 300
SMALL_CAPACITY = 5

FACES = ("aio", "channels", "twin", "old")
ENDS = ("return", "_exit", "close")


@dataclass(frozen=True)
class Life:
    """One process.

    Attributes:
        face: ``aio`` and ``channels`` live in an event loop; ``twin`` (``.sync``) and ``old``
            (``IPCChannelLayer``) in threads.
        end: what it does when it is asked to end.
        preforks: children that it forks as a C program does, when it has used its layer.
        forks: it forks children in the middle of everything.
        closes_layer: it closes its layer now and then and goes on using it.
        is_interrupted: a signal handler raises in the middle of its calls.
        daemonises: it closes every descriptor that it did not open itself, as daemonisers do.
        closed_output: it began without the descriptors 0, 1 and 2.
    """

    seed: int
    face: str
    end: str
    preforks: int
    forks: bool
    closes_layer: bool
    is_interrupted: bool
    daemonises: bool
    closed_output: bool


@dataclass(frozen=True)
class Event:
    """What is done to the process of a slot: kill, end, stop, or stop with its children."""

    at_s: float
    kind: str
    slot: int
    for_s: float


@dataclass(frozen=True)
class Plan:
    """A whole site."""

    seed: int
    prefix: str
    seconds: float
    user: int
    descriptors: int
    lives: list[list[Life]]
    events: list[Event]

    def save(self, path: Path) -> None:
        """Write it down for the process that carries it out."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Plan:
        """Read what ``save`` wrote."""
        plan = json.loads(path.read_text())
        plan["lives"] = [[Life(**life) for life in slot] for slot in plan["lives"]]
        plan["events"] = [Event(**event) for event in plan["events"]]
        return Plan(**plan)


def home_of_slot(slot: int) -> str:
    """Return the process-specific home that each process of a slot uses in its turn."""
    return f"home{slot}!"


def make_plan(seed: int, prefix: str, seconds: float, user: int, descriptors: int) -> Plan:
    """Draw a plan.

    Args:
        user: to run as; 0: as root.
        descriptors: how many each process may have open.
    """
    chance = random.Random(seed)
    events = []
    at_s = 0.5
    ended = [1] * SLOTS
    while (at_s := at_s + chance.uniform(0.05, 0.7)) < seconds:
        kind = chance.choice(("kill", "kill", "end", "stop", "stop", "stop all"))
        event = Event(at_s, kind, chance.randrange(SLOTS), chance.uniform(0, 0.25))
        ended[event.slot] += kind in ("kill", "end")
        events.append(event)
    lives = [[_draw_life(chance) for _ in range(count)] for count in ended]
    return Plan(seed, prefix, seconds, user, descriptors, lives, events)


def _draw_life(chance: random.Random) -> Life:
    face = chance.choice(FACES)
    in_threads = face in ("twin", "old")
    return Life(
        seed=chance.randrange(2**32),
        face=face,
        end=chance.choice(ENDS),
        preforks=chance.choice((0, 0, 1, 2)),
        forks=chance.random() < 0.6,
        closes_layer=chance.random() < 0.2,
        is_interrupted=face == "twin" and chance.random() < 0.6,
        daemonises=in_threads and chance.random() < 0.3,
        closed_output=chance.random() < 0.3,
    )
