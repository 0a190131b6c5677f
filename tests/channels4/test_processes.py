"""Four processes, random joins, leaves, cancellations and kills; every delivery accounted for."""

from __future__ import annotations

import os
import random
import secrets
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Child

from .conftest import MakeLayer
from .member import GROUP, OPTIONS

Start = Callable[..., Child]
ROOT = Path(__file__).parents[2]
FOR_EVER = 1 << 63
CODE = f"""
sys.path.insert(0, {str(ROOT)!r})
from tests.channels4.member import _main
asyncio.run(_main(*sys.argv[1:]))
"""


class Sent:
    """A message, and the moments between which it was sent."""

    def __init__(self, began: int, excluded: str) -> None:
        self.began = began
        self.ended = FOR_EVER  # its sender was killed meanwhile
        self.excluded = set(filter(None, excluded.split(",")))


class Account:
    """What all processes wrote down, and what is wrong with it."""

    def __init__(self) -> None:
        self.owner: dict[str, int] = {}
        self.changes: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
        self.group: dict[tuple[int, int], Sent] = {}
        self.direct: dict[tuple[int, int], tuple[str, Sent]] = {}
        self.received: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.dropped: list[str] = []

    def read(self, pid: int, log: Path) -> None:
        """Add one process's account."""
        for line in log.read_text().splitlines():
            kind, first, *rest = line.split(" ")
            if kind == "R":
                self.received[first].append((int(rest[0]), int(rest[1])))
            elif kind in "JL":
                self.changes[first].append((int(rest[0]), int(rest[1]), kind == "J"))
            elif kind == "S":
                self.group[pid, int(first)] = Sent(int(rest[0]), rest[1])
            elif kind == "D":
                self.direct[pid, int(first)] = (rest[1], Sent(int(rest[0]), ""))
            elif kind == "s":
                self.group[pid, int(first)].ended = int(rest[0])
            elif kind == "d":
                self.direct[pid, int(first)][1].ended = int(rest[0])
            elif kind == "N":
                self.owner[first] = pid
            else:
                self.dropped.append(line)

    def members(self, living: set[int]) -> set[str]:
        """Return who must be in the group in the end."""
        return {
            channel
            for channel, changes in self.changes.items()
            if changes and changes[-1][2] and self.owner[channel] in living
        }

    def problems(self, living: set[int]) -> list[str]:
        """Return every message that was lost, doubled, reordered or nobody's business."""
        found = [f"dropped: {line}" for line in self.dropped]
        for channel, owner in self.owner.items():
            got = self.received[channel]
            newest: dict[int, int] = defaultdict(int)
            for sender, n in got:
                if n <= newest[sender]:
                    found.append(f"{channel}: {n} of {sender} after {newest[sender]}")
                newest[sender] = n
            must, may = self._expected(channel)
            strange = set(got) - must - may
            found += [f"{channel} got {one}, which was not for it" for one in strange]
            if owner in living:
                found += [f"{channel} never got {one}" for one in must - set(got)]
        return found

    def _expected(self, channel: str) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Return what a channel must have received, and what it may have."""
        must: set[tuple[int, int]] = set()
        may: set[tuple[int, int]] = set()
        changes = self.changes[channel]
        ends = [ended for _, ended, _ in changes]
        for key, sent in self.group.items():
            if channel in sent.excluded:
                continue
            before = bisect_left(ends, sent.began)  # changes that had ended when it began
            was = changes[before - 1][2] if before else False
            if before < len(changes) and changes[before][0] <= sent.ended:
                may.add(key)
            elif was:
                (must if sent.ended < FOR_EVER else may).add(key)
        for key, (to, sent) in self.direct.items():
            if to == channel:
                (must if sent.ended < FOR_EVER else may).add(key)
        return must, may


def _soak(
    start: Start,
    make_backend: MakeLayer,
    logs: Path,
    *,
    members: int,
    kills: int,
    seconds: float,
) -> str:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    running: list[tuple[Child, Path]] = []
    everybody: list[tuple[int, Path]] = []

    def start_one() -> None:
        log = logs / f"{len(everybody)}.log"
        child = start(CODE, str(log), str(chance.randrange(1 << 30)), str(members))
        running.append((child, log))
        everybody.append((child.pid, log))

    for _ in range(4):
        start_one()
    for child, _ in running:
        child.expect("ready")
    for _ in range(kills):
        time.sleep(seconds / (kills + 1) * chance.uniform(0.5, 1.5))  # how long it goes on
        victim, _ = running.pop(chance.randrange(len(running)))
        victim.kill()
        start_one()
        running[-1][0].expect("ready")
    time.sleep(seconds / (kills + 1))
    for child, _ in running:
        child.tell()
    for child, _ in running:
        child.expect("quiet")

    account = Account()
    living = {child.pid for child, _ in running}
    for pid, log in everybody:
        account.read(pid, log)
    layer = make_backend(**OPTIONS)
    in_group = set(layer.sync.group_channels(GROUP))  # before they close their layers
    for channel, pid in account.owner.items():
        if pid in living:  # behind everything that was sent before
            layer.sync.send(channel, {"type": "end"})
    for child, _ in running:
        child.expect("ended")
        child.end()

    account = Account()
    for pid, log in everybody:
        account.read(pid, log)
    problems = account.problems(living)
    assert not problems, f"{len(problems)} problems, the first: {problems[:10]}"
    strangers = {name for name in in_group if account.owner[name] in living}
    assert strangers == account.members(living)
    assert len(account.group) > 20
    deliveries = sum(map(len, account.received.values()))
    messages = f"{len(account.group)} group and {len(account.direct)} direct messages"
    return f"{messages}, {deliveries} deliveries"


def test_every_delivery_is_accounted_for(
    start: Start, make_backend: MakeLayer, tmp_path: Path
) -> None:
    """A few seconds, two kills."""
    print(_soak(start, make_backend, tmp_path, members=20, kills=2, seconds=3))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_delivery_is_accounted_for_at_length(
    start: Start, make_backend: MakeLayer, tmp_path: Path
) -> None:
    """A minute, four processes of 250 members, twelve kills."""
    print(_soak(start, make_backend, tmp_path, members=250, kills=12, seconds=60))
    assert os.listdir(tmp_path)
