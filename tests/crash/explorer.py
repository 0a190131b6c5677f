"""Kill an operation at each of its steps, and look at what is left.

From one state of a ``World``, a forked child runs the operation to its end: that gives its
number of steps and the state after it. Then a child is killed at every one of those steps,
and each time the segments are looked at by somebody else, who replays what was committed,
and are put back to where they were. At last the operation is run for good.

What must hold after each kill:

* the independent checker finds nothing;
* the state is the one before or the one after (see ``sight`` for what is left out of a
  state, and ``Op.piecemeal`` for batches);
* nobody's parked bit has gone without a ring, and nobody sleeps beside a message while
  nobody else is awake for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from asgi_ipc._operator.check import check_groups, check_messages
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment

from .killing import Fuse, arm, in_child
from .sight import Key, State, see_groups, see_messages
from .world import Loop, Op, World


@dataclass
class Report:
    """What was tried and what was found."""

    points: Counter[str] = field(default_factory=Counter)  # by kind of step
    double_points: Counter[str] = field(default_factory=Counter)  # of the replay
    between: int = 0  # how often a batch was found half done
    problems: list[str] = field(default_factory=list)
    enough: int = 20  # problems after which it is no use to go on

    def __str__(self) -> str:
        text = f"{self.points.total()} crash points ({_counts(self.points)})"
        if self.double_points:
            text += f", {self.double_points.total()} double ones ({_counts(self.double_points)})"
        return "\n".join([text, *self.problems])

    @property
    def is_full(self) -> bool:
        """Whether it is no use to go on."""
        return len(self.problems) >= self.enough


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.most_common())


@dataclass
class _Moment:
    """One look at everything."""

    state: State
    problems: list[str]


_Images = tuple[bytes, ...]


class Explorer:
    """Explores one world.

    Args:
        doubles: how many kills of each operation are followed by kills of the replay at
            each of its steps: spread over those that leave something to replay.
    """

    def __init__(self, world: World, report: Report, *, doubles: int = 0) -> None:
        self.world = world
        self.report = report
        self.doubles = doubles

    def run(self, op: Op) -> None:
        """Run an operation without killing it."""
        self.world.ledger.clear()
        self.world.learn(op, op.run())

    def explore(self, op: Op) -> None:
        """Kill it everywhere, then run it."""
        ledger = self.world.ledger
        before = self.look()
        images = self._save()
        ledger.clear()
        assert not in_child(partial(self._run_armed, op, 0), ledger)
        steps, rings = ledger.steps, ledger.rings
        after = self.look()
        self._blame(op, "not killed", [*before.problems, *after.problems])
        self._blame(op, "not killed", self._sleepers(op, before.state, after.state, rings))
        self._restore(images)
        allowed = _Allowed(self.report, op, before.state, after.state, rings)
        unfinished = []
        for step in range(1, steps + 1):
            if self.report.is_full:
                return
            ledger.clear()
            assert in_child(partial(self._run_armed, op, step), ledger)
            kind = ledger.last_step
            where = f"killed at step {step} of {steps} ({kind})"
            rings = ledger.rings
            left = self._save_all() if self.doubles and self._is_unfinished() else None
            found = self._judge(op, where, allowed, rings)
            if left is not None:
                unfinished.append((where, left, rings, found))
            self._restore(images)
            self.report.points[kind] += 1
        for where, left, rings, found in _spread(unfinished, self.doubles):
            self._explore_replay(op, where, allowed, left, rings, found)
        self._restore(images)
        self.run(op)
        if self.look().state != after.state:
            self._blame(op, "in the end", ["it is not deterministic: mend the test"])

    def _run_armed(self, op: Op, kill_at: int) -> None:
        fuse = Fuse(self.world.ledger, kill_at)
        for segment in op.actor.segments:
            segment.after_fork_in_child()
        arm(op.actor.segments, fuse)
        self.world.fuse = fuse
        op.run()

    def _explore_replay(
        self,
        op: Op,
        where: str,
        allowed: _Allowed,
        left: _Images,
        rings: list[tuple[int, bool]],
        found: State,
    ) -> None:
        """Kill the next process, too, at every step of finishing what this one committed."""
        ledger = self.world.ledger
        step = 0
        killed = True
        while killed and not self.report.is_full:
            step += 1
            self._restore(left)
            ledger.clear()
            killed = in_child(partial(self._replay_armed, step), ledger)
            kind = ledger.last_step
            twice = f"{where}, again at step {step} of the replay ({kind})"
            state = self._judge(op, twice, allowed, rings)
            if state != found:
                self._blame(op, twice, ["another state than after one kill"])
            if killed:
                self.report.double_points[kind] += 1

    def _replay_armed(self, kill_at: int) -> None:
        fuse = Fuse(self.world.ledger, kill_at)
        for segment in self.world.inspected:
            segment.after_fork_in_child()
        arm(self.world.inspected, fuse)
        for segment in self.world.inspected:
            if segment.words[L.LOG_N]:
                segment.transact(lambda: None)

    # -- looking -------------------------------------------------------------------------

    def look(self) -> _Moment:
        """Take the locks, which replays what was committed, and look at everything."""
        moment = _Moment({}, [])
        messages, groups = self.world.inspected
        self._look_at(moment, messages, check_messages, partial(see_messages, self.world.is_dead))
        self._look_at(moment, groups, check_groups, see_groups)
        return moment

    def _look_at(
        self,
        moment: _Moment,
        segment: Segment,
        check: Callable[[Segment], list[str]],
        see: Callable[[Segment, int], State],
    ) -> None:
        def look() -> None:
            problems = check(segment)
            moment.problems += problems
            if not problems:  # else there may be no end of it
                moment.state.update(see(segment, self.world.clock.now_ns))

        try:
            segment.transact(look)
        except Exception as exc:  # whatever: a broken variant may have left any bytes
            moment.problems.append(f"{type(exc).__name__}: {exc}")

    def _judge(self, op: Op, where: str, allowed: _Allowed, rings: list[tuple[int, bool]]) -> State:
        moment = self.look()
        problems = moment.problems
        if not problems:
            problems = allowed.judge(moment.state)
            problems += self._sleepers(op, allowed.before, moment.state, rings)
        self._blame(op, where, problems)
        return moment.state

    def _blame(self, op: Op, where: str, problems: Iterable[str]) -> None:
        self.report.problems += [f"{op.text}: {where}: {problem}" for problem in problems]

    def _sleepers(
        self, op: Op, before: State, state: State, rings: list[tuple[int, bool]]
    ) -> list[str]:
        """Say who lost a parked bit without a ring, and who sleeps beside a message."""
        problems = []
        rung = {slot for slot, _ in rings}
        excused = {loop.slot for loop in self.world.loops if loop.dead or loop is op.by}
        for key in before.keys() - state.keys():
            if key[0] == "parked" and key[2] not in rung | excused:
                problems.append(f"slot {key[2]} is no longer parked on {key[1]}, and not rung")
        for key in state:
            if key[0] != "queue":
                continue
            living = [loop for loop in self.world.loops if not loop.dead]
            sleepers = [loop.slot for loop in living if ("parked", key[1], loop.slot) in state]
            awake = [
                loop
                for loop in living
                if loop.slot not in sleepers and self._is_awake_for(loop, key, rung)
            ]
            if sleepers and not awake:
                problems.append(f"slots {sleepers} sleep beside a message in {key[1]}")
        return problems

    def _is_awake_for(self, loop: Loop, queue: Key, rung: set[int]) -> bool:
        return queue[1] in loop.homes and (loop.rung or loop.slot in rung)

    # -- images --------------------------------------------------------------------------

    def _is_unfinished(self) -> bool:
        return any(segment.words[L.LOG_N] for segment in self.world.inspected)

    def _save(self) -> _Images:
        return tuple(
            segment.memory[: 8 * (segment.words[L.HEAP_END] + L.GRANULE_WORDS)]
            for segment in self.world.inspected
        )

    def _save_all(self) -> _Images:
        """Save what is not part of the heap yet as well: a replay may make it so."""
        return tuple(segment.memory[:] for segment in self.world.inspected)

    def _restore(self, images: _Images) -> None:
        for segment, image in zip(self.world.inspected, images, strict=True):
            segment.memory[: len(image)] = image


class _Allowed:
    """The states that a kill may leave."""

    def __init__(
        self,
        report: Report,
        op: Op,
        before: State,
        after: State,
        rings: list[tuple[int, bool]],
    ) -> None:
        self.report = report
        self.before = before
        self.after = after
        self.piecemeal = op.piecemeal
        if not all(alive for _, alive in rings):
            # The dead are reaped record by record, and others are rung in their place.
            self.piecemeal |= {"parked", "owner", "slot", "hint", "held"}

    def judge(self, state: State) -> list[str]:
        if state in (self.before, self.after):
            return []
        self.report.between += 1
        whole = self._whole(state)
        if whole not in (self._whole(self.before), self._whole(self.after)):
            return [
                "neither the state before nor the one after: "
                f"before {_difference(self.before, state)}; after {_difference(self.after, state)}"
            ]
        return [
            f"{key} is {state.get(key)}, was {self.before.get(key)}, will be {self.after.get(key)}"
            for key in {*self.before, *state, *self.after}
            if not self._is_between(key, state.get(key))
        ]

    def _whole(self, state: State) -> State:
        return {key: value for key, value in state.items() if key[0] not in self.piecemeal}

    def _is_between(self, key: Key, value: object) -> bool:
        before, after = self.before.get(key), self.after.get(key)
        if key[0] == "held":  # what was read is told of before more is taken
            return _number(value) <= max(_number(before), _number(after))
        if key[0] == "total":
            assert isinstance(before, int) and isinstance(after, int) and isinstance(value, int)
            return before <= value <= after
        return value in (before, after)


def _number(value: object) -> int:
    assert value is None or isinstance(value, int)
    return value or 0


def _difference(one: State, other: State) -> str:
    keys = sorted({*one, *other}, key=str)
    return str({k: (one.get(k), other.get(k)) for k in keys if one.get(k) != other.get(k)})


def _spread(
    entries: list[tuple[str, _Images, list[tuple[int, bool]], State]], count: int
) -> list[tuple[str, _Images, list[tuple[int, bool]], State]]:
    """Return up to ``count`` entries: the first, the last and some in between."""
    if len(entries) <= count:
        return entries
    if count == 1:
        return entries[len(entries) // 2 :][:1]
    step = (len(entries) - 1) / (count - 1)
    return [entries[round(number * step)] for number in range(count)]
