"""Both stores under random events, each step compared with the model and checked whole."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from asgi_ipc._operator.check import check_groups, check_messages
from asgi_ipc._process.shm import shm_unlink
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment
from asgi_ipc._store.membership import GroupStore
from asgi_ipc._store.messages import MessageStore, Settled
from asgi_ipc.exceptions import ChannelFull
from asgi_ipc.names import home_of

from ..bells import WrittenBells
from ..conftest import Clock, install_clock
from .model import Model

SECOND_NS = 10**9
SIZE = 256 << 10
CHANNELS = st.sampled_from(["a", "b", "c?1", "x!1", "x!2", "y!1", "x!"])
HOMES = ["a", "b", "c?1", "x!", "y!"]
GROUPS = st.sampled_from(["g", "h"])
SETTINGS = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Machine(RuleBasedStateMachine):
    """What both machines share: two processes' views of one segment, and a clock."""

    kind = 0
    name = ""
    check: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock: Clock = install_clock(self.patch)
        self.segments = [
            Segment(self.name, self.kind, SIZE, mode=0o600, lock_timeout=10.0) for _ in range(2)
        ]

    def teardown(self) -> None:
        """Remove the segment."""
        self.patch.undo()
        for segment in self.segments:
            segment.close()
        shm_unlink(self.name)

    @invariant()
    def is_sound(self) -> None:
        """The independent checker finds nothing."""
        segment = self.segments[0]
        problems: list[str] = segment.transact(type(self).check, segment)
        assert not problems


class Messages(Machine):
    """Sends and takes, by two processes, of seven channels."""

    kind = L.KIND_MESSAGES
    name = f"/test-{os.getpid()}-model-messages"
    check = staticmethod(check_messages)
    by_name = True

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(lambda _: 3, self.by_name)
        self.stores = [
            MessageStore(segment, WrittenBells(), lambda *_: []) for segment in self.segments
        ]

    @rule(who=st.integers(0, 1), name=CHANNELS, expiry_s=st.just(10), size=st.integers(0, 3000))
    def send(self, who: int, name: str, expiry_s: int, size: int) -> None:
        """Accepted or refused as the model does."""
        self.model.order += 1
        body = self.model.order.to_bytes(8, "big") + bytes(size)
        home = home_of(name)
        try:
            self.stores[who].send(
                name, name if home == name else home, body, 3, expiry_s * SECOND_NS, self.by_name
            )
            accepted = True
        except ChannelFull:
            accepted = False
        assert self.model.send(name, expiry_s * SECOND_NS) == accepted

    @rule(who=st.integers(0, 1), homes=st.lists(st.sampled_from(HOMES), min_size=1, unique=True))
    def take(self, who: int, homes: list[str]) -> None:
        """The head of the first of these homes that has one."""
        expected = next((self.model.live(home)[0] for home in homes if self.model.live(home)), None)
        taken = self.stores[who].take(homes)
        if expected is None:
            assert not taken.messages
            return
        (message,) = taken.messages
        assert message.name == expected.name
        assert int.from_bytes(message.body[:8], "big") == expected.order
        assert taken.home == home_of(expected.name)
        self.model.take(message.name, expected.order)
        if message.leaf:
            epoch = self.stores[who].epoch()
            self.stores[who].note_settled(Settled({message.name: 0}, 0, epoch))

    @rule(seconds=st.sampled_from([0.5, 4, 11, 70]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)
        self.model.now_ns += int(seconds * SECOND_NS)

    @rule(who=st.integers(0, 1))
    def flush(self, who: int) -> None:
        """Everything goes."""
        self.stores[who].flush()
        self.model.queues.clear()

    @invariant()
    def nothing_is_missing(self) -> None:
        """A queue is never shorter than what lives in it."""
        for home in HOMES:
            assert self.stores[1].depth(home) >= len(self.model.live(home))


class MessagesByHome(Messages):
    """The same, capacity counted as Channels 1 does."""

    by_name = False


class Groups(Machine):
    """Joins and leaves, by two processes, of two groups."""

    kind = L.KIND_GROUPS
    name = f"/test-{os.getpid()}-model-groups"
    check = staticmethod(check_groups)

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(lambda _: 100)
        self.stores = [GroupStore(segment) for segment in self.segments]

    @rule(who=st.integers(0, 1), group=GROUPS, name=CHANNELS)
    def add(self, who: int, group: str, name: str) -> None:
        """A member, new or renewed; every process of a site has the same ``group_expiry``."""
        self.stores[who].add(group, home_of(name), name, 5 * SECOND_NS)
        members = self.model.groups.setdefault(group, {})
        members[name] = self.model.now_ns + 5 * SECOND_NS

    @rule(
        who=st.integers(0, 1), group=GROUPS, name=CHANNELS, tombstone_s=st.sampled_from([0, 3, 60])
    )
    def discard(self, who: int, group: str, name: str, tombstone_s: int) -> None:
        """A member no more, if it was one."""
        self.stores[who].discard(group, home_of(name), name, tombstone_s * SECOND_NS)
        self.model.groups.get(group, {}).pop(name, None)

    @rule(seconds=st.sampled_from([0.5, 3, 6, 61]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)
        self.model.now_ns += int(seconds * SECOND_NS)

    @rule(who=st.integers(0, 1))
    def flush(self, who: int) -> None:
        """Everything goes."""
        self.stores[who].flush()
        self.model.groups.clear()

    @invariant()
    def both_see_the_members(self) -> None:
        """Listed, counted by home, and expanded, by either process."""
        for group in ("g", "h"):
            expected = self.model.members(group)
            for store in self.stores:
                assert set(store.channels(group)) == expected
                snapshot = store.snapshot(group)
                assert set(snapshot.channels) == {name for name in expected if "!" not in name}
                for home in ("x!", "y!"):
                    members = [name for name in expected if home_of(name) == home]
                    at = store.members_at(group, home, snapshot.version)
                    assert sorted(at) == sorted(members)
                    assert dict(snapshot.homes).get(home, 0) >= len(members)


@pytest.mark.parametrize("machine", [Messages, MessagesByHome, Groups])
def test_no_sequence_of_events_tells_store_and_model_apart(machine: type[Machine]) -> None:
    """Whatever happens in whatever order, both give the same answers."""
    run_state_machine_as_test(machine, settings=SETTINGS)
