"""A small site in one process: two attached processes, a few event loops, one clock.

The *actors* stand for processes: each has attachments and memories of its own, so that one
meets what the other changed behind its back. *Loops* are event loops that receive: what
``aio`` and ``_wake/port`` would do with the store is done here step by step, and this model
keeps what only they know: who waits for what, and who was rung and has not looked yet.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from asgi_ipc._process.witness import Life
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment
from asgi_ipc._store.fanout import Envelope, GroupMessage
from asgi_ipc._store.membership import GroupStore
from asgi_ipc._store.messages import Letter, MessageStore, Settled, Taken
from asgi_ipc._wake.site import drop_dead_homes
from asgi_ipc.exceptions import ChannelFull
from asgi_ipc.names import home_of

from .killing import CountedLock, Fuse, Ledger, replace_everywhere

SECOND = 1_000_000_000
FOR_EVER_S = 3600.0


class Clock:
    """Stands in for the ``time`` module: stands still unless told to go on."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000 * SECOND

    def monotonic_ns(self) -> int:
        """Return the time."""
        return self.now_ns

    def time_ns(self) -> int:
        """Return the time."""
        return self.now_ns

    def monotonic(self) -> float:
        """Return the time."""
        return self.now_ns / SECOND

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.now_ns += int(seconds * SECOND)


@dataclass(eq=False)
class Loop:
    """An event loop that receives."""

    actor: Actor
    slot: int
    token: int
    process: int
    homes: list[str] = field(default_factory=list)  # what it waits for
    rung: bool = False  # and it has not looked since
    dead: bool = False


@dataclass(eq=False)
class Op:
    """One operation: what a kill may leave half done, and what the model learns from it.

    Attributes:
        run: does it; may be repeated from the same state with the same effect.
        settle: tells the model of the result, once.
        by: the loop whose process does it, if any: it dies with it.
        piecemeal: kinds of components that may change one by one, because the operation is
            a batch: every other kind changes all at once.
    """

    text: str
    actor: Actor
    run: Callable[[], Any]
    settle: Callable[[Any], None] = lambda _: None
    by: Loop | None = None
    piecemeal: frozenset[str] = frozenset()


class Actor:
    """One attached process."""

    def __init__(self, world: World, segment_class: type[Segment]) -> None:
        self.world = world
        self.messages_segment = world.attach("messages", segment_class)
        self.groups_segment = world.attach("groups", segment_class)
        self.groups = GroupStore(self.groups_segment)
        self.messages = MessageStore(self.messages_segment, world, self.groups.members_at)
        own = 1001 + len(world.actors)
        self.messages.slots.token = lambda: own  # of what it takes without a loop
        self.messages.slots.is_own = lambda process: process == own
        self.held: list[str] = []  # the names of messages in its inboxes
        self.read: list[str] = []  # those that it has still to tell the others of

    @property
    def segments(self) -> tuple[Segment, Segment]:
        """Return what it is attached to."""
        return self.messages_segment, self.groups_segment


