"""A prefix as this process is attached to it: segments, ringer, loops; and how it ends.

Nothing here depends on what is sent. Order of locks, outermost first: ``mutex`` (threads
of this process, inboxes and ports), a segment's guard, the segment's lock; messages before
groups.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from . import _layout as L
from ._bell import Anchor, Ringer, bells_directory, make_directory
from ._inotify import IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVE_SELF, Inotify, open_inotify
from ._membership import GroupStore
from ._port import HostLoop, Port, runs_here
from ._removing import remove_site
from ._segment import Detached, LockBusy, Segment
from ._store import MessageStore
from .exceptions import IPCError

__all__ = ["Site"]

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
        is_open: attached just now; whatever needs the stores calls ``open`` otherwise.
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
        self.mutex = threading.RLock()
        self.is_open = False
        self.closings = 0
        self.most_bytes = 0
        self.watch_at_ns = 0
        self.max_message_bytes = max_message_bytes
        self._serve = serve
        self._on_reset = on_reset
        self._on_safety = on_safety
        self.port_by_loop: dict[int, Port] = {}  # by the id of the loop, which a port knows weakly
        self._anchor: Anchor | None = None  # made with the first port
        self._ringer = Ringer(bells_directory(prefix))
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
        self.messages = MessageStore(messages, self._ringer.ring, self.groups.members_at)
        self._opened()
        _sites.add(self)

    def open(self) -> None:
        """Attach again, if the site was closed."""
        with self.mutex:
            if self.is_open:
                return
            self.groups.segment.reattach()
            try:
                self.messages.segment.reattach()
            except BaseException:
                self.groups.segment.close()
                raise
            self._opened()

    def _opened(self) -> None:
        self.groups.forget()
        self.messages.forget()
        largest = self.messages.queues.heap.capacity_bytes() - _OVERHEAD_BYTES
        self.most_bytes = min(self.max_message_bytes or largest, largest)
        self.is_open = True

    def close(self) -> None:
        """Detach; idempotent. Waiting loops wake up and find it closed."""
        with self.mutex:
            if not self.is_open:
                return
            self.closings += 1
            self._close_ports()
            self.is_open = False
            self._on_reset()
            self._close_anchor()
            with self.messages.segment.guard:  # whoever rings holds it
                self._ringer.close()
            self.messages.segment.close()
            self.groups.segment.close()

    def unlink(self) -> None:
        """Detach and remove segments and sockets from the machine.

        Raises:
            SegmentError: what stands in their places is another user's, or no file of ours.
        """
        self.close()
        remove_site(self.prefix)

    def watch(self) -> None:
        """Notice that somebody removed segments or doors underneath us, say so, and follow.

        Raises:
            SegmentError, OSError: there is nothing to attach to. The site is closed then, and
                whoever uses it next tries again; what waits gets the same error.
        """
        with self.mutex:
            if not self.is_open:
                return
            self.watch_at_ns = time.monotonic_ns() + _WATCH_NS
            deleted = [
                segment
                for segment in (self.messages.segment, self.groups.segment)
                if segment.is_deleted()
            ]
            if not deleted:
                if any(port.has_lost_its_door() for port in self.ports()):
                    self._make_new_doors()
                return
            logger.error(
                "%s: deleted underneath this process (systemd's RemoveIPC=yes, or a clean-up "
                "of /dev/shm?): what was queued there is lost; attaching to a new segment",
                " and ".join(segment.name for segment in deleted),
                extra={"event": "segment-deleted"},
            )
            self._close_ports()
            self._close_anchor()
            with self.messages.segment.guard:
                self._ringer.close()
            self.groups.forget()  # before anybody compares what is remembered with the new one
            self.messages.forget()
            try:
                for segment in deleted:
                    segment.reattach()
            except BaseException:
                self.is_open = False
                self.messages.segment.close()
                self.groups.segment.close()
                self._on_reset()
                raise
            self._opened()
            self._on_reset()

    def _make_new_doors(self) -> None:
        """Let every loop that waits start anew: nobody can ring it any more."""
        logger.error(
            "%s was cleaned up underneath this process: nobody could wake it since; making new "
            "sockets there",
            bells_directory(self.prefix),
            extra={"event": "doors-deleted"},
        )
        self._close_ports()
        self._close_anchor()

    def after_fork_in_child(self) -> None:
        """Make everything the child's own that it would otherwise share with its parent."""
        self.mutex = threading.RLock()
        for port in self.port_by_loop.values():
            port.abandon()
        self.port_by_loop = {}
        self._close_anchor()
        self._ringer.own.clear()
        self._ringer.close()
        if self.is_open:
            self.messages.segment.after_fork_in_child()
            self.groups.segment.after_fork_in_child()
        self._on_reset()

    # -- loops ---------------------------------------------------------------------------

    def ports(self) -> list[Port]:
        """Return the ports of all loops that have waited."""
        return list(self.port_by_loop.values())

    def port_of(self, loop: HostLoop) -> Port | None:
        """Return a loop's port if it has one that is open."""
        port = self.port_by_loop.get(id(loop))
        return port if port is not None and port.serves(loop) else None

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
            for key, other in list(self.port_by_loop.items()):
                if other.is_orphaned():
                    other.close()
                    self.port_by_loop.pop(key, None)
            directory = bells_directory(self.prefix)
            make_directory(directory, self.mode)
            if self._anchor is None:
                self._anchor = Anchor(directory, self.mode)
            port = self.port_by_loop[id(loop)] = Port(
                loop,
                self.messages,
                self._ringer,
                directory,
                self.mode,
                self._anchor.token,
                self._serve,
                self._safety,
                self._new_inotify,
            )
            return port

    def _new_inotify(self, door: str) -> Inotify | None:
        """Watch both segments, a door and where it is; ``None`` where that cannot be done.

        The segments by their descriptors: whoever owns their names now. Of the groups only the
        loss of the name: a process that ends lets go of both, and equal events in a row are one.
        Not IN_DELETE_SELF: it comes when the last user of a deleted file is gone, and we are one.
        """
        with self.mutex:  # so that they are not closed meanwhile
            return open_inotify(
                (
                    (_link_to(self.messages.segment), IN_CLOSE_WRITE | IN_ATTRIB),
                    (_link_to(self.groups.segment), IN_ATTRIB),
                    (door, IN_ATTRIB | IN_MOVE_SELF),
                    (os.path.dirname(door), IN_MOVE_SELF),
                )
            )

    def _safety(self) -> None:
        try:
            self.watch()
        except (IPCError, OSError):
            return  # said in the log, and every receive that waits meets it by itself
        self._on_safety()

    def _close_anchor(self) -> None:
        anchor, self._anchor = self._anchor, None
        if anchor is not None:
            anchor.close()

    def _close_ports(self) -> None:
        for port in self.ports():
            _close_on_its_loop(port)
        self.port_by_loop.clear()

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
        site.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
