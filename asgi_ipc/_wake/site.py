"""A prefix as this process is attached to it: segments, ringer, loops; and how it ends.

Nothing here depends on what is sent. Order of locks, outermost first: ``mutex`` (threads
of this process, inboxes and ports), a segment's guard, the segment's lock; messages before
groups.

A site is one process's. Whoever uses it looks first whether that is this one, in the look that
also tells whether it is attached (``attached_by``). A forked child begins with letting go of all
that it has inherited, and attaches anew then; ``os.fork`` tells of a child at once, and a child
that was made in another way gets there when it first uses the site.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from .._process.mutex import new_mutex
from .._process.own import NOBODY, here, letting_go, this_process
from .._process.witness import Life, Witness
from .._shm import layout as L
from .._shm.segment import Detached, LockBusy, Segment
from .._store.membership import GroupStore
from .._store.messages import MessageStore
from ..exceptions import IPCError
from .bell import Ringer, bells_directory
from .inotify import IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVE_SELF, SharedInotify, open_inotify
from .port import HostLoop, Port, runs_here
from .removing import remove_site

__all__ = ["Site", "drop_dead_homes"]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("asgi_ipc")

_OVERHEAD_BYTES = 1024  # of one message and one channel in an otherwise empty segment
_FEWEST_TRIES = 10  # before a lock counts as not to be had
_WATCH_NS = 1_000_000_000  # how often a sender looks whether its segment was deleted

_sites: weakref.WeakSet[Site] = weakref.WeakSet()


class Site:
    """See the module docstring.

    Attributes:
        messages, groups: the stores.
        mutex: excludes the other threads of this process.
        process: number of the process whose site this is.
        attached_by: the same while it is attached, else ``NOBODY``: whatever needs the stores
            compares it with ``here[0]``, and calls ``open`` where it differs.
        closings: how often ``close`` was called.
        most_bytes: the largest encoded message that can ever fit.
        watch_at_ns: when a sender should call ``watch`` next.
    """

    def __init__(
        self,
        prefix: str,
        *,
        message_memory: int,
        group_memory: int,
        max_message_bytes: int | None,
        mode: int,
        lock_timeout: float,
        serve: Callable[[Port, str], bool],
        on_reset: Callable[[], None],
        on_safety: Callable[[], None],
    ) -> None:
        """Attach.

        Args:
            serve: see ``Port``.
            on_reset: everything this process had taken is void (closed, deleted, forked).
            on_safety: called by every loop that waits when a process has ended, and now and then.
        """
        self.prefix = prefix
        self.mode = mode
        self.lock_timeout = lock_timeout
        self.mutex = new_mutex()
        self.process = this_process()
        self.attached_by = NOBODY
        self._is_closing = False
        self.closings = 0
        self.most_bytes = 0
        self.watch_at_ns = 0
        self.max_message_bytes = max_message_bytes
        self._serve = serve
        self._on_reset = on_reset
        self._on_safety = on_safety
        self.port_by_loop: dict[int, Port] = {}  # by the id of the loop, which a port knows weakly
        self._inotify: SharedInotify | None = None  # of the loops that wait
        self.witness = Witness(bells_directory(prefix), mode)
        self._ringer = Ringer(bells_directory(prefix), self.witness, mode)
        options: dict[str, Any] = {"mode": mode, "lock_timeout": lock_timeout}
        groups = Segment(f"/{prefix}-groups", L.KIND_GROUPS, group_memory, **options)
        try:
            messages = Segment(f"/{prefix}-messages", L.KIND_MESSAGES, message_memory, **options)
        except BaseException:
            groups.close()
            raise
        groups.within, groups.news = messages, messages.news
        self._ringer.call_all = messages.touch
        self.groups = GroupStore(groups)
        self.messages = MessageStore(messages, self._ringer, self.groups.members_at)
        self.messages.on_dead_homes = self._drop_dead_homes
        self._opened()
        _sites.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it is attached just now, by this process."""
        return self.attached_by == here[0]

    def open(self) -> None:
        """Attach again, if the site was closed, inherited, or has lost its descriptors.

        Raises:
            SegmentError, StoreLocked: as for a new ``Segment``.
        """
        if self.process != here[0]:
            self.let_go()
        with self.mutex:
            self._open()

    def _open(self) -> None:
        if self.is_open:
            if any(segment.closed for segment in self._segments()):
                self.watch()
            return
        self.groups.segment.reattach()
        try:
            self.messages.segment.reattach()
        except BaseException:
            self.groups.segment.close()
            raise
        self._opened()

    def _segments(self) -> tuple[Segment, Segment]:
        return self.messages.segment, self.groups.segment

    def is_inside(self) -> bool:
        """Whether this very thread is inside a transaction: a finaliser or a handler asks."""
        return self.messages.segment.is_held_here() or self.groups.segment.is_held_here()

    def _opened(self) -> None:
        self.groups.forget()
        self.messages.forget()
        largest = self.messages.queues.heap.capacity_bytes() - _OVERHEAD_BYTES
        self.most_bytes = min(self.max_message_bytes or largest, largest)
        self.attached_by = self.process

    def close(self) -> None:
        """Detach; idempotent. Waiting loops wake up and find it closed.

        Called by a signal handler in the middle of an operation: right after that. While the
        interpreter is being taken down, nothing: the other threads have ended where they stood,
        maybe in the middle of an operation, and the kernel takes everything a moment later.
        """
        if sys.is_finalizing():
            return
        if self.process != here[0]:
            self.let_go()
        if self.is_inside():
            self.messages.segment.news.append(self.close)
            return
        with self.mutex:
            if not self.is_open and not self._is_closing:
                return
            self._is_closing = True  # to the end: after an interrupt it is done again
            self.closings += 1
            self._close_ports()
            self.attached_by = NOBODY
            self._on_reset()
            self.messages.segment.alone(self._let_go_of_others)  # who rings is in a transaction
            self.messages.segment.close()
            self.groups.segment.close()
            self._is_closing = False

    def _let_go_of_others(self) -> None:
        self._ringer.close()
        self.witness.close()

    def unlink(self) -> None:
        """Detach and remove segments and sockets from the machine.

        Raises:
            SegmentError: what stands in their places is another user's, or no file of ours; or
                the system refuses it.
        """
        self.close()
        remove_site(self.prefix)

    def watch(self) -> None:
        """Notice that segments, doors or descriptors were taken from us, say so, and follow.

        Raises:
            SegmentError: there is nothing to attach to. The site is closed then, and whoever uses
                it next tries again; what waits gets the same error.
        """
        with self.mutex:
            self._watch()

    def _watch(self) -> None:
        if not self.is_open:
            return
        self.watch_at_ns = time.monotonic_ns() + _WATCH_NS
        self._close_orphans()
        lost = [segment for segment in self._segments() if segment.is_lost()]
        gone = [segment for segment in self._segments() if segment.is_deleted()]
        gone += [segment for segment in lost if not segment.own_anew()]
        if not lost and not gone:
            if not self.witness.is_held() or any(port.has_lost_its_door() for port in self.ports()):
                self._make_new_doors()
            return
        self._say_what_is_lost(lost, gone)
        self._close_ports()
        self.messages.segment.alone(self._ringer.close)
        if not self.witness.is_held():
            self.witness.retire()
        self.groups.forget()  # before anybody compares what is remembered with the new one
        self.messages.forget()
        try:
            for segment in gone:
                segment.reattach()
        except BaseException:
            self.attached_by = NOBODY
            self.messages.segment.close()
            self.groups.segment.close()
            self._on_reset()
            raise
        self._opened()
        self._on_reset()

    def _say_what_is_lost(self, lost: list[Segment], gone: list[Segment]) -> None:
        if lost:
            logger.warning(
                "%s: somebody closed the descriptor of its lock in this process (a daemoniser, "
                "os.closerange?); opening it again. Make the channel layer after that",
                " and ".join(segment.name for segment in lost),
                extra={"event": "descriptors-lost"},
            )
        if gone:
            logger.error(
                "%s: deleted underneath this process (systemd's RemoveIPC=yes, or a clean-up "
                "of /dev/shm?): what was queued there is lost; attaching to a new segment",
                " and ".join(segment.name for segment in gone),
                extra={"event": "segment-deleted"},
            )

    def _make_new_doors(self) -> None:
        """Let every loop that waits start anew: nobody can ring it any more."""
        logger.error(
            "%s was cleaned up underneath this process: nobody could wake it since; making new "
            "sockets there",
            bells_directory(self.prefix),
            extra={"event": "doors-deleted"},
        )
        self._close_ports()
        if not self.witness.is_held():
            self.witness.retire()  # and not given back: this process lives, for who has that file

    def let_go(self) -> None:
        """In a forked child, drop all that is the parent's, then open the locks anew.

        Nothing of the parent's is unlocked, unlinked or told, and no lock of its threads is taken:
        they are replaced. What cannot be opened again stays closed; the next use says why.
        """
        with letting_go():
            self._let_go()

    def _let_go(self) -> None:
        if self.process == here[0]:
            return  # another thread was faster
        was_open, self.attached_by = self.attached_by != NOBODY, NOBODY
        self._is_closing = False
        self.mutex = new_mutex()
        ports, self.port_by_loop = self.port_by_loop, {}
        self._inotify = None
        for port in ports.values():
            port.abandon()
        self.witness.abandon()
        self._ringer.abandon()
        for segment in self._segments():
            segment.after_fork_in_child()
        self.groups.forget()
        self.messages.forget()
        self._on_reset()
        self.process = this_process()
        if was_open and not any(segment.closed for segment in self._segments()):
            self.attached_by = self.process

    # -- loops ---------------------------------------------------------------------------

    def ports(self) -> list[Port]:
        """Return the ports of all loops that have waited."""
        return list(self.port_by_loop.values())

    def port_of(self, loop: HostLoop) -> Port | None:
        """Return a loop's port if it has one that is open; called on the loop's own thread."""
        port = self.port_by_loop.get(id(loop))
        if port is None or not port.serves(loop) or not port.keeps_its_slot():
            return None
        return port

    def make_port(self, loop: HostLoop) -> Port:
        """Return a loop's port, opened if need be.

        Raises:
            LockBusy: try again.
        """
        with self.mutex:
            port = self.port_of(loop)
            if port is not None:
                return port
            if not self.is_open:
                self.open()
            self._close_orphans()
            token = self.messages.segment.alone(self._ringer.token)
            port = self.port_by_loop[id(loop)] = Port(
                loop,
                self.messages,
                self._ringer,
                bells_directory(self.prefix),
                self.mode,
                token,
                self._serve,
                self._safety,
                self._tell_others,
                self._get_inotify,
                self.is_inside,
            )
            return port

    def _get_inotify(self) -> SharedInotify | None:
        """Watch both segments, the doors and the witness file; ``None`` where that cannot be done.

        The segments by their descriptors: whoever owns their names now. Of the groups only the
        loss of the name: a process that ends lets go of both, and equal events in a row are one.
        Not IN_DELETE_SELF: it comes when the last user of a deleted file is gone, and we are one.
        """
        with self.mutex:  # so that they are not closed meanwhile
            if self._inotify is not None and self._inotify.take():
                return self._inotify
            inotify = open_inotify(
                (
                    (_link_to(self.messages.segment), IN_CLOSE_WRITE | IN_ATTRIB),
                    (_link_to(self.groups.segment), IN_ATTRIB),
                    (self.witness.path, IN_CLOSE_WRITE | IN_ATTRIB | IN_MOVE_SELF),
                    (os.path.dirname(self.witness.path), IN_MOVE_SELF),
                )
            )
            self._inotify = None if inotify is None else SharedInotify(inotify)
            if self._inotify is not None:
                self._inotify.take()
            return self._inotify

    def _tell_others(self, teller: Port) -> None:
        for port in self.ports():
            if port is not teller:
                port.hear()

    def _safety(self) -> None:
        try:
            self.watch()
        except (IPCError, OSError):
            return  # said in the log, and every receive that waits meets it by itself
        if not self.is_open:
            return
        try:
            self.messages.slots.reap_all()
        except (LockBusy, IPCError):
            pass  # the next look does it
        if self.messages.slots.dead_homes:
            self._drop_dead_homes()
        self._on_safety()

    def _close_orphans(self) -> None:
        """Give back the slots of loops that were closed without a word: nobody else does."""
        for key, port in list(self.port_by_loop.items()):
            if port.is_orphaned():
                port.close()
                self.port_by_loop.pop(key, None)

    # -- the dead ------------------------------------------------------------------------

    def have_dead_owner(self, homes: Sequence[str]) -> bool:
        """Whether the owner of one of these homes is dead: to be proven under the lock.

        Who joins has to know, so this waits for another thread that opens the witness just now.

        Raises:
            LockBusy: to be called again.
        """
        return any(
            self.witness.ask(owner, wait=True) is Life.DEAD for owner in self.messages.owners(homes)
        )

    def drop_dead_homes(self, homes: Iterable[str] = ()) -> None:
        """Drop the memberships of homes whose owner is proven dead: these, and others that wait.

        Raises:
            LockBusy: begun, perhaps, and to be called again.
        """
        drop_dead_homes(self.messages, self.groups, homes)

    def _drop_dead_homes(self) -> None:
        try:
            self.drop_dead_homes()
        except (LockBusy, IPCError):
            pass  # the next one who looks does it; what is damaged is met by whoever uses it

    def _close_ports(self) -> None:
        for port in self.ports():
            _close_on_its_loop(port)
        self.port_by_loop.clear()
        self._inotify = None  # theirs: those to come watch what is there then

    async def patiently(
        self,
        pause: Callable[[float], Awaitable[None]],
        operation: Callable[P, R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Repeat an operation whose lock was busy, letting the loop run in between.

        Raises:
            StoreLocked: not had within ``lock_timeout`` seconds and several tries: whoever was
                stopped itself for that long has not waited.
        """
        give_up = time.monotonic() + self.lock_timeout
        delay = 0.001
        tries = 0
        while tries < _FEWEST_TRIES or time.monotonic() <= give_up:
            await pause(delay)
            tries += 1
            try:
                return operation(*args, **kwargs)
            except Detached:
                self.open()
            except LockBusy:
                delay = min(delay * 2, 0.05, self.lock_timeout / _FEWEST_TRIES)
        raise self.messages.segment.locked_error()


def drop_dead_homes(messages: MessageStore, groups: GroupStore, homes: Iterable[str] = ()) -> None:
    """Drop the memberships of homes whose owner is proven dead: these, and others that wait.

    Proven, and the version of that moment read, in one hold of the lock. Whoever joins later has
    made sure before that there is no dead owner any more (``aio.group_add``), and stays. Whoever
    is killed in between leaves the owner there: the next one begins anew.
    """
    slots = messages.slots
    slots.reap_all()  # which notes all other homes of the same processes
    wanted = {*slots.dead_homes, *homes}

    def prove() -> tuple[dict[str, int], int]:
        owners = slots.owners_of_dead(wanted)
        return owners, groups.version() if owners else 0

    owners, version = messages.segment.transact(prove)
    if owners:
        groups.drop_homes(owners, version)
        messages.segment.transact(slots.disown, owners)
    slots.dead_homes.difference_update(wanted)


def _link_to(segment: Segment) -> str:
    return f"/proc/self/fd/{segment.lock_fd}"


def _close_on_its_loop(port: Port) -> None:
    """Close a port from whatever thread this is."""
    loop = port.loop()
    if loop is None or loop.is_closed() or runs_here(loop) or not loop.is_running():
        port.close()
        return
    try:
        loop.call_soon_threadsafe(port.close)
    except RuntimeError:
        port.close()  # closed between the question and the call


def _after_fork_in_child() -> None:
    for site in list(_sites):
        try:
            site.let_go()
        except Exception:
            # Python would print it and go on. Whoever uses the site next lets go again.
            logger.debug("a forked child cannot let go of %s", site.prefix, exc_info=True)


os.register_at_fork(after_in_child=_after_fork_in_child)
