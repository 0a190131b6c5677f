"""The asyncio face under random events: sends, waits, cancellations, groups, time."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asgi_ipc import AsyncIPCChannelLayer

from ..conftest import install_clock, problems_of
from ..stepping import SteppingLoop, drive
from .model import Model

EXPIRY_S = 10
SMALL, LARGE = 2, 100
SHARED = ["a", "b", "tiny"]
OWN = ["x!1", "x!2", "x!tiny"]
CHANNELS = st.sampled_from(SHARED + OWN)
KEYS = st.one_of(
    st.lists(st.sampled_from([*SHARED, *OWN, "x!"]), min_size=1, max_size=1),
    st.lists(st.sampled_from([*SHARED, *OWN]), min_size=2, max_size=3, unique=True),
)
MEMBERS = st.sampled_from(SHARED + OWN)
GROUPS = st.sampled_from(["g", "h"])


class Layers(RuleBasedStateMachine):
    """Two layers of one prefix, each on a loop run step by step; the first owns ``x!``."""

    prefix = f"test-{os.getpid()}-model"

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = install_clock(self.patch)
        self.layers = [
            AsyncIPCChannelLayer(
                self.prefix,
                expiry=EXPIRY_S,
                capacity=LARGE,
                channel_capacity={"*tiny": SMALL},
                message_memory=256 << 10,
                group_memory=256 << 10,
            )
            for _ in range(2)
        ]
        self.model = Model(lambda name: SMALL if name.endswith("tiny") else LARGE)
        self.loops = [SteppingLoop() for _ in self.layers]
        self.waiting: list[tuple[list[str], asyncio.Task[Any]]] = []
        self.faults: list[dict[str, Any]] = []
        for loop in self.loops:
            loop.set_exception_handler(lambda _, context: self.faults.append(context))

    def teardown(self) -> None:
        """Close the loop and remove the segments."""
        for _, task in self.waiting:
            task.cancel()
        for loop in self.loops:
            loop.settle()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        self.patch.undo()
        self.layers[1].close_now()
        self.layers[0].unlink()

    # -- events --------------------------------------------------------------------------

    @rule(who=st.integers(0, 1), name=CHANNELS, from_loop=st.booleans())
    def send(self, who: int, name: str, from_loop: bool) -> None:
        """From the loop's own layer or another, inside the loop or outside."""
        if name.endswith("tiny"):
            self._settle()  # what left an inbox is uncounted by the loop's next round
        self.model.order += 1
        sending = self.layers[who].send(name, {"n": self.model.order})
        try:
            if from_loop:
                task = self.loops[who].create_task(sending)
                while not task.done():
                    self._step(who)
                task.result()
            else:
                drive(sending)
            accepted = True
        except self.layers[who].ChannelFull:
            accepted = False
        assert self.model.send(name, EXPIRY_S * 10**9) == accepted

    @rule(who=st.integers(0, 1), group=GROUPS)
    def group_send(self, who: int, group: str) -> None:
        """To every member."""
        self.model.order += 1
        drive(self.layers[who].group_send(group, {"n": self.model.order}))
        self.model.group_send(group, EXPIRY_S * 10**9)

    @rule(who=st.integers(0, 1), group=GROUPS, name=MEMBERS)
    def group_add(self, who: int, group: str, name: str) -> None:
        """By the owner or somebody else."""
        drive(self.layers[who].group_add(group, name))
        self.model.groups.setdefault(group, {})[name] = 1 << 62

    @rule(who=st.integers(0, 1), group=GROUPS, name=MEMBERS)
    def group_discard(self, who: int, group: str, name: str) -> None:
        """By the owner or somebody else."""
        drive(self.layers[who].group_discard(group, name))
        self.model.groups.get(group, {}).pop(name, None)

    @rule(keys=KEYS)
    def receive_now(self, keys: list[str]) -> None:
        """What is there, or nothing."""
        name, message = drive(self.layers[0].receive_async(keys, block=False))
        self._got(keys, name, message)

    @rule(name=st.sampled_from(SHARED))
    def receive_elsewhere(self, name: str) -> None:
        """The other layer takes from the shared channels."""
        self._got([name], *drive(self.layers[1].receive_async([name], block=False)))

    def _got(self, keys: list[str], name: str | None, message: dict[str, Any] | None) -> None:
        allowed = self.model.next_of(keys)
        if message is None:
            assert not allowed, f"nothing received of {keys}, and there is {allowed}"
            return
        assert name is not None
        assert (name, message["n"]) in allowed
        self.model.take(name, message["n"])

    @precondition(lambda self: len(self.waiting) < 6)
    @rule(keys=KEYS)
    def wait(self, keys: list[str]) -> None:
        """Somebody begins to wait."""
        self._wait(0, keys)

    @precondition(lambda self: len(self.waiting) < 6)
    @rule(keys=st.lists(st.sampled_from(SHARED), min_size=1, unique=True))
    def wait_elsewhere(self, keys: list[str]) -> None:
        """Somebody begins to wait on the other loop."""
        self._wait(1, keys)

    def _wait(self, who: int, keys: list[str]) -> None:
        task = self.loops[who].create_task(self.layers[who].receive_async(keys))
        self.waiting.append((keys, task))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 5), who=st.integers(0, 1), steps=st.integers(0, 3))
    def cancel(self, which: int, who: int, steps: int) -> None:
        """Somebody gives up, a few steps later than now."""
        for _ in range(steps):
            self._step(who)
        if self.waiting:
            self.waiting[which % len(self.waiting)][1].cancel()

    @rule(who=st.integers(0, 1), steps=st.integers(1, 4))
    def step(self, who: int, steps: int) -> None:
        """A loop gets a little further."""
        for _ in range(steps):
            self._step(who)

    @rule(seconds=st.sampled_from([1, 6, 11, 70]))
    def pass_time(self, seconds: int) -> None:
        """Time passes, with nobody left half woken.

        What is sent to groups finds its members first: who has room is told by what lives then.
        """
        self._settle()
        assert drive(self.layers[0].receive_async(["x!nobody"], block=False)) == (None, None)
        self._settle()
        self.clock.advance(seconds)
        self.model.now_ns += seconds * 10**9

    @rule(who=st.integers(0, 1))
    def flush(self, who: int) -> None:
        """Everything goes."""
        self._settle()
        drive(self.layers[who].flush())
        self.model.queues.clear()
        self.model.groups.clear()
        self._settle()

    # -- what must hold ------------------------------------------------------------------

    def _step(self, who: int) -> bool:
        stepped = self.loops[who].step()
        for waiting in [one for one in self.waiting if one[1].done()]:
            self.waiting.remove(waiting)
            keys, task = waiting
            if not task.cancelled():
                self._got(keys, *task.result())
        return stepped

    def _settle(self) -> None:
        while self._step(0) or self._step(1):
            pass

    @rule()
    def rest(self) -> None:
        """When nothing runs any more, nobody sleeps beside a message."""
        self._settle()
        for keys, _ in self.waiting:
            assert not self.model.next_of(keys), f"{keys} asleep beside {self.model.next_of(keys)}"

    @invariant()
    def is_sound(self) -> None:
        """No callback failed, both segments are whole, and both see the same members."""
        assert not self.faults
        assert not problems_of(self.layers[1])
        for group in ("g", "h"):
            members = drive(self.layers[1].group_channels(group))
            assert set(members) == self.model.members(group)


def test_no_sequence_of_events_tells_layer_and_model_apart() -> None:
    """Each receive gets what the model says, and every wait ends when it can."""
    run_state_machine_as_test(
        Layers,
        settings=settings(
            max_examples=120,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
