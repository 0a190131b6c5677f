"""Receiving: from the first look to the message, or to the wait for it.

Ordinary and single-reader channels are popped by whoever asks. A process-specific home is
drained for all who wait below it, when the loop is rung or by one of them; what is drawn goes
to the inboxes, where they look before they look at the queue.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from .._process.own import here
from .._shm import layout as L
from .._shm.segment import LockBusy
from .._store.codec import Codec
from .._store.fanout import Drop
from .._store.messages import Settled, Taken
from .._store.queues import Popped
from .._wake.blocking import call_out, driving
from .._wake.port import HostLoop, Port
from .._wake.site import Site
from .._wake.spin import next_round
from .._wake.waiting import GONE, LATE, LOOKING, Waiter
from ..exceptions import IPCError, LayerClosed
from ..names import home_of
from .inbox import Entry, Inboxes

__all__ = ["TURN_EVERY", "Received", "Reception"]

Received = tuple[str, dict[str, Any]]

_EPOCH = L.EPOCH
_BATCH = 64  # messages taken from a process-specific home in one hold of the lock
_UNSETTLED = 2 * _BATCH  # what one drain brings is settled with the next one
_RETRY_S = 0.01
_NEVER_NS = 1 << 63
# One receive in so many lets the loop turn first, should it never have to wait: some 0.4 ms of
# receives, for a turn of about 6 µs (a hundredth of them).
TURN_EVERY = 64


class Reception:
    """The receiving half of one layer.

    Attributes:
        site: set once by the layer, before anything else is called.
        inboxes: what was drained and not asked for yet; the site's mutex guards it.
        least_capacity: the least that ``capacity_of`` returns; set by the layer.
        spin_rounds: see ``AsyncIPCChannelLayer``, which sets it.
        count: how many receives of the faces on asyncio began.
    """

    site: Site
    least_capacity: int
    spin_rounds: int

    def __init__(
        self,
        capacity_of: Callable[[str], int],
        on_drop: Callable[[Sequence[Drop]], None],
        codec: Codec,
    ) -> None:
        """Start with nothing taken.

        Args:
            capacity_of: how many messages a full name may have in its inbox.
            on_drop: told which group messages found no room there.
            codec: of the layer.
        """
        self.decode = codec.decode
        self._decode_taken = codec.decode_taken
        self._capacity_of = capacity_of
        self._on_drop = on_drop
        self.inboxes = Inboxes()
        self._drops: list[Drop] = []  # group messages that found no room here, not told yet
        self._dropped = 0  # and not counted yet
        self._settles_on: Callable[[], object] = _no_loop  # where `_settle` is due
        self._expires_at_ns = 0  # when a timer is due
        self._turn = 0
        self.count = 0  # of receives on asyncio

    def reset(self) -> None:
        """Forget what was taken: the layer was closed, or this is a forked child."""
        self.inboxes = Inboxes()
        self._drops = []
        self._dropped = 0
        self._settles_on = _no_loop
        self._expires_at_ns = 0

    async def receive(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        block: bool,
        deadline: float | None,
        pause: Callable[[float], Awaitable[None]],
        loop: HostLoop | None = None,
    ) -> Received | None:
        """Return a message for one of ``keys``, ``None`` if nothing came.

        Of a single key, ``take_now`` should have been asked before.

        Args:
            keys: names that were checked, each once.
            homes: the queues those live in, each once.
            block: wait for one.
            deadline: until then at most, ``time.monotonic``.
            pause: waits a moment when the lock is busy.
            loop: to wait on, if it is not the running asyncio loop.
        """
        if here[0] != self.site.attached_by:
            self.site.open()
        if time.monotonic_ns() > self.site.watch_at_ns:
            # Who asks again and again, waiting briefly or not at all, never waits for long
            # enough to look by the way.
            self.site.watch()
        port = None
        closings = self.site.closings
        if block and deadline is not None:
            block = time.monotonic() < deadline  # else nothing is made for a wait that will not be
        if block:
            is_asyncio = loop is None
            loop = loop or _running_loop()
            port = self.site.port_of(loop)
            if is_asyncio and port is not None and self.spin_rounds and port.spin.begins():
                got = await self._spin(port, keys, homes, deadline)
                if got is not None:
                    return got
                self._check_not_closed(closings)
                port = self.site.port_of(loop)
        if not block or (port is None and self._seems_ready(keys, homes)):
            try:
                got = self._take(keys, homes)
            except LockBusy:
                got = await self.site.patiently(pause, self._take, keys, homes)
            if got is not None or not block:
                return got
        assert loop is not None
        return await self._wait(Waiter(keys, homes), loop, port, closings, deadline, pause)

    async def let_the_loop_turn(self) -> None:
        """Let timers and the other tasks of the loop run; with no message in hand."""
        if asyncio._get_running_loop() is not None and not driving.is_driving:
            await next_round()

    async def go_on(
        self,
        waiter: Waiter,
        port: Port,
        closings: int,
        pause: Callable[[float], Awaitable[None]],
    ) -> Received | None:
        """Do what ``receive`` does, for one that rested and was woken but not served."""
        return await self._wait(waiter, _running_loop(), port, closings, None, pause)

    async def _wait(
        self,
        waiter: Waiter,
        loop: HostLoop,
        port: Port | None,
        closings: int,
        deadline: float | None,
        pause: Callable[[float], Awaitable[None]],
    ) -> Received | None:
        """Wait until there is a message, or the time is over."""
        while True:
            if port is None:
                try:
                    port = self.site.make_port(loop)
                except LockBusy:
                    port = await self.site.patiently(pause, self.site.make_port, loop)
            try:
                try:
                    if waiter.state == GONE:
                        port.add(waiter)
                    is_late = False
                    while True:  # to be jumped back to unconditionally: see `_process/mutex`
                        if is_late:
                            return self._last_look(waiter.keys, waiter.homes)
                        if not port.is_open:
                            break
                        got = await self._look_and_park(waiter, port, closings, pause)
                        if got is not None:
                            return got
                        if not port.is_open:
                            break  # closed while it waited for the lock: nobody would wake it
                        # No await since that look: every wake from here on finds the future.
                        await self._sleep(loop, waiter, deadline)
                        got = self._take_drained(waiter)
                        if got is not None:
                            return got
                        is_late = waiter.state == LATE
                finally:
                    port.remove(waiter)
            finally:
                if waiter.state != GONE:  # a signal handler raised while it left
                    port.remove(waiter)
            self._check_not_closed(closings)
            port = self.site.port_of(loop)

    async def _look_and_park(
        self,
        waiter: Waiter,
        port: Port,
        closings: int,
        pause: Callable[[float], Awaitable[None]],
    ) -> Received | None:
        """Return a message if there is one; ``None``: parked, or closed."""
        keys, homes = waiter.keys, waiter.homes
        if waiter.state == LOOKING:
            if self._parks_at_once(keys, homes, port):
                return None
        else:
            got = self._take_after_ring(waiter, port)
            if got is not None:
                return got
        try:
            return self._take(keys, homes, port, waiter)
        except LockBusy:
            waiter.wake()  # others may leave it their parked bit
            take = partial(self._take_if_open, closings, keys, homes, port, waiter)
            return await self.site.patiently(pause, take)

    async def _spin(
        self, port: Port, keys: tuple[str, ...], homes: tuple[str, ...], deadline: float | None
    ) -> Received | None:
        """Look again in the next few rounds of the loop; nobody has to ring meanwhile.

        Not for homes that have no record yet, or one that names another loop: parking sees to it.
        """
        got = None
        site = self.site
        closings = site.closings
        try:
            rounds = self.spin_rounds if site.messages.slots.are_kept(homes, port.token) else 0
            for _ in range(rounds):
                await next_round()
                if site.closings != closings or not site.is_open:
                    break
                if self._seems_ready(keys, homes):
                    got = self._look(keys, homes)
                    if got is not None:
                        break
                if deadline is not None and time.monotonic() >= deadline:
                    break
        except LockBusy:
            pass  # each try holds up the whole loop: it waits in its sleep
        finally:
            port.spin.ended(found=got is not None)
        return got

    def _look(self, keys: tuple[str, ...], homes: tuple[str, ...]) -> Received | None:
        """Look once, without parking."""
        got = self.take_now(keys[0], homes[0]) if len(keys) == 1 else None
        return got or self._take(keys, homes)

    def _last_look(self, keys: tuple[str, ...], homes: tuple[str, ...]) -> Received | None:
        """Look once more when the time is over, unless the lock is busy."""
        try:
            return self._look(keys, homes)
        except LockBusy:
            return None

    def _take_if_open(
        self,
        closings: int,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port,
        waiter: Waiter,
    ) -> Received | None:
        """Take, unless the layer was closed since the receive began, perhaps by a thread."""
        self._check_not_closed(closings)
        return self._take(keys, homes, port, waiter)

    def _check_not_closed(self, closings: int) -> None:
        if self.site.closings != closings:
            raise LayerClosed(f"the channel layer {self.site.prefix!r} was closed during a receive")

    async def _sleep(self, loop: HostLoop, waiter: Waiter, deadline: float | None) -> None:
        """Wait until woken, or until the time is over."""
        future = loop.create_future()
        waiter.sleep_on(future)
        if deadline is None:
            await future
            return
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), waiter.time_is_over)
        try:
            await future
        finally:
            timer.cancel()

    def _parks_at_once(self, keys: tuple[str, ...], homes: tuple[str, ...], port: Port) -> bool:
        """Whether a first look could be spared: one home, and it is empty."""
        return (
            len(homes) == 1
            and not (self.inboxes.by_home and self._lies_in_inbox(keys))
            and self.site.messages.slots.park_one(homes[0], port.slot, port.token)
        )

    def _seems_ready(self, keys: tuple[str, ...], homes: tuple[str, ...]) -> bool:
        if self._lies_in_inbox(keys):
            return True
        may_have = self.site.messages.may_have
        for home in homes:  # noqa: SIM110
            if may_have(home):
                return True
        return False

    def _lies_in_inbox(self, keys: tuple[str, ...]) -> bool:
        has = self.inboxes.has
        for key in keys:  # noqa: SIM110 - any() costs more than all the rest of it
            if has(key):
                return True
        return False

    # -- serving -------------------------------------------------------------------------

    def serve(self, port: Port, home: str) -> bool:
        """Drain a process-specific home for all who wait below it on a loop that was rung.

        Returns:
            False if one of them has to see to it: the lock is busy, or something is wrong.
        """
        try:
            with self.site.mutex:  # so that what two loops drain arrives in its order
                self._draw(partial(self._take_for_all, port, home))
        except (LockBusy, IPCError):
            return False
        if self._drops:
            try:  # at once: this may be the loop's last round
                self._report()
            except Exception as exc:
                loop = port.loop()
                if loop is not None:
                    loop.call_soon(_raise, exc)  # whatever the callback raises, the look goes on
        return True

    # -- taking --------------------------------------------------------------------------

    def _take(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port | None = None,
        waiter: Waiter | None = None,
    ) -> Received | None:
        """Return one message for ``keys`` if there is one; with a port, park if there is none."""
        self._drain_crowded(keys)
        got = self._find_in_inbox(keys, waiter)
        if got is not None:
            return got
        if len(homes) > 1:  # a busy channel must not starve a quiet one
            self._turn += 1
            turn = self._turn % len(homes)
            homes = homes[turn:] + homes[:turn]
        if all(home[-1] != "!" for home in homes):
            taken = self._take_messages(keys, homes, port, waiter)
            if not taken.messages:
                return None
            if waiter is not None:
                waiter.has_taken()
            return self._decoded(taken.messages[0])
        while True:
            with self.site.mutex:  # so that what two loops drain arrives in its order
                got = self._find_in_inbox(keys, waiter)  # another thread's drain, or the last one
                if got is not None:
                    return got
                take = partial(self._take_messages, keys, homes, port, waiter)
                taken, mine = self._draw(take, keys, waiter)
            if mine is not None:
                return self._decoded(mine)
            if self._drops:
                self._report()
            if not taken.messages:
                return None
            self._drain_crowded(keys)

    def _draw(
        self, take: Callable[[], Taken], keys: tuple[str, ...] = (), waiter: Waiter | None = None
    ) -> tuple[Taken, Popped | None]:
        """Take what there is, put it into the inboxes, and return the first if it is for ``keys``.

        Called with the mutex held. What is in hand is put there whatever happens.
        """
        try:
            taken = take()
            if waiter is not None:
                waiter.has_looked()
            mine = None
            if taken.messages:
                first = taken.messages[0]
                if not first.group_version and (first.name in keys or taken.home in keys):
                    if taken.home[-1] == "!":
                        self.site.messages.in_hand.popleft()
                    mine = first
                    if waiter is not None:
                        waiter.has_taken()
            self._deliver()
        except LockBusy:
            raise
        except BaseException:
            self._deliver()
            self.on_safety()
            raise
        return taken, mine

    def _find_in_inbox(self, keys: tuple[str, ...], waiter: Waiter | None) -> Received | None:
        if not self.inboxes.by_home or not self._lies_in_inbox(keys):
            return None
        got = self._take_from_inboxes(keys)
        if got is not None and waiter is not None:
            waiter.was_served()
        return got

    def _take_after_ring(self, waiter: Waiter, port: Port) -> Received | None:
        """Take what one waiter, alone on its home, was most likely rung for."""
        keys, homes = waiter.keys, waiter.homes
        if len(keys) != 1 or not port.waiting.is_alone(homes[0]):
            return None
        got = self._find_in_inbox(keys, waiter)
        if got is None:
            got = self.take_now(keys[0], homes[0], rung=True)
            if got is not None:
                waiter.has_taken()
        return got

    def take_now(self, key: str, home: str, *, rung: bool = False) -> Received | None:
        """Take the next message of one channel, in the ordinary cases; else see ``receive``."""
        if here[0] != self.site.attached_by:
            return None
        messages = self.site.messages
        if "!" not in key:
            taken = messages.take_one(key, rung=rung)
        else:
            seems_there = rung or messages.may_have(home)
            if not seems_there and not (self.inboxes.by_home and self.inboxes.has(key)):
                return None
            if self.inboxes.by_home and seems_there:
                try:
                    self._drain_crowded((key,))
                except LockBusy:
                    return None
            with self.site.mutex:
                if self.inboxes.by_home and self.inboxes.has(key):
                    got = self._take_from_inboxes((key,))
                    if got is not None:
                        return got
                if not seems_there:
                    return None
                taken = messages.take_one(home, None if key == home else key, rung=True)
        if taken is None:
            return None
        name, body = taken
        return name or key, self._decode_taken(body)

    def _take_messages(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port | None,
        waiter: Waiter | None,
    ) -> Taken:
        alone = port.waiting.only_by(waiter) if port and waiter else ()
        shared = port is not None and len(alone) < len(homes)
        taken = self._take_from(
            homes,
            slot=port.slot if port else None,
            token=port.token if port else 0,
            leave=alone if waiter and (waiter.state != LOOKING or shared) else (),
            stay=shared,
            limit=_BATCH if keys != homes else 1,
            wanted=keys,
        )
        if taken.more and shared and port is not None:
            port.look_soon()
        return taken

    def _take_for_all(self, port: Port, home: str) -> Taken:
        """Take for whoever waits below a home."""
        how = {"slot": port.slot, "token": port.token, "stay": True, "limit": _BATCH}
        taken = self._take_from((home,), **how)
        if taken.more:
            port.look_soon()
        return taken

    def _take_from(self, homes: tuple[str, ...], **how: Any) -> Taken:
        """Take from the store, and settle in the same hold of the lock."""
        inboxes = self.inboxes
        if not inboxes.read and inboxes.due_ns > time.monotonic_ns():
            return self.site.messages.take(homes, **how)
        with self.site.mutex:
            said = self._to_say()
            taken = self.site.messages.take(homes, settled=said, **how)
            self._was_said(said)
        return taken

    def _decoded(self, message: Popped) -> Received:
        return message.name, self.decode(message.body)

    def _take_from_inboxes(self, keys: tuple[str, ...]) -> Received | None:
        with self.site.mutex:
            if self.site.messages.epoch() != self.inboxes.epoch:
                self._check_inbox_epoch()
            found = self.inboxes.pop_first(keys, time.monotonic_ns())
            if self.inboxes.read:
                self.settle_soon()
        return None if found is None else (found[0], self.decode(found[1].body))

    def _drain_crowded(self, keys: tuple[str, ...]) -> None:
        """Let no name have more group messages than its capacity, here and in the queue.

        What reading makes room for here is for what is sent from now on, not for what waits in the
        queue: that is drained before anything is read, and what finds no room is dropped.
        """
        if not self.inboxes.by_home:
            return
        for key in keys:
            if not self.inboxes.has(key):
                continue
            home = home_of(key)
            queued = self.site.messages.records.queued(home)
            if queued and self._is_crowded(key, queued):
                with self.site.mutex:
                    self._drain(home, queued)
                if self._drops:
                    self._report()

    def _drain(self, home: str, queued: int) -> None:
        while queued > 0:
            taken, _ = self._draw(partial(self._take_from, (home,), limit=_BATCH))
            queued = queued - len(taken.messages) if taken.messages else 0

    def _is_crowded(self, key: str, queued: int) -> bool:
        """Whether a name, the next one of a whole home, has perhaps more than it may."""
        with self.site.mutex:
            name = self.inboxes.next_name(key) if key[-1] == "!" else key
            lie_here = self.inboxes.group_depth(name, time.monotonic_ns()) if name else 0
            return name is not None and 0 < lie_here > self._capacity_of(name) - queued

    def _take_drained(self, waiter: Waiter) -> Received | None:
        """Do the same for one full name in the usual case, straight: for each of thousands."""
        keys = waiter.keys
        if not self.inboxes.by_home or len(keys) != 1 or keys[0][-1] == "!":
            return None
        site = self.site
        with site.mutex:
            words = site.messages.segment.words
            if words is None or words[_EPOCH] != self.inboxes.epoch:
                return None
            if site.messages.records.queued(waiter.homes[0]) >= self.least_capacity:
                return None  # see `_drain_crowded`
            entry = self.inboxes.pop_alone(waiter.homes[0], keys[0], time.monotonic_ns())
            if entry is None:
                return None
            waiter.was_served()
            if self.inboxes.read:
                self.settle_soon()
        return keys[0], self.decode(entry.body)

    # -- inboxes -------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Put drained messages where their readers look, and wake those.

        Called with the mutex held. It can be done again: what an interrupt left in hand is put
        then, and once. Whoever let go of the mutex reports what had no room.
        """
        in_hand = self.site.messages.in_hand
        left: dict[str, list[str]] = {}
        self._check_inbox_epoch()
        while in_hand:
            entry, names = in_hand[0]
            if not isinstance(entry, Entry):
                home, message = entry, names
                names = (message.name,)
                drops: list[Drop] = []
                if message.group_version:
                    names = self._with_room(message, drops)
                is_group = bool(message.group_version)
                entry = Entry(home, message.body, message.deadline_ns, bool(message.leaf), is_group)
                in_hand[0] = entry, names  # so that it is the same one if this is done again
                self._drops += drops
            if names:
                self.inboxes.put(entry, names)
                left.setdefault(entry.home, []).extend(names)
            in_hand.popleft()
        self._expire_in_time()
        for port in self.site.ports() if left else ():
            for home, names in left.items():
                port.wake_each(names)
                port.wake(home, len(names))

    def _report(self) -> None:
        """Count what found no room in an inbox, and say so. Called without the mutex."""
        with self.site.mutex:
            drops, self._drops = self._drops, []
            self._dropped += len(drops)
            self._settle()
        if drops:
            call_out(self._on_drop, drops)

    def _with_room(self, message: Popped, drops: list[Drop]) -> Sequence[str]:
        """Return the members of a group message whose inbox is not full, and note the others."""
        if not self.inboxes.by_home:
            return message.members
        depth_of = self.inboxes.depth
        served = []
        for name in message.members:
            depth = depth_of(name)
            if depth and depth >= (capacity := self._capacity_of(name)):
                depth = self.inboxes.group_depth(name, time.monotonic_ns())
                if depth >= capacity:
                    drops.append(Drop(name, 1, depth, capacity, "channel full", message.name))
                    continue
            served.append(name)
        return served

    # -- settling ------------------------------------------------------------------------

    def settle_soon(self) -> None:
        """Let what was read count no more soon, together with what is read next.

        Soon: with the next drain, after ``_UNSETTLED`` messages, or in the loop's next round,
        whichever comes first.
        """
        loop = asyncio._get_running_loop()
        if loop is None or len(self.inboxes.read) >= _UNSETTLED:
            self._settle()
        elif self._settles_on() is not loop:  # one that ended has not done it
            loop.call_soon(self._settle)
            self._settles_on = weakref.ref(loop)

    def settle(self) -> bool:
        """Settle at once, and drop what has expired; whether there was anything."""
        with self.site.mutex:
            self._expire_if_due()
            has_any = bool(self.inboxes.read)
            if has_any:
                self._settle()
        return has_any

    def _expire_if_due(self) -> None:
        now = time.monotonic_ns()
        if self.inboxes.due_ns <= now:
            self.inboxes.expire(now)

    def _settle(self) -> None:
        """Say in shared memory what of it still lies here."""
        with self.site.mutex:
            self._settles_on = _no_loop
            if not self.site.is_open or not (self.inboxes.read or self._dropped):
                return
            self._check_inbox_epoch()
            said = self._to_say()
            try:
                self.site.messages.note_settled(said)
            except LockBusy:
                loop = asyncio._get_running_loop()
                if loop is not None:
                    loop.call_later(_RETRY_S, self._settle)
            except IPCError:
                pass  # what is wrong is met by whoever uses the store next
            else:
                self._was_said(said)

    def _to_say(self) -> Settled:
        """Return what to say, with the mutex held. Whoever is interrupted says it again."""
        self._expire_if_due()
        inboxes = self.inboxes
        held = {name: inboxes.held(name) for name in inboxes.read}
        return Settled(held, self._dropped, inboxes.epoch, len(inboxes.read))

    def _was_said(self, said: Settled) -> None:
        del self.inboxes.read[: said.read_count]
        self._dropped -= said.dropped

    def _expire_in_time(self) -> None:
        """Drop what has expired here when the first of it does, if a loop runs here till then.

        Else whoever drains next does it, or whoever finds the channel full waits for the last.
        """
        due_ns = self.inboxes.due_ns
        if due_ns == _NEVER_NS:
            return
        now = time.monotonic_ns()
        if now < self._expires_at_ns <= due_ns:
            return  # it looks again then
        loop = asyncio._get_running_loop()
        if loop is not None:
            loop.call_later(max(0, due_ns - now) / 1e9, _expire, weakref.ref(self))
            self._expires_at_ns = due_ns

    def expire(self) -> None:
        """Drop what has expired here."""
        with self.site.mutex:
            self._expires_at_ns = 0
            self.inboxes.expire(time.monotonic_ns())
            if self.inboxes.read:
                self._settle()
            self._expire_in_time()

    def _check_inbox_epoch(self) -> None:
        epoch = self.site.messages.epoch()
        if epoch != self.inboxes.epoch:  # flushed by somebody
            self.inboxes.clear()
            self.inboxes.epoch = epoch

    def on_safety(self) -> None:
        """Drop what has expired in the inboxes, and wake whoever could have what is there."""
        with self.site.mutex:
            self.inboxes.expire(time.monotonic_ns())
            if self.inboxes.read:
                self._settle()
            names, homes = self.inboxes.names(), self.inboxes.homes()
        for port in self.site.ports() if names else ():
            port.wake_each(names)
            for home, count in homes:
                port.wake(home, count)


def _no_loop() -> None:
    return None


def _raise(exc: Exception) -> None:
    raise exc


def _expire(reception: weakref.ref[Reception]) -> None:
    living = reception()
    if living is not None:
        living.expire()


def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio._get_running_loop()
    if loop is None:
        raise IPCError(
            "no asyncio event loop runs here to wait for a message on: under trio or curio, call "
            "the blocking receive in a thread (trio.to_thread.run_sync(layer.sync.receive, name)), "
            "or use asyncio"
        )
    return loop