class World:
    """See the module docstring."""

    def __init__(
        self,
        prefix: str,
        ledger: Ledger,
        *,
        message_bytes: int = L.MIN_SEGMENT_BYTES,
        group_bytes: int = L.MIN_SEGMENT_BYTES,
        segment_class: type[Segment] = Segment,
    ) -> None:
        self._prefix = prefix
        self._sizes = {"messages": message_bytes, "groups": group_bytes}
        self._open: list[Segment] = []
        self._serial = 0
        self.ledger = ledger
        self.fuse: Fuse | None = None
        self.clock = Clock()
        self._lock = CountedLock()
        self._stand_ins = ((time, self.clock), (fcntl.flock, self._lock))
        for real, stand_in in self._stand_ins:
            assert replace_everywhere(real, stand_in), f"nobody uses {real} any more"
        self.actors: list[Actor] = []
        for _ in range(2):
            self.actors.append(Actor(self, segment_class))
        self.loops: list[Loop] = []
        self.dead: set[int] = set()  # processes whose loops are gone
        self.inspected = (self.attach("messages"), self.attach("groups"))

    def close(self) -> None:
        """Detach, and put the real clock and the real lock back."""
        for segment in self._open:
            segment.close()
        for real, stand_in in self._stand_ins:
            replace_everywhere(stand_in, real)

    def attach(self, which: str, segment_class: type[Segment] = Segment) -> Segment:
        """Attach once more."""
        kind = L.KIND_MESSAGES if which == "messages" else L.KIND_GROUPS
        segment = segment_class(
            f"/{self._prefix}-{which}", kind, self._sizes[which], mode=0o600, lock_timeout=10
        )
        self._open.append(segment)
        return segment

    def ring(self, slot: int, token: int, process: int) -> Life:
        """What a store calls to wake a loop."""
        if self.fuse is not None:
            self.fuse.step("ring")
        life = self.ask(process)
        self.ledger.ring(slot, life is Life.ALIVE)
        return life

    def token(self) -> int:
        """Each actor has its own."""
        raise NotImplementedError

    def is_own(self, process: int) -> bool:
        """Each actor has its own."""
        raise NotImplementedError

    def heard(self, slot: int, token: int, process: int) -> Life:
        """What a store asks when it has committed."""
        return self.ask(process)

    def forget(self, slot: int, token: int) -> None:
        """What a store calls for a loop that it reaps."""

    def ask(self, process: int) -> Life:
        """Whether a process lives."""
        return Life.DEAD if self.is_dead(process) else Life.ALIVE

    def is_dead(self, process: int) -> bool:
        """Whether a process does not: each loop is one."""
        return process in self.dead or any(
            loop.dead for loop in self.loops if loop.process == process
        )

    def learn(self, op: Op, result: Any) -> None:
        """Let the model know what an operation did and whom it rang."""
        op.settle(result)
        rung = {slot for slot, alive in self.ledger.rings if alive}
        self.dead |= {loop.process for loop in self.loops if loop.dead}
        for loop in self.loops:
            loop.rung = loop.rung or loop.slot in rung
        words = self.inspected[0].words
        self.loops = [
            loop
            for loop in self.loops
            if words[L.SLOTS + L.SLOT_WORDS * loop.slot + L.SLOT_TOKEN] == loop.token
        ]

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self.clock.now_ns += int(seconds * SECOND)

    # -- messages ------------------------------------------------------------------------

    def _body(self, size: int) -> bytes:
        self._serial += 1
        stamp = b"%06d " % self._serial
        return (stamp * (size // len(stamp) + 1))[:size]

    def send(
        self,
        actor: Actor,
        name: str,
        size: int = 20,
        *,
        expiry_s: float = FOR_EVER_S,
        capacity: int = 100,
        by_name: bool = True,
    ) -> Op:
        """Send, and be refused if there is no room."""
        body, home = self._body(size), home_of(name)

        def run() -> None:
            try:
                actor.messages.send(name, home, body, capacity, int(expiry_s * SECOND), by_name)
            except ChannelFull:
                pass

        text = f"send {size} bytes to {name} for {expiry_s} s, capacity {capacity}"
        return Op(text, actor, run)

    def send_many(
        self, actor: Actor, names: list[str], *, expiry_s: float = FOR_EVER_S, capacity: int = 100
    ) -> Op:
        """Send several at once, and be refused if there is no room for all."""
        expiry_ns = int(expiry_s * SECOND)
        letters = [
            Letter(name, home_of(name), self._body(20), capacity, expiry_ns, by_name=True)
            for name in names
        ]

        def run() -> None:
            try:
                actor.messages.send_many(letters)
            except ChannelFull:
                pass

        return Op(f"send to all of {names}, capacity {capacity}", actor, run)

    def take(
        self,
        actor: Actor,
        homes: list[str],
        *,
        limit: int = 1,
        wanted: Iterable[str] | None = (),
        settles: bool = False,
    ) -> Op:
        """Receive without waiting.

        Args:
            settles: what was read is told of in the same hold of the lock.
        """
        names = None if wanted is None else tuple(wanted)
        settled = self._settled(actor) if settles else Settled({})

        def run() -> Taken:
            return actor.messages.take(homes, limit=limit, wanted=names, settled=settled)

        def settle(taken: Taken) -> None:
            self._was_settled(actor, settled)
            actor.held += [message.name for message in taken.messages if message.leaf]

        # First the one, then the other; and each home by itself that has no owner.
        batch = frozenset({"held"} if settles else ()) | frozenset(
            {"owner"} if len(homes) > 1 else ()
        )
        text = f"take {limit} from {homes}, wanted {wanted}, settled {settled}"
        return Op(text, actor, run, settle, piecemeal=batch)

    def _settled(self, actor: Actor, dropped: int = 0) -> Settled:
        held = {name: actor.held.count(name) for name in actor.read}
        return Settled(held, dropped, actor.messages.epoch())

    def _was_settled(self, actor: Actor, settled: Settled) -> None:
        actor.read = [name for name in actor.read if name not in settled.held]

    def take_one(self, actor: Actor, name: str) -> Op:
        """Receive without waiting, the short way: a home takes whatever is under it."""
        home = home_of(name)
        own_name: str | None = name
        if name == home:
            own_name = None if name.endswith("!") else ""
        run = partial(actor.messages.take_one, home, own_name)
        return Op(f"take one from {name}", actor, run)

    def wait(
        self, loop: Loop, homes: list[str], *, limit: int = 1, others_in: Iterable[str] = ()
    ) -> Op:
        """Receive, or park.

        Args:
            others_in: homes that another receive of this loop waits in as well.
        """
        shared = bool(set(homes) & set(others_in))
        alone = tuple(home for home in homes if home not in others_in)
        leave = alone if loop.homes or shared else ()

        def run() -> Taken:
            return loop.actor.messages.take(
                homes,
                slot=loop.slot,
                token=loop.process,
                leave=leave,
                stay=shared,
                limit=limit,
            )

        def settle(taken: Taken) -> None:
            loop.rung = loop.rung and not set(loop.homes) <= set(homes)
            if not taken.messages:
                loop.homes = list(dict.fromkeys([*loop.homes, *homes]))
                return
            loop.homes = [home for home in loop.homes if home not in leave]
            loop.rung = bool(loop.homes)  # `aio` lets the others look soon

        text = f"slot {loop.slot} waits for {homes}, leaves {leave}, others in {others_in}"
        batch = frozenset({"parked", "owner"} if len(homes) > 1 else ())
        return Op(text, loop.actor, run, settle, loop, batch)

    def park_one(self, loop: Loop, home: str) -> Op:
        """Park, the short way."""

        def settle(parked: bool) -> None:
            if parked and home not in loop.homes:
                loop.homes.append(home)

        run = partial(loop.actor.messages.slots.park_one, home, loop.slot, loop.process)
        return Op(f"park slot {loop.slot} on {home}", loop.actor, run, settle, loop)

    def look(self, loop: Loop) -> Op:
        """Look at what a rung loop waits for, as far as the hint says."""

        def run() -> list[tuple[str, int]]:
            slots = loop.actor.messages.slots
            return slots.look(loop.slot, loop.process, loop.homes, hinted=True)

        def settle(waiting: list[tuple[str, int]]) -> None:
            loop.rung = bool(waiting)  # then it is about to take

        batch = frozenset({"parked", "owner", "hint"})
        return Op(f"slot {loop.slot} looks", loop.actor, run, settle, loop, batch)

    def withdraw(self, loop: Loop) -> Op:
        """Wait no more."""

        def settle(_: None) -> None:
            loop.homes, loop.rung = [], False

        return Op(
            f"slot {loop.slot} withdraws from {loop.homes}",
            loop.actor,
            lambda: loop.actor.messages.slots.withdraw(loop.slot, loop.homes),
            settle,
            loop,
        )

    def claim(self, actor: Actor) -> Op:
        """Begin to receive."""
        self._serial += 1
        process = 0xABCD00000000 + self._serial

        def settle(claimed: tuple[int, int]) -> None:
            self.loops.append(Loop(actor, *claimed, process))

        return Op("claim", actor, lambda: actor.messages.slots.claim(process, process), settle)

    def release(self, loop: Loop) -> Op:
        """Receive no more."""
        return Op(
            f"release slot {loop.slot} from {loop.homes}",
            loop.actor,
            lambda: loop.actor.messages.slots.release(loop.slot, loop.token, loop.homes),
            lambda _: self.loops.remove(loop),
            loop,
        )

    def read(self, actor: Actor, count: int) -> None:
        """Let the first messages leave the inboxes of a process; nobody else is told."""
        actor.read += actor.held[:count]
        del actor.held[:count]

    def settle(self, actor: Actor) -> Op:
        """Tell the others what left the inboxes."""
        settled = self._settled(actor, dropped=1)
        return Op(
            f"settle {settled}",
            actor,
            lambda: actor.messages.note_settled(settled),
            lambda _: self._was_settled(actor, settled),
        )

    def flush_messages(self, actor: Actor) -> Op:
        """Drop every message; the inboxes follow at once."""

        def settle(_: None) -> None:
            for one in self.actors:
                one.held.clear()
                one.read.clear()

        return Op("flush messages", actor, actor.messages.flush, settle)

    # -- groups --------------------------------------------------------------------------

    def add(self, actor: Actor, group: str, channel: str, expiry_s: float = FOR_EVER_S) -> Op:
        """Add a member or renew it."""

        def run() -> None:
            try:
                actor.groups.add(group, home_of(channel), channel, int(expiry_s * SECOND))
            except ChannelFull:
                pass

        return Op(f"add {channel} to {group} for {expiry_s} s", actor, run)

    def discard(
        self, actor: Actor, group: str, channel: str, *, tombstone_s: float | None = None
    ) -> Op:
        """End a membership as ``aio`` does, unless the tombstone's time is given."""

        def run() -> None:
            home = home_of(channel)
            pending = channel != home and actor.messages.depth(home)
            seconds = (60 if pending else 0) if tombstone_s is None else tombstone_s
            actor.groups.discard(group, home, channel, int(seconds * SECOND))

        return Op(f"discard {channel} from {group}, tombstone {tombstone_s}", actor, run)

    def reap(self, actor: Actor) -> Op:
        """Free the slots of the dead, one by one."""
        batch = frozenset({"parked", "owner", "slot", "hint"})
        return Op("reap", actor, actor.messages.slots.reap_all, piecemeal=batch)

    def drop_dead_homes(self, actor: Actor, homes: Iterable[str] = ()) -> Op:
        """Drop the members of homes whose owner is dead, one by one; then take them from it."""
        return Op(
            f"drop those of {sorted(homes)} whose owner is dead",
            actor,
            lambda: drop_dead_homes(actor.messages, actor.groups, homes),
            piecemeal=frozenset({"member", "owner", "parked", "slot", "hint"}),
        )

    def drop_home(self, actor: Actor, home: str) -> Op:
        """Drop the members of a home, one by one."""
        return Op(
            f"drop {home} from all groups",
            actor,
            lambda: actor.groups.drop_homes({home}, actor.groups.version()),
            piecemeal=frozenset({"member"}),
        )

    def members_at(self, actor: Actor, group: str, home: str, version: int) -> Op:
        """Read, and so change nothing."""
        return Op(
            f"members of {group} at {home} in version {version}",
            actor,
            lambda: actor.groups.members_at(group, home, version),
        )

    def send_group(
        self,
        actor: Actor,
        group: str,
        size: int = 20,
        *,
        expiry_s: float = FOR_EVER_S,
        capacity: int = 100,
        exclude: str = "",
        in_batches: bool = False,
    ) -> Op:
        """Send to a group; in batches if it takes more than one plan.

        Args:
            exclude: a process-specific channel that shall not get it.
        """
        body = self._body(size)

        def run() -> None:
            snapshot = actor.groups.snapshot(group)
            envelopes = [Envelope(channel, 0, 1) for channel in snapshot.channels]
            for home, members in snapshot.homes:
                without = f"\0{exclude}".encode() if home_of(exclude) == home else b""
                envelopes.append(Envelope(home, snapshot.version, members, without))
            expiry_ns = int(expiry_s * SECOND)
            actor.messages.send_group(
                GroupMessage(group, body, envelopes, lambda _: capacity, expiry_ns)
            )

        batch = frozenset(
            {"queue", "parked", "owner", "hint", "leaf", "total"} if in_batches else ()
        )
        return Op(f"send {size} bytes to group {group}", actor, run, piecemeal=batch)

    def flush_groups(self, actor: Actor) -> Op:
        """Drop every group."""
        return Op("flush groups", actor, actor.groups.flush)
