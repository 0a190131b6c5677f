"""One event loop's place in the system: its slot, its bell, its door, and who looks when.

How one wait goes is the table in ``waiting``. This module rings for the waiters, looks for them,
and gives their parked bits back: if the loop had been rung, the news goes to another loop.

Where several wait for names below one process-specific home, and nobody for all of it, what
was rung for is theirs: it is drained into the inboxes when the ring is answered, for all of them.

*Nobody dies unnoticed.* A process that was rung for a message and is killed before it takes it
leaves that message beside others that sleep. The kernel closes the descriptors of whoever ends,
however it ends, and inotify tells every loop that waits (``_on_event``). Nothing of what it then
reads without the lock can still be changed by the dead: its memory is unmapped before its
descriptors are closed.

* Killed in a commit: ``LOG_N`` says so, ``rests`` is False, and the look replays the log. The
  kernel frees the dead's lock a moment after it tells us: ``LockBusy`` is tried again.
* Killed after it was rung and before it took the message, or after it took one of several and
  before it parked again: what is left is in the queue, and ``rests`` is False.
* Rung when it was dead already: the sender asks when it has committed, and rings another
  (``Slots.settle``). If it is killed before it asks, or finds the lock busy then, the event of its
  own end or the second look is for that.
* Forked behind Python's back, a child keeps the descriptor of the lock open: the news comes when
  that one ends, as the lock is free then only. A child made by ``os.fork`` gives it back at once.

Every method but ``wake`` and ``wake_each`` belongs to the loop's own thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from .._process.own import here, this_process
from .._process.witness import Life
from .._shm.segment import LockBusy
from .._store.messages import MessageStore
from ..exceptions import IPCError
from .bell import Bell, Door, Ringer, new_bell, new_random, ring
from .blocking import driving
from .inotify import SharedInotify
from .spin import Spin
from .waiting import GONE, Waiter, Waiting, passes_on, tells_others, unparks

__all__ = ["SAFETY_S", "SETTLED_S", "HostLoop", "Port", "runs_here"]

logger = logging.getLogger("asgi_ipc")

# How often a loop with waiters looks unasked, where inotify does not tell it of lost processes.
SAFETY_S = 5.0
# So many times as rarely where it does: every 30 s. What is left for that look is a message whose
# reader was rung and neither ends nor takes it: it is stopped, blocks its loop, or has closed it
# and left the receive standing.
_RARELY = 6
# A loop that has waited so long asks for inotify: one that ends sooner is spared importing ctypes
# (3 ms) and closing the descriptor (up to 16 ms, asleep). And so long after an event it looks
# a second time, for what a busy lock kept it or a sender from.
SETTLED_S = 0.25
# A busy lock is tried again after so long, then after twice that, up to the most: a holder that is
# stopped costs who waits a fiftieth of its time at last.
_RETRY_S = 0.001
_MOST_RETRY_S = 0.1
# And a door that cannot be answered for want of a descriptor, which stays readable.
_STUCK_S = 0.01
_MOST_STUCK_S = 0.25
_AGAIN_S = 0.05  # not at once: should it be no signal handler but a fault of ours, it comes again
_PATIENT_TRIES = 50  # of 2 ms each


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None: ...


class HostLoop(Protocol):
    """What a port needs of an event loop: asyncio's, or an adapter of another one's."""

    def add_reader(self, fd: Any, callback: Callable[..., object], /) -> None: ...
    def remove_reader(self, fd: Any, /) -> object: ...
    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[..., object], /, *args: Any) -> object: ...
    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...
    def create_future(self) -> asyncio.Future[Any]: ...
    def is_closed(self) -> bool: ...
    def is_running(self) -> bool: ...


def runs_here(loop: HostLoop) -> bool:
    """Whether a loop is the one that runs on this thread right now."""
    return asyncio._get_running_loop() is loop or bool(getattr(loop, "runs_here", bool)())


class _Fittings:
    """The descriptors of a port, closable without a loop."""

    def __init__(self, bell: Bell, door: Door) -> None:
        self.bell = bell
        self.door = door
        self.inotify: SharedInotify | None = None
        self.open = True
        self.process = this_process()

    def close(self) -> None:
        """Close what is open; a forked child, which has copies, removes no name.

        Can be done again, and is after an interrupt in the middle.
        """
        self.open = False
        self.door.close(unlink=here[0] == self.process)
        self.bell.close()
        inotify, self.inotify = self.inotify, None
        if inotify is not None:
            inotify.give_back()


def _close_if_idle(
    port: weakref.ref[Port], fittings: _Fittings, loop: weakref.ref[HostLoop]
) -> None:
    """Close what a loop leaves behind; at exit, not what a thread still waits with."""
    left, living = loop(), port()
    if left is None and living is not None:
        living.close()  # which gives the slot back as well
    elif left is None or not left.is_running():
        fittings.close()


class Port:
    """See the module docstring."""

    loop_token = 0  # it has no slot yet
    _is_closed = False
    _finalizer: Any = None
    _until_closed: AsyncGenerator[None, None] | None = None

    def __init__(
        self,
        loop: HostLoop,
        store: MessageStore,
        ringer: Ringer,
        directory: str,
        mode: int,
        process: int,
        serve: Callable[[Port, str], bool],
        on_safety: Callable[[], None],
        on_event: Callable[[Port], None],
        get_inotify: Callable[[], SharedInotify | None],
        is_inside: Callable[[], bool],
    ) -> None:
        """Open the door and claim a slot.

        Args:
            serve: drains a process-specific home for those who wait below it here, and wakes
                them; False if one of them has to do it.
            process: token of the process, which owns the homes.
            on_safety: called with every look that nobody asked for, before it.
            on_event: called when inotify has told of something: has the other loops hear of it.
            get_inotify: gives the one that all loops of the site watch, if there can be one.
            is_inside: whether this very thread is inside a transaction of the site.

        Raises:
            LockBusy: nothing is left behind; try again.
            TooManyLoops: no slot is free.
            SegmentPermission: the directory of doors belongs to somebody else.
        """
        self._loop = weakref.ref(loop)
        self._store = store
        self._ringer = ringer
        self.token = process
        self._serve = serve
        self._on_safety = on_safety
        self._on_event_here = on_event
        self._get_inotify: Callable[[], SharedInotify | None] | None = get_inotify
        self._is_inside = is_inside
        self.waiting = Waiting()
        self._ever: set[str] = set()  # process-specific homes this loop has received for
        self._to_withdraw: set[str] = set()  # when the lock is free again
        self.spare: list[Any] = []  # served ones that `_receive/resting` will use again
        self.spin = Spin()
        self._timer: Timer | None = None
        self._pause_s = SETTLED_S  # before the next look that nobody asked for
        self._look_is_due = False  # by a timer: the lock was busy
        self._looks_soon = False
        self._look_has_failed = False  # the last one, and it was said
        self._busy_s = _RETRY_S  # how long to wait for a busy lock, the next time
        self._stuck_s = _STUCK_S  # and for a descriptor to answer the door with
        random = new_random()
        made: list[Bell | Door] = []
        try:
            made.append(bell := new_bell())
            made.append(door := Door(directory, random, mode, bell))
            self.fittings = _Fittings(bell, door)
            self.slot, self.loop_token = store.slots.claim(random, process)
            self._settle_on(loop)
        except BaseException:  # ENOSPC: as many are watched as the user may (epoll)
            self._is_closed = True
            if self.loop_token:
                ringer.own.pop(self.loop_token, None)
                self._let_go(loop)
            else:
                for one in made:
                    one.close()
            raise

    def _settle_on(self, loop: HostLoop) -> None:
        loop.add_reader(self.fittings.bell.read_fd, self._on_ring)
        loop.add_reader(self.fittings.door.listener, self._on_door)
        self._ringer.own[self.loop_token] = self._rung_from_here
        # When the loop goes: asyncio.run() and async_to_sync() close asynchronous generators
        # before they close their loop; a loop that was just dropped is noticed by the
        # finaliser, and one that was only closed by `is_orphaned`.
        self._until_closed = until_closed = _until_closed(weakref.ref(self))
        try:
            until_closed.__anext__().send(None)
        except StopIteration:
            pass
        self._finalizer = weakref.finalize(
            loop, _close_if_idle, weakref.ref(self), self.fittings, weakref.ref(loop)
        )
        if hasattr(loop, "on_close"):  # an adapter, which knows no asynchronous generators
            loop.on_close(self.close)

    @property
    def is_open(self) -> bool:
        """Whether the port still has its slot."""
        return self.fittings.open

    def serves(self, loop: HostLoop) -> bool:
        """Whether this is the port of a loop, and open."""
        return self.fittings.open and self._loop() is loop

    def is_orphaned(self) -> bool:
        """Whether the loop was closed without telling anybody."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    def has_lost_its_door(self) -> bool:
        """Whether somebody removed the socket, so that nobody can ring any more."""
        return self.is_open and not os.path.exists(self.fittings.door.path)

    def loop(self) -> HostLoop | None:
        """Return the loop, unless it is gone."""
        return self._loop()

    # -- waiters -------------------------------------------------------------------------

    def add(self, waiter: Waiter) -> None:
        """Let somebody wait; whoever calls this calls ``remove``, whatever happens."""
        self.waiting.add(waiter)
        for home in waiter.homes:
            if home[-1] == "!":
                self._ever.add(home)
        if self._timer is None:
            loop = self._loop()
            assert loop is not None
            self._timer = loop.call_later(self._pause_s, self._safety)

    def remove(self, waiter: Waiter) -> None:
        """End a wait, doing what its state asks for.

        It can be done again, and must be, after an exception that is not from here.

        A receive that is thrown away with its closed loop ends here too: on whatever thread, and
        when the garbage collector does it, in the middle of whatever that thread does.
        """
        waiting = self.waiting
        waiting.remove(waiter)
        if self.is_orphaned():
            self.close()  # nobody will answer what its waiters were told: that is passed on
            waiter.state = GONE
            return
        left = [home for home in waiter.homes if home not in waiting.by_home]
        state = waiter.state
        if self.is_open:
            if state in unparks:
                self._withdraw(left)
            if len(left) < len(waiter.homes):  # others are still there
                if state in tells_others:
                    for key in waiter.keys:  # what it was woken for may lie in an inbox
                        waiting.wake(key, 1)
                    self.look_soon()
                elif state in passes_on and len(waiter.keys) > 1:
                    self._pass_on(waiter)
        if not waiting.by_key and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiter.state = GONE

    def _pass_on(self, waiter: Waiter) -> None:
        """Wake others for what a waiter was woken for: it may have taken something else."""
        may_have = self._store.may_have
        waiting = self.waiting
        for key in waiter.keys:
            if "!" in key or may_have(key):
                waiting.wake(key, 1)
        if any(
            home[-1] == "!" and home in waiting.by_home and may_have(home) for home in waiter.homes
        ):
            self.look_soon()

    def wake(self, key: str, count: int) -> None:
        """Wake up to ``count`` of those who wait for a name, from whatever thread."""
        if key in self.waiting.by_key:
            self._on_loop(self.waiting.wake, key, count)

    def wake_each(self, keys: Sequence[str]) -> None:
        """Wake one who waits for each of these names, from whatever thread."""
        waited = self.waiting.by_key
        here = self._loop()
        if here is None or not runs_here(here):
            keys = [key for key in keys if key in waited]
        if keys:
            self._on_loop(self.waiting.wake_each, keys)

    def _on_loop(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back on the loop: now, if this is it."""
        loop = self._loop()
        if loop is None:
            return
        if runs_here(loop):
            callback(*args)
            return
        try:
            loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            pass  # the loop was closed meanwhile, and its waiters with it

    # -- being rung ----------------------------------------------------------------------

    def _rung_from_here(self) -> bool:
        """Be rung by a sender of this process, under the lock and on any thread.

        False if the loop was closed without a word: nobody will answer.
        """
        loop = self._loop()  # held: else it might be collected here, and its bell closed with it
        if loop is None or loop.is_closed() or not self.is_open:
            return False
        if runs_here(loop):
            self.look_soon()
        else:
            ring(self.fittings.bell.ring_fd)
        return True

    def look_soon(self) -> None:
        """Look in the loop's next round, once."""
        loop = self._loop()
        if not self._looks_soon and loop is not None and self.is_open:
            loop.call_soon(self._look_as_due)
            loop.call_soon(self._look_as_due)  # for the first may be interrupted as it begins
            self._looks_soon = True

    def _look_as_due(self) -> None:
        try:
            if self._looks_soon:
                self._looks_soon = False
                self._look()
        except BaseException:
            self._look_after_all()
            raise

    def _on_ring(self) -> None:
        try:
            if self.is_open:
                self.fittings.bell.drain()
                self._look()
        except BaseException:
            self._look_after_all()
            raise

    def _on_door(self) -> None:
        try:
            if self.is_open and self.fittings.door.answer():
                self._rest_the_door()
                self._look()
        except BaseException:
            self._look_after_all()
            raise

    def _rest_the_door(self) -> None:
        """Stop watching the door for a while if there is no descriptor to answer it with."""
        door, loop = self.fittings.door, self._loop()
        if not door.is_stuck:
            self._stuck_s = _STUCK_S
        elif loop is not None:
            loop.remove_reader(door.listener)
            loop.call_later(self._stuck_s, self._watch_door_again)
            self._stuck_s = min(2 * self._stuck_s, _MOST_STUCK_S)

    def _watch_door_again(self) -> None:
        loop = self._loop()
        if self.is_open and loop is not None:
            loop.add_reader(self.fittings.door.listener, self._on_door)

    def _look_after_all(self) -> None:
        """Look a little later: a signal handler raised before the ring was answered."""
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.call_later(_AGAIN_S, self._look)

    def _look(self, everything: bool = False) -> None:
        """Find out whom to wake. SYNC POINT "wake": under the lock, or by waking the only one."""
        self._look_is_due = False
        if not self.is_open or not self.keeps_its_slot():
            return
        homes = self.waiting.by_home
        if not everything:
            only = self.waiting.only_one()
            if only is not None:
                only.ring()
                return
            if len(homes) == 1:
                (home,) = homes
                if home[-1] == "!":
                    self._wake_in(home, 1)
                    return
        try:
            waiting = self._store.slots.look(
                self.slot, self.token, list(homes), hinted=not everything
            )
        except LockBusy:
            self._look_later(everything)
            return
        except IPCError:
            if not self._look_has_failed:
                logger.exception(
                    "a waiting event loop cannot look at its channels, and tries it again",
                    extra={"event": "look-failed"},
                )
            self._look_has_failed = True
            self._look_later(everything)
            return
        self._look_has_failed = False
        self._busy_s = _RETRY_S
        for home, depth in waiting:
            self._wake_in(home, depth)

    def _look_later(self, everything: bool) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed() and not self._look_is_due:
            self._look_is_due = True
            loop.call_later(self._wait_for_lock_s(), self._look, everything)

    def _wait_for_lock_s(self) -> float:
        """Return how long to wait for a busy lock, and be more patient the next time."""
        wait_s, self._busy_s = self._busy_s, min(2 * self._busy_s, _MOST_RETRY_S)
        return wait_s

    def keeps_its_slot(self) -> bool:
        """Whether the slot is still the loop's; closed if not: who waits starts anew.

        On the loop's own thread. Somebody may have taken this process for dead.
        """
        if self._store.slots.owns(self.slot, self.loop_token):
            return True
        if self._ringer.ask(self.token) is Life.ALIVE:  # else the layer was closed meanwhile
            logger.error(
                "slot %d of %s was freed although this process lives: something here has closed "
                "the file that says so (a daemoniser that closes all descriptors?); taking another",
                self.slot,
                self._store.segment.name,
                extra={"event": "slot-lost"},
            )
        self.close()
        return False

    def _wake_in(self, home: str, depth: int) -> None:
        """Wake as many as there are messages; or drain a process-specific home for those below.

        Not if somebody waits for all of the home: each of those takes one, and leaves the others
        to whoever else reads it.
        """
        if home[-1] != "!":
            self.waiting.wake(home, depth)
            return
        below = home not in self.waiting.by_key and not self.waiting.is_alone(home)
        if not (below and self._serve(self, home)):
            self.waiting.ring(home)

    def _withdraw(self, homes: list[str]) -> None:
        if not homes:
            return
        # A private loop stands still after this: it may take its time, nobody else is held up.
        tries = _PATIENT_TRIES if driving.is_driving else 1
        for _ in range(0 if self._is_inside() else tries):
            try:
                self._store.slots.withdraw(self.slot, homes)
            except LockBusy:
                continue
            self._to_withdraw.difference_update(homes)
            self._busy_s = _RETRY_S
            return
        self._to_withdraw.update(homes)
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.call_later(self._wait_for_lock_s(), self._withdraw_again)

    def _withdraw_again(self) -> None:
        if self.is_open:
            self._to_withdraw.difference_update(self.waiting.by_home)
            self._withdraw(list(self._to_withdraw))

    # -- what nobody rings for -----------------------------------------------------------

    def _safety(self) -> None:
        """Look because it is time to."""
        self._timer = None
        loop = self._loop()
        if not self.waiting.by_key or loop is None or not self.is_open:
            return
        self._look_again_after(SAFETY_S)  # whatever happens now
        was_told = self.fittings.inotify is not None
        begins = not was_told and self._begins_to_be_told(loop)
        rested = self._look_unasked()
        if begins:
            self._look_again_after(SETTLED_S)  # as after an event, which it may have missed
        elif was_told and rested:  # else it may not have been able to park: the memory is full
            self._look_again_after(_RARELY * SAFETY_S)

    def _begins_to_be_told(self, loop: HostLoop) -> bool:
        """Have inotify tell of what happens from now on, if that can be done: asked for once."""
        get_inotify, self._get_inotify = self._get_inotify, None
        inotify = get_inotify() if get_inotify is not None else None
        if inotify is None:
            return False
        try:
            loop.add_reader(inotify.fd, self._on_event)
        except BaseException:
            inotify.give_back()
            raise
        self.fittings.inotify = inotify
        return True

    def _on_event(self) -> None:
        """Look: a process let go of the segment, a name was removed, or a sender could not ring.

        All loops of the process wake up for it. The first one takes the event, and has those hear
        of it whom it concerns. Also where nobody waits just now: who waits next relies on it.
        """
        inotify = self.fittings.inotify
        if self.is_open and inotify is not None and inotify.drain():
            self._look_again_after(SETTLED_S)
            self._look_unasked()
            self._on_event_here(self)

    def hear(self) -> None:
        """Look, if a glance says that there is need, from whatever thread: another was told."""
        loop = self._loop()
        if loop is None or self._store.slots.rests(self.slot, tuple(self.waiting.by_home)):
            return
        try:
            loop.call_soon_threadsafe(self._look_unasked)
        except RuntimeError:
            pass  # the loop was closed meanwhile, and its waiters with it

    def _look_again_after(self, pause_s: float) -> None:
        self._pause_s = pause_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = self._loop()
        if self.waiting.by_key and self.is_open and loop is not None:
            self._timer = loop.call_later(pause_s, self._safety)

    def _look_unasked(self) -> bool:
        """Look, unless a glance without the lock says that there is no need: then True."""
        if self.is_open:
            self._on_safety()  # which closes this port if it is to be made anew
        if not self.is_open or not self.keeps_its_slot():
            return False
        rests = self._store.slots.rests(self.slot, self.waiting.by_home)
        if not rests:
            self._look(everything=True)
        return rests

    # -- closing -------------------------------------------------------------------------

    def close(self) -> None:
        """Give the slot back and wake everybody, who will find the port closed. Idempotent.

        Called in the middle of a transaction, by a finaliser say: right after that. While the
        interpreter is being taken down, nothing: see ``Site.close``.
        """
        if self._is_closed or sys.is_finalizing():
            return
        if here[0] != self.fittings.process:
            self.abandon()
            return
        if self._is_inside():
            self._store.segment.news.append(self.close)
            return
        loop = self._loop()
        self._ringer.own.pop(self.loop_token, None)
        self.spare.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_go(loop)
        if self._finalizer is not None:
            self._finalizer.detach()
        self._is_closed = True  # until here it is done again, after an interrupt
        self._end_generator()
        if loop is not None and not loop.is_closed():
            self.waiting.wake_all()

    def _let_go(self, loop: HostLoop | None) -> None:
        """Give descriptors and slot back."""
        self._store.segment.alone(partial(self._close_fittings, loop))  # who rings is inside
        try:
            if not self._store.segment.closed:
                homes = [*self.waiting.by_home, *self._ever, *self._to_withdraw]
                self._store.slots.release(self.slot, self.loop_token, homes)
        except (LockBusy, IPCError):
            pass  # whoever of this process rings it next reaps the slot

    def _close_fittings(self, loop: HostLoop | None) -> None:
        if self.fittings.open and loop is not None and not loop.is_closed():
            loop.remove_reader(self.fittings.bell.read_fd)
            loop.remove_reader(self.fittings.door.listener)
            if self.fittings.inotify is not None:
                loop.remove_reader(self.fittings.inotify.fd)
        self.fittings.close()

    def abandon(self) -> None:
        """Let go in a forked child: the loop, the slot and the door are the parent's."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self.fittings.close()
        self._end_generator()

    def _end_generator(self) -> None:
        """End it here: dropped, its loop would begin a task for that, maybe its last one."""
        if self._until_closed is not None:
            try:
                self._until_closed.aclose().send(None)
            except (StopIteration, RuntimeError):
                pass  # RuntimeError: its loop is closing it just now, and this port for that


async def _until_closed(port: weakref.ref[Port]) -> AsyncGenerator[None, None]:
    """Close the port when the loop closes its asynchronous generators."""
    try:
        yield
    finally:
        here = port()
        if here is not None:
            here.close()
