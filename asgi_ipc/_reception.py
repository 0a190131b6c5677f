"""Receiving: from the first look to the message, or to the wait for it.

Ordinary and single-reader channels are popped by whoever asks. A process-specific home is
drained for all who wait below it, when the loop is rung or by one of them; what is drawn goes
to the inboxes, where they look before they look at the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from . import _codec
from . import _layout as L
from ._blocking import call_out, driving
from ._fanout import Drop
from ._inbox import Entry, Inboxes
from ._own import here
from ._port import HostLoop, Port
from ._queues import Popped
from ._segment import LockBusy
from ._site import Site
from ._spin import next_round
from ._store import Taken
from ._waiting import GONE, LATE, LOOKING, Waiter
from .exceptions import IPCError, LayerClosed

__all__ = ["TURN_EVERY", "Received", "Reception"]

Received = tuple[str, dict[str, Any]]

_EPOCH = L.EPOCH
_BATCH = 64  # messages taken from a process-specific home in one hold of the lock
_OWED = 32
# One receive in so many lets the loop turn first, should it never have to wait: some 0.4 ms of
# receives, for a turn of about 6 µs (a hundredth of them).
TURN_EVERY = 64


class Reception:
    """The receiving half of one layer.

    Attributes:
        site: set once by the layer, before anything else is called.
        inboxes: what was drained and not asked for yet; the site's mutex guards it.
        spin_rounds: see ``AsyncIPCChannelLayer``.
        count: how many receives of the faces on asyncio began.
    """

    site: Site

    def __init__(
        self,
        capacity_of: Callable[[str], int],
        on_drop: Callable[[Sequence[Drop]], None],
        spin_rounds: int,
    ) -> None:
        """Start with nothing taken.

        Args:
            capacity_of: how many messages a full name may have in its inbox.
            on_drop: told which group messages found no room there.
            spin_rounds: see ``AsyncIPCChannelLayer``.
        """
        self.spin_rounds = spin_rounds
        self._capacity_of = capacity_of
        self._on_drop = on_drop
        self.inboxes = Inboxes()
        self._owed: list[tuple[int, int]] = []
        self._pay_is_due = False
        self._turn = 0
        self.count = 0  # of receives on asyncio

    def reset(self) -> None:
        """Forget what was taken: the layer was closed, or this is a forked child."""
        self.inboxes = Inboxes()
        self._owed = []
        self._pay_is_due = False

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
                    while port.is_open:
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
                        if waiter.state == LATE:
                            return self._last_look(waiter.keys, waiter.homes)
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
        with self.site.mutex:  # so that what two loops drain arrives in its order
            try:
                if self._owed:
                    self._pay()
                taken = self.site.messages.take(
                    (home,),
                    slot=port.slot,
                    token=port.token,
                    stay=True,
                    limit=_BATCH,
                    wanted=port.waited_names(),
                )
                if taken.more:
                    port.look_soon()
                drops = self._deliver()
            except LockBusy:
                return False
            except IPCError:
                self._deliver_after_all()
                return False
            except BaseException:
                self._deliver_after_all()
                raise
        loop = port.loop()
        if drops and loop is not None:
            loop.call_soon(self._report, drops)  # whatever the callback raises, the loop goes on
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
        got = self._find_in_inbox(keys, waiter)
        if got is not None:
            return got
        if len(homes) > 1:  # a busy channel must not starve a quiet one
            self._turn += 1
            turn = self._turn % len(homes)
            homes = homes[turn:] + homes[:turn]
        if self._owed:
            self._pay()
        if all(home[-1] != "!" for home in homes):
            taken = self._take_messages(keys, homes, port, waiter)
            if not taken.messages:
                return None
            if waiter is not None:
                waiter.has_taken()
            return self._decoded(taken.messages[0])
        with self.site.mutex:  # so that what two loops drain arrives in the order it was drained
            while True:
                got = self._find_in_inbox(keys, waiter)  # another thread's drain, or the last one
                if got is not None:
                    return got
                try:
                    mine, drops = self._drain(keys, homes, port, waiter)
                except LockBusy:
                    raise
                except BaseException:
                    self._deliver_after_all()
                    raise
                if drops:
                    self._report(drops)
                if mine is not None:
                    if mine.leaf:
                        self._owe(mine.leaf, mine.leaf_ident)
                    return self._decoded(mine)
                if drops is None:
                    return None

    def _drain(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port | None,
        waiter: Waiter | None,
    ) -> tuple[Popped | None, list[Drop] | None]:
        """Take what there is, put it into the inboxes, and return the first if it is for ``keys``.

        Returns:
            That one, and what found no room; of the second ``None`` if nothing was there at all.
        """
        taken = self._take_messages(keys, homes, port, waiter)
        if waiter is not None:
            waiter.has_looked()
        if not taken.messages:
            return None, None
        mine = None
        first = taken.messages[0]
        if not first.group_version and (first.name in keys or taken.home in keys):
            if taken.home[-1] == "!":
                self.site.messages.in_hand.popleft()
            mine = first
            if waiter is not None:
                waiter.has_taken()
        return mine, self._deliver()

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
        return name or key, _codec.decode_taken(body)

    def _take_messages(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port | None,
        waiter: Waiter | None,
    ) -> Taken:
        alone = port.waiting.only_by(waiter) if port and waiter else ()
        shared = port is not None and len(alone) < len(homes)
        taken = self.site.messages.take(
            homes,
            slot=port.slot if port else None,
            token=port.token if port else 0,
            leave=alone if waiter and (waiter.state != LOOKING or shared) else (),
            stay=shared,
            limit=_BATCH if keys != homes else 1,
            wanted=port.waited_names() if port else keys,
        )
        if taken.more and shared and port is not None:
            port.look_soon()
        return taken

    def _decoded(self, message: Popped) -> Received:
        return message.name, _codec.decode(message.body)

    def _take_from_inboxes(self, keys: tuple[str, ...]) -> Received | None:
        dropped: list[Entry] = []
        found = None
        with self.site.mutex:
            if self.site.messages.epoch() != self.inboxes.epoch:
                self._check_inbox_epoch()
            inboxes = self.inboxes
            now = time.monotonic_ns()
            for key in keys:
                if key[-1] == "!":
                    found = inboxes.pop_home(key, now, dropped)
                else:
                    entry = inboxes.pop(key, now, dropped)
                    found = None if entry is None else (key, entry)
                if found is not None:
                    if found[1].leaf:
                        dropped.append(found[1])
                    break
            for gone in dropped:
                if gone.leaf:
                    self._owe(gone.leaf, gone.leaf_ident)
        return None if found is None else (found[0], _codec.decode(found[1].body))

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
            entry = self.inboxes.pop_alone(waiter.homes[0], keys[0], time.monotonic_ns())
        if entry is None:
            return None
        waiter.was_served()
        return keys[0], _codec.decode(entry.body)

    # -- inboxes -------------------------------------------------------------------------

    def _deliver(self) -> list[Drop]:
        """Put drained messages where their readers look, and wake those; what had no room?

        Called with the mutex held. It can be done again: what an interrupt left in hand is put
        then, and once.
        """
        in_hand = self.site.messages.in_hand
        left: dict[str, list[str]] = {}
        drops: list[Drop] = []
        self._check_inbox_epoch()
        while in_hand:
            entry, names = in_hand[0]
            if not isinstance(entry, Entry):
                home, message = entry, names
                names = (message.name,)
                if message.group_version:
                    names = self._with_room(message.members, drops)
                entry = Entry(
                    home, message.body, message.deadline_ns, message.leaf, message.leaf_ident
                )
                in_hand[0] = entry, names  # so that it is the same one if this is done again
            if names:
                self.inboxes.put(entry, names)
                left.setdefault(entry.home, []).extend(names)
            in_hand.popleft()
        for port in self.site.ports() if left else ():
            for home, names in left.items():
                port.wake_each(names)
                port.wake(home, len(names))
        return drops

    def _deliver_after_all(self) -> None:
        """Put what an exception in the middle of a drain left in hand, and wake whoever has any."""
        drops = self._deliver()
        self.on_safety()
        if drops:
            self._report(drops)

    def _report(self, drops: Sequence[Drop]) -> None:
        """Count what found no room in an inbox, and say so."""
        self._pay(len(drops))
        call_out(self._on_drop, drops)

    def _with_room(self, members: Sequence[str], drops: list[Drop]) -> Sequence[str]:
        """Return the members whose inbox is not full, and note the others."""
        if not self.inboxes.by_home:
            return members
        depth_of = self.inboxes.depth
        served = []
        for name in members:
            depth = depth_of(name)
            if depth and depth >= (capacity := self._capacity_of(name)):
                drops.append(Drop(name, 1, depth, capacity, "channel full"))
            else:
                served.append(name)
        return served

    def _owe(self, leaf: int, ident: int) -> None:
        """Note that a message left an inbox; its leaf is told soon, with others.

        Called with the mutex held. Soon: before the next drain, after ``_OWED`` of them, or in
        the loop's next round, whichever comes first.
        """
        self._check_inbox_epoch()
        self._owed.append((leaf, ident))
        loop = asyncio._get_running_loop()
        if len(self._owed) >= _OWED or loop is None:
            self._pay()
        elif not self._pay_is_due:
            self._pay_is_due = True
            loop.call_soon(self._pay)

    def settle(self) -> bool:
        """Pay at once what is owed; whether there was anything."""
        owes = bool(self._owed)
        if owes:
            self._pay()
        return owes

    def _pay(self, dropped: int = 0) -> None:
        """Uncount what left the inboxes since the last time, in shared memory."""
        self._pay_is_due = False
        with self.site.mutex:
            owed, self._owed = self._owed, []
        if (not owed and not dropped) or not self.site.is_open:
            return
        try:
            self.site.messages.credit(owed, dropped, epoch=self.inboxes.epoch)
        except LockBusy:
            with self.site.mutex:
                self._owed += owed
            loop = asyncio._get_running_loop()
            if loop is not None:
                loop.call_later(0.01, self._pay, dropped)

    def _check_inbox_epoch(self) -> None:
        epoch = self.site.messages.epoch()
        if epoch != self.inboxes.epoch:  # flushed by somebody
            self.inboxes.epoch = epoch
            self.inboxes.clear()
            self._owed.clear()

    def on_safety(self) -> None:
        """Drop what has expired in the inboxes, and wake whoever could have what is there."""
        if not self.inboxes.by_home:
            return
        with self.site.mutex:
            for one in self.inboxes.expire(time.monotonic_ns()):
                if one.leaf:
                    self._owe(one.leaf, one.leaf_ident)
            names, homes = self.inboxes.names(), self.inboxes.homes()
        for port in self.site.ports():
            port.wake_each(names)
            for home, count in homes:
                port.wake(home, count)


def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio._get_running_loop()
    if loop is None:
        raise IPCError(
            "no asyncio event loop runs here to wait for a message on: under trio or curio, call "
            "the blocking receive in a thread (trio.to_thread.run_sync(layer.sync.receive, name)), "
            "or use asyncio"
        )
    return loop
