"""The asyncio face: ``AsyncIPCChannelLayer``.

Nothing is bound to an event loop at construction. ``send``, ``group_send`` and their like
do not suspend in the ordinary case, so they work from any thread and any loop; each loop
that waits for messages gets a slot and a bell of its own, and gives them back when it ends.

A receive may be cancelled at any point: it never holds a message that it has not returned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import string
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

from . import _codec, exceptions
from . import _layout as L
from ._bell import Ringer, bells_directory
from ._inbox import Entry, Inboxes
from ._membership import GroupStore
from ._port import Port, Waiter
from ._queues import Popped
from ._segment import LockBusy, Segment
from ._store import MessageStore, Taken
from .capacity import ChannelCapacity, check_capacity, compile_capacities
from .exceptions import ChannelFull, InvalidName, LayerClosed, MessageTooLarge
from .names import check_channel, check_group, home_of

__all__ = ["AsyncIPCChannelLayer"]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("asgi_ipc")

DEFAULT_MESSAGE_MEMORY = 100 * 1024 * 1024
DEFAULT_GROUP_MEMORY = 20 * 1024 * 1024
_OVERHEAD_BYTES = 1024  # of one message and one channel in an otherwise empty segment
_BATCH = 64  # messages taken from a process-specific home in one hold of the lock
_OWED = 32
_NAME_CACHE = 20_000
_WATCH_NS = 1_000_000_000  # how often a sender looks whether its segment was deleted
_WARN_EVERY_S = 10.0
_RANDOM_ALPHABET = string.ascii_letters + string.digits
_PREFIX_LIMIT = 60  # of the socket's path, 108 bytes in all

_layers: weakref.WeakSet[AsyncIPCChannelLayer] = weakref.WeakSet()


class AsyncIPCChannelLayer:
    """A channel layer over POSIX shared memory, for asyncio.

    Every process that gives the same ``prefix`` shares the same messages and groups. One
    object may be used by any number of threads and event loops at once, and from before a
    fork on both sides of it.
    """

    extensions: ClassVar[Sequence[str]] = ("groups", "flush", "statistics", "async", "asyncio")
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge
    capacity_per_name: ClassVar[bool] = True

    def __init__(
        self,
        prefix: str = "asgi",
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: ChannelCapacity | None = None,
        message_memory: int = DEFAULT_MESSAGE_MEMORY,
        group_memory: int = DEFAULT_GROUP_MEMORY,
        *,
        max_message_bytes: int | None = None,
        mode: int = 0o600,
        lock_timeout: float = 10.0,
        block_timeout: float | None = None,
    ) -> None:
        """Attach to the segments of ``prefix``; create them if there are none.

        Args:
            prefix: names the site; letters, digits, ``-``, ``_`` and ``.``, at most 60.
            expiry: seconds after which an unread message is dropped.
            group_expiry: seconds a membership lasts after the latest ``group_add``.
            capacity: messages a channel may hold before ``send`` raises ``ChannelFull``.
            channel_capacity: ``{glob or compiled regex: capacity}``, the first match wins.
            message_memory: size of the messages segment in bytes, used as needed. The
                creator's size holds for all.
            group_memory: the same for the groups segment.
            max_message_bytes: largest encoded message; ``None``: what the memory can hold.
            mode: permission bits of segments and sockets.
            lock_timeout: seconds to wait for a lock before ``StoreLocked``.
            block_timeout: seconds after which a blocking ``receive_async`` returns
                ``(None, None)``; ``None``: never.

        Raises:
            SegmentError: see ``exceptions``; each names what is wrong and the remedy.
        """
        if not isinstance(prefix, str) or not 1 <= len(prefix) <= _PREFIX_LIMIT:
            raise InvalidName(
                f"prefix must be a str of 1 to {_PREFIX_LIMIT} characters: {prefix!r}"
            )
        try:
            check_group(prefix)
        except InvalidName as exc:
            raise InvalidName(f"prefix {prefix!r} is not valid: {exc}") from None
        for what, size in (("message_memory", message_memory), ("group_memory", group_memory)):
            if size < L.MIN_SEGMENT_BYTES:
                raise ValueError(f"{what} must be at least {L.MIN_SEGMENT_BYTES} bytes, not {size}")
        self.prefix = prefix
        self.expiry = _positive(expiry, "expiry")
        self._expiry_ns = int(expiry * 1_000_000_000)
        self.group_expiry = _positive(group_expiry, "group_expiry")
        self.capacity = check_capacity(capacity, "capacity")
        self.channel_capacity = compile_capacities(channel_capacity)
        self.message_memory = int(message_memory)
        self.group_memory = int(group_memory)
        self.max_message_bytes = max_message_bytes
        self.mode = mode
        self.lock_timeout = _positive(lock_timeout, "lock_timeout")
        self.block_timeout = block_timeout
        self._mutex = threading.RLock()
        self._names: dict[str, tuple[str, str, int]] = {}
        self._ports: dict[int, Port] = {}  # by the id of the loop, which a port knows weakly
        self._process_parts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, str] = (
            weakref.WeakKeyDictionary()
        )
        self._process_part = _random(12)
        self._inboxes = Inboxes()
        self._inbox_epoch = 0
        self._owed: list[tuple[int, int]] = []
        self._pay_is_due = False
        self._turn = 0
        self._watch_at_ns = 0
        self._warned: dict[str, tuple[float, int]] = {}
        self._rates: dict[str | None, tuple[float, dict[str, int]]] = {}
        self._ringer = Ringer(bells_directory(prefix))
        self._messages: MessageStore = None  # type: ignore[assignment]  # until first opened
        self._groups: GroupStore
        self._open = False
        self._open_segments()
        _layers.add(self)

    # -- life ----------------------------------------------------------------------------

    def _open_segments(self) -> None:
        with self._mutex:
            if self._open:
                return
            if self._messages is not None:
                self._groups.segment.reattach()
                try:
                    self._messages.segment.reattach()
                except BaseException:
                    self._groups.segment.close()
                    raise
                self._groups.forget()
                self._messages.forget()
            else:
                self._make_stores()
            messages = self._messages.segment
            self._inbox_epoch = self._messages.epoch()
            largest = messages.size_bytes - 8 * messages.heap_start - _OVERHEAD_BYTES
            self._most_bytes = min(self.max_message_bytes or largest, largest)
            self._open = True

    def _make_stores(self) -> None:
        options: dict[str, Any] = {"mode": self.mode, "lock_timeout": self.lock_timeout}
        groups = Segment(f"/{self.prefix}-groups", L.KIND_GROUPS, self.group_memory, **options)
        try:
            messages = Segment(
                f"/{self.prefix}-messages", L.KIND_MESSAGES, self.message_memory, **options
            )
        except BaseException:
            groups.close()
            raise
        self._groups = GroupStore(groups)
        self._messages = MessageStore(messages, self._ringer.ring, self._groups.members_at)

    def _attached(self) -> MessageStore:
        """Return the store, attached again if the layer was closed."""
        if not self._open:
            self._open_segments()
        return self._messages

    async def close(self) -> None:
        """Detach from shared memory; waiting receives raise ``LayerClosed``.

        Idempotent; the messages stay, and the layer attaches again when it is next used.
        """
        self.close_now()

    def close_now(self) -> None:
        """Do what ``close`` does, without a loop."""
        with self._mutex:
            if not self._open:
                return
            self._close_ports()
            self._open = False
            self._inboxes.clear()
            with self._messages.segment.guard:  # whoever rings holds it
                self._ringer.close()
            self._messages.segment.close()
            self._groups.segment.close()

    def _close_ports(self) -> None:
        for port in list(self._ports.values()):
            _on_its_loop(port)
        self._ports.clear()

    def unlink(self) -> None:
        """Remove the segments and sockets of this prefix from the machine, and detach.

        For tests and for taking a site down: processes that are still attached keep what
        they have, but no new process finds them.
        """
        self.close_now()
        for name in ("messages", "groups"):
            Segment.unlink_name(f"/{self.prefix}-{name}")
        directory = bells_directory(self.prefix)
        try:
            for name in os.listdir(directory):
                os.unlink(os.path.join(directory, name))
            os.rmdir(directory)
        except OSError:
            pass  # ENOENT: nobody ever waited; ENOTEMPTY: somebody is just starting to

    async def __aenter__(self) -> Self:
        """Return the layer itself."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the layer."""
        await self.close()

    def _after_fork_in_child(self) -> None:
        self._mutex = threading.RLock()
        for port in self._ports.values():
            port.abandon()
        self._ports = {}
        self._process_parts = weakref.WeakKeyDictionary()
        self._process_part = _random(12)
        self._inboxes = Inboxes()
        self._owed = []
        self._ringer.own.clear()
        self._ringer.close()
        if self._open:
            self._messages.segment.after_fork_in_child()
            self._groups.segment.after_fork_in_child()

    def _watch(self) -> None:
        """Notice that somebody removed the segments underneath us, say so, and follow."""
        with self._mutex:
            if not self._open:
                return
            self._watch_at_ns = time.monotonic_ns() + _WATCH_NS
            deleted = [
                segment
                for segment in (self._messages.segment, self._groups.segment)
                if segment.is_deleted()
            ]
            if not deleted:
                return
            logger.error(
                "%s was deleted underneath this process (systemd's RemoveIPC=yes, or a clean-up "
                "of /dev/shm?): what was queued there is lost; attaching to a new segment",
                " and ".join(segment.name for segment in deleted),
            )
            self._close_ports()
            self._inboxes.clear()
            with self._messages.segment.guard:
                self._ringer.close()
            for segment in deleted:
                segment.reattach()
            self._messages.forget()
            self._groups.forget()
            self._inbox_epoch = self._messages.epoch()

    async def pause(self, seconds: float) -> None:
        """Let others run for a while."""
        await asyncio.sleep(seconds)

    async def _patiently(
        self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Repeat an operation whose lock was busy, letting the loop run in between."""
        give_up = time.monotonic() + self.lock_timeout
        delay = 0.001
        while True:
            await self.pause(delay)
            if not self._open:
                self._open_segments()
            try:
                return operation(*args, **kwargs)
            except LockBusy:
                if time.monotonic() > give_up:
                    raise self._messages.segment.locked_error() from None
            delay = min(delay * 2, 0.05)

    # -- sending -------------------------------------------------------------------------

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Queue a message; it is neither kept nor changed.

        Suspends only while another process holds the lock for milliseconds. When cancelled
        then, nothing was sent.

        Raises:
            ChannelFull: the channel has ``capacity`` messages, or the memory is full.
            MessageTooLarge: it can never fit.
            InvalidName: (``TypeError``) the channel's name.
            InvalidMessage: (``AssertionError``) not a dict, or a reserved key.
            UnserialisableValue: (``TypeError``) a value inside, named by its path.
            StoreLocked: the lock could not be had within ``lock_timeout``.
        """
        name, home, capacity = self._names.get(channel) or self._learn(channel)
        body = _codec.encode(message)
        store = self._messages if self._open else self._attached()
        if len(body) > self._most_bytes:
            raise self._too_large(len(body))
        if time.monotonic_ns() > self._watch_at_ns:
            self._watch()
        try:
            store.send(name, home, body, capacity, self._expiry_ns, self.capacity_per_name)
        except LockBusy:
            await self._patiently(
                store.send, name, home, body, capacity, self._expiry_ns, self.capacity_per_name
            )

    def _learn(self, channel: str) -> tuple[str, str, int]:
        """Check a channel's name once; remember it, its home and its capacity.

        The home of an ordinary channel is the same object as its name.
        """
        name = str(check_channel(channel))
        home = home_of(name)
        counted = name if self.capacity_per_name else home
        if len(self._names) >= _NAME_CACHE:
            self._names.clear()
        known = self._names[name] = (name, home, self.get_capacity(counted))
        return known

    def get_capacity(self, channel: str) -> int:
        """Return how many messages a channel may hold."""
        for pattern, capacity in self.channel_capacity:
            if pattern.match(channel):
                return capacity
        return self.capacity

    def _too_large(self, size: int) -> exceptions.MessageTooLarge:
        limit = self._most_bytes
        remedy = "max_message_bytes" if limit == self.max_message_bytes else "message_memory"
        return exceptions.MessageTooLarge(
            f"message of {size} bytes is larger than the {limit} bytes that fit: raise {remedy} "
            "or send it in parts",
            message_bytes=size,
            limit_bytes=limit,
        )

    # -- receiving -----------------------------------------------------------------------

    async def receive_async(
        self, channels: Iterable[str] | None, block: bool = True
    ) -> tuple[str, dict[str, Any]] | tuple[None, None]:
        """Return ``(channel, message)`` from whichever of the channels has one.

        Args:
            channels: names; ``a!`` stands for every channel below it, ``a!b`` for that one.
            block: wait for a message, at most ``block_timeout`` seconds; otherwise return
                ``(None, None)`` if there is none now.

        When cancelled, no message is lost and no waiter stays behind.

        Raises:
            InvalidName: (``TypeError``) one of the names.
            LayerClosed: the layer was closed while this was waiting.
        """
        keys = self._checked(channels)
        deadline = None
        if block and self.block_timeout is not None:
            deadline = time.monotonic() + self.block_timeout
        got = await self.receive_keys(keys, block, deadline)
        return got or (None, None)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of one channel, waiting for ever: Channels 4's form.

        Raises:
            InvalidName: (``TypeError``) the name.
            LayerClosed: the layer was closed while this was waiting.
        """
        name, home, _ = self._names.get(channel) or self._learn(channel)
        if self._open:
            if name is home:
                body = self._messages.take_one(name)
                message = None if body is None else _codec.decode(body)
            else:
                message = self._take_named(name, home)
            if message is not None:
                return message
        got = await self.receive_keys((name,), True, None)
        assert got is not None
        return got[1]

    def _take_named(self, name: str, home: str) -> dict[str, Any] | None:
        """Take the next message of a process-specific channel, in the ordinary cases."""
        with self._mutex:
            if self._inboxes.depth(name):
                got = self._take_from_inboxes((name,))
                if got is not None:
                    return got[1]
            body = self._messages.take_one(home, name)
        return None if body is None else _codec.decode(body)

    def _checked(self, channels: Iterable[str] | None) -> tuple[str, ...]:
        names = self._names
        return tuple(
            dict.fromkeys([(names.get(name) or self._learn(name))[0] for name in channels or ()])
        )

    async def receive_keys(
        self, keys: tuple[str, ...], block: bool, deadline: float | None
    ) -> tuple[str, dict[str, Any]] | None:
        """Do what both receives do, for names that were checked; ``None`` if nothing came."""
        if not self._open:
            self._open_segments()
        homes = keys
        if len(keys) == 1 and "!" not in keys[0]:
            body = self._messages.take_one(keys[0])
            if body is not None:
                return keys[0], _codec.decode(body)
            ready = self._messages.may_have(keys[0])
        else:
            homes = tuple(dict.fromkeys(home_of(key) for key in keys))
            ready = self._seems_ready(homes)
        if not block or ready:
            try:
                got = self._take(keys, homes)
            except LockBusy:
                got = await self._patiently(self._take, keys, homes)
            if got is not None or not block:
                return got
        loop = asyncio.get_running_loop()
        waiter = Waiter(keys, homes)
        while True:
            port = self._ports.get(id(loop))
            if port is None or not port.is_open or port.loop() is not loop:
                port = await self._open_port(loop)
            took = False
            port.add(waiter)
            try:
                while port.is_open:
                    if not self._parks_at_once(homes, port, waiter):
                        try:
                            got = self._take(keys, homes, port, waiter)
                        except LockBusy:
                            got = await self._patiently(self._take, keys, homes, port, waiter)
                        if got is not None:
                            took = not waiter.found_in_inbox
                            return got
                    waiter.parked = True
                    waiter.was_woken = False
                    # No await since the look above: every wake from here on finds the future.
                    waiter.future = loop.create_future()
                    if not await self._sleep(loop, waiter, deadline):
                        return None
            finally:
                port.remove(waiter, got=took)
            if not self._open:
                raise LayerClosed(f"the channel layer {self.prefix!r} was closed during a receive")

    async def _sleep(
        self, loop: asyncio.AbstractEventLoop, waiter: Waiter, deadline: float | None
    ) -> bool:
        """Wait until woken; False when the time is over and nothing came."""
        future = waiter.future
        assert future is not None
        if deadline is None:
            try:
                await future
            finally:
                waiter.future = None
            return True
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), waiter.time_is_over)
        try:
            await future
        finally:
            waiter.future = None
            timer.cancel()
        return not waiter.is_late

    def _parks_at_once(self, homes: tuple[str, ...], port: Port, waiter: Waiter) -> bool:
        """Whether a first look could be spared: one home, and it is empty."""
        return (
            not waiter.parked
            and len(homes) == 1
            and not self._inboxes.count
            and self._messages.slots.park_one(homes[0], port.slot, port.token)
        )

    def _seems_ready(self, homes: tuple[str, ...]) -> bool:
        if self._inboxes.count:
            return True
        may_have = self._messages.may_have
        return any(may_have(home) for home in homes)

    async def _open_port(self, loop: asyncio.AbstractEventLoop) -> Port:
        for key, other in list(self._ports.items()):
            if other.is_orphaned():
                other.close()
                self._ports.pop(key, None)
        while True:
            self._attached()
            try:
                return self._new_port(loop)
            except LockBusy:
                return await self._patiently(self._new_port, loop)

    def _new_port(self, loop: asyncio.AbstractEventLoop) -> Port:
        with self._mutex:
            port = self._ports.get(id(loop))
            if port is None or not port.is_open or port.loop() is not loop:
                self._attached()
                port = self._ports[id(loop)] = Port(
                    loop,
                    self._messages,
                    self._ringer,
                    bells_directory(self.prefix),
                    self.mode,
                    self._on_safety,
                )
            return port

    def _take(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port | None = None,
        waiter: Waiter | None = None,
    ) -> tuple[str, dict[str, Any]] | None:
        """Return one message for ``keys`` if there is one; with a port, park if there is none."""
        if len(homes) > 1:  # a busy channel must not starve a quiet one
            self._turn += 1
            turn = self._turn % len(homes)
            homes = homes[turn:] + homes[:turn]
        elif port is not None and waiter is not None and waiter.parked:
            got = self._take_after_ring(keys, homes[0], port)
            if got is not None:
                return got
        if self._owed:
            self._pay()
        if all(home[-1] != "!" for home in homes):
            taken = self._take_messages(keys, homes, port, waiter)
            return self._decoded(taken.messages[0]) if taken.messages else None
        with self._mutex:  # so that what two loops drain arrives in the order it was drained
            while True:
                if self._inboxes.count:
                    got = self._take_from_inboxes(keys)
                    if got is not None:
                        if waiter is not None:
                            waiter.found_in_inbox = True
                        return got
                taken = self._take_messages(keys, homes, port, waiter)
                if not taken.messages:
                    return None
                first = taken.messages[0]
                mine = not first.group_version and (first.name in keys or taken.home in keys)
                rest = taken.messages[1:] if mine else taken.messages
                if rest:
                    self._deliver(taken.home, rest)
                if mine:
                    if first.leaf:
                        self._owe(first.leaf, first.leaf_ident)
                    return self._decoded(first)

    def _take_after_ring(
        self, keys: tuple[str, ...], home: str, port: Port
    ) -> tuple[str, dict[str, Any]] | None:
        """Take what one waiter, alone on its home, was most likely rung for."""
        if not port.is_alone(home):
            return None
        if home[-1] != "!":
            body = self._messages.take_one(home)
            return None if body is None else (home, _codec.decode(body))
        if len(keys) > 1 or keys[0] == home:
            return None
        message = self._take_named(keys[0], home)
        return None if message is None else (keys[0], message)

    def _take_messages(
        self,
        keys: tuple[str, ...],
        homes: tuple[str, ...],
        port: Port | None,
        waiter: Waiter | None,
    ) -> Taken:
        alone = port.only_waited_by(waiter) if port and waiter else ()
        shared = port is not None and len(alone) < len(homes)
        taken = self._messages.take(
            homes,
            slot=port.slot if port else None,
            token=port.token if port else 0,
            leave=alone if waiter and waiter.parked else (),
            stay=shared,
            limit=_BATCH if keys != homes else 1,
            wanted=port.waited_names() if port else keys,
        )
        if taken.more and shared and port is not None:
            port.look_soon()
        return taken

    def _decoded(self, message: Popped) -> tuple[str, dict[str, Any]]:
        return message.name, _codec.decode(message.body)

    def _take_from_inboxes(self, keys: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
        dropped: list[Entry] = []
        entry = None
        with self._mutex:
            self._check_inbox_epoch()
            now = time.monotonic_ns()
            for key in keys:
                if "!" in key:
                    entry = self._inboxes.pop(key, now, dropped)
                    if entry is not None:
                        break
            for gone in dropped if entry is None else [*dropped, entry]:
                if gone.leaf:
                    self._owe(gone.leaf, gone.leaf_ident)
        return None if entry is None else (entry.name, _codec.decode(entry.body))

    def _owe(self, leaf: int, ident: int) -> None:
        """Note that a message left an inbox; its leaf is told soon, with others.

        Called with the mutex held. Soon: before the next drain, after ``_OWED`` of them, or in
        the loop's next round, whichever comes first.
        """
        self._owed.append((leaf, ident))
        loop = asyncio._get_running_loop()
        if len(self._owed) >= _OWED or loop is None:
            self._pay()
        elif not self._pay_is_due:
            self._pay_is_due = True
            loop.call_soon(self._pay)

    def _pay(self, dropped: int = 0) -> None:
        """Uncount what left the inboxes since the last time, in shared memory."""
        self._pay_is_due = False
        with self._mutex:
            owed, self._owed = self._owed, []
        if (not owed and not dropped) or not self._open:
            return
        try:
            self._messages.credit(owed, dropped)
        except LockBusy:
            with self._mutex:
                self._owed += owed
            loop = asyncio._get_running_loop()
            if loop is not None:
                loop.call_later(0.01, self._pay, dropped)

    def _deliver(self, home: str, messages: Sequence[Popped]) -> None:
        """Put drained messages where their readers look, and wake those."""
        names: list[str] = []
        skipped = 0
        with self._mutex:
            self._check_inbox_epoch()
            for message in messages:
                if not message.group_version:
                    entry = Entry(
                        home,
                        message.name,
                        message.body,
                        message.deadline_ns,
                        message.leaf,
                        message.leaf_ident,
                    )
                    self._inboxes.put(entry)
                    names.append(message.name)
                    continue
                for name in message.members:
                    if self._inboxes.depth(name) >= self.known_capacity(name):
                        skipped += 1
                        continue
                    self._inboxes.put(Entry(home, name, message.body, message.deadline_ns, 0, 0))
                    names.append(name)
        ports = list(self._ports.values())
        for one in ports:
            for name in names:
                if one.has_waiter(name):
                    one.wake(name)
            if one.has_waiter(home):
                one.wake(home)
        if skipped:
            self._pay(skipped)
            self._warn_dropped("group messages", skipped)

    def known_capacity(self, channel: str) -> int:
        """Return a channel's capacity, remembered."""
        known = self._names.get(channel) or self._learn(channel)
        return known[2]

    def _check_inbox_epoch(self) -> None:
        epoch = self._messages.epoch()
        if epoch != self._inbox_epoch:  # flushed by somebody
            self._inbox_epoch = epoch
            self._inboxes.clear()

    def _on_safety(self) -> None:
        self._watch()
        if self._inboxes.count:
            with self._mutex:
                for one in self._inboxes.expire(time.monotonic_ns()):
                    if one.leaf:
                        self._owe(one.leaf, one.leaf_ident)
                names = self._inboxes.names()
            for port in list(self._ports.values()):
                for name in names:
                    port.wake(name)

    # -- names ---------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a channel name nobody uses.

        ``specific`` gives ``specific.<process part>!<random>``, which belongs to the calling
        event loop (to the process, outside of one); ``reply?`` gives ``reply?<random>``.

        Raises:
            InvalidName: (``TypeError``) the prefix makes no valid name.
        """
        if isinstance(prefix, str) and prefix.endswith("?"):
            return check_channel(prefix + _random(12))
        if isinstance(prefix, str) and ("!" in prefix or "?" in prefix):
            raise InvalidName(f"new_channel() takes 'name' or 'name?', not {prefix!r}")
        loop = asyncio._get_running_loop()
        part = self._process_part
        if loop is not None:
            part = self._process_parts.setdefault(loop, "") or _random(12)
            self._process_parts[loop] = part
        return check_channel(f"{prefix}.{part}!{_random(12)}")

    # -- groups --------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member, or renew its membership for ``group_expiry`` seconds.

        Raises:
            InvalidName: (``TypeError``) either name.
            ChannelFull: the memory for groups is full.
        """
        check_group(group)
        check_channel(channel)
        self._attached()
        arguments = (group, home_of(channel), channel, int(self.group_expiry * 1_000_000_000))
        try:
            self._groups.add(*arguments)
        except LockBusy:
            await self._patiently(self._groups.add, *arguments)

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; a channel that is no member is fine.

        Raises:
            InvalidName: (``TypeError``) either name.
        """
        check_group(group)
        check_channel(channel)
        self._attached()
        try:
            self._discard(group, channel)
        except LockBusy:
            await self._patiently(self._discard, group, channel)

    def _discard(self, group: str, channel: str) -> None:
        home = home_of(channel)
        # What was sent before now and is still queued for this home is still the member's.
        pending = channel != home and self._messages.depth(home)
        self._groups.discard(group, home, channel, self._expiry_ns if pending else 0)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to every member; members whose channel is full are skipped and counted.

        The message is stored once, with one envelope for each process-specific home.

        Raises:
            InvalidName, InvalidMessage, UnserialisableValue, MessageTooLarge, StoreLocked:
                as ``send``; never ``ChannelFull``.
        """
        check_group(group)
        body = _codec.encode(message)
        store = self._attached()
        if len(body) > self._most_bytes:
            raise self._too_large(len(body))
        if time.monotonic_ns() > self._watch_at_ns:
            self._watch()
        try:
            snapshot = self._groups.snapshot(group)
        except LockBusy:
            snapshot = await self._patiently(self._groups.snapshot, group)
        if not snapshot.homes and not snapshot.channels:
            return
        arguments = (
            group,
            body,
            [(home, snapshot.version, members) for home, members in snapshot.homes],
            snapshot.channels,
            self.known_capacity,
            self._expiry_ns,
        )
        try:
            dead, skipped = store.send_group(*arguments)
        except LockBusy:
            dead, skipped = await self._patiently(store.send_group, *arguments)
        for home in dead:
            await self._drop_home(group, home)
        if skipped:
            self._warn_dropped(f"members of group {group!r}", skipped)

    send_group = group_send

    async def _drop_home(self, group: str, home: str) -> None:
        more = True
        while more:
            try:
                more = self._groups.drop_home(group, home)
            except LockBusy:
                more = await self._patiently(self._groups.drop_home, group, home)

    async def group_channels(self, group: str) -> list[str]:
        """Return the members of a group, in no particular order; a snapshot.

        Raises:
            InvalidName: (``TypeError``) the name.
        """
        check_group(group)
        self._attached()
        try:
            return self._groups.channels(group)
        except LockBusy:
            return await self._patiently(self._groups.channels, group)

    def _warn_dropped(self, what: str, count: int) -> None:
        """Log drops at most once in ``_WARN_EVERY_S`` seconds for each kind, added up."""
        now = time.monotonic()
        last, held_back = self._warned.get(what, (-_WARN_EVERY_S, 0))
        if now - last < _WARN_EVERY_S:
            self._warned[what] = (last, held_back + count)
            return
        if len(self._warned) > 1000:
            self._warned.clear()
        self._warned[what] = (now, 0)
        logger.warning(
            "%d %s skipped: their channels (capacity %d by default) or the memory are full",
            count + held_back,
            what,
            self.capacity,
        )

    # -- everything ----------------------------------------------------------------------

    async def flush(self) -> None:
        """Drop every message and every group, for every process; waiting receives go on."""
        self._attached()
        for operation in (self._messages.flush, self._groups.flush):
            try:
                operation()
            except LockBusy:
                await self._patiently(operation)

    async def global_statistics(self) -> dict[str, float]:
        """Return counts over all channels, with the keys of the ASGI statistics extension.

        ``messages_count`` and ``channel_full_count`` since the segment was made, their
        ``..._per_second`` over the time since this layer last asked, ``messages_pending``
        now, ``messages_max_age`` in seconds. Beyond the specification: ``received_count``,
        ``expired_count``, ``memory_full_count``, ``dropped_count`` (group messages),
        ``flushed_count``, ``channels_count``.
        """
        self._attached()
        try:
            counts = self._messages.statistics()
        except LockBusy:
            counts = await self._patiently(self._messages.statistics)
        statistics = self._rated(None, counts)
        for name in ("memory_full", "dropped", "flushed", "channels"):
            statistics[f"{name}_count"] = counts[name]
        return statistics

    async def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the counts of one channel, as ``global_statistics`` does.

        A channel that stays empty for a minute is forgotten, and its counts begin anew.

        Raises:
            InvalidName: (``TypeError``) the name.
        """
        check_channel(channel)
        self._attached()
        home = home_of(channel)
        try:
            counts = self._messages.channel_statistics(channel, home)
        except LockBusy:
            counts = await self._patiently(self._messages.channel_statistics, channel, home)
        return self._rated(channel, counts)

    def _rated(self, key: str | None, counts: dict[str, int]) -> dict[str, float]:
        now = time.monotonic()
        since, before = self._rates.get(key, (0.0, {}))
        if len(self._rates) > 10_000:
            self._rates.clear()
        self._rates[key] = (now, counts)
        elapsed = now - since if before else 0.0

        def rate(name: str) -> float:
            grown = counts[name] - before.get(name, 0)
            return max(0.0, grown / elapsed) if elapsed > 0 else 0.0

        return {
            "messages_count": counts["sent"],
            "messages_count_per_second": rate("sent"),
            "messages_pending": counts["pending"],
            "messages_max_age": counts["max_age_ns"] / 1e9,
            "channel_full_count": counts["full"],
            "channel_full_count_per_second": rate("full"),
            "received_count": counts["received"],
            "expired_count": counts["expired"],
        }


def _positive(seconds: float, what: str) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")
    if not 0 < seconds < 1e9:
        raise ValueError(f"{what} must be a positive number of seconds, not {seconds}")
    return seconds


def _random(length: int) -> str:
    return "".join(secrets.choice(_RANDOM_ALPHABET) for _ in range(length))


def _on_its_loop(port: Port) -> None:
    """Close a port from whatever thread this is."""
    loop = port.loop()
    here = asyncio._get_running_loop() is loop
    if loop is None or loop.is_closed() or here or not loop.is_running():
        port.close()
    else:
        try:
            loop.call_soon_threadsafe(port.close)
        except RuntimeError:
            port.close()  # closed between the question and the call


def _after_fork_in_child() -> None:
    for layer in list(_layers):
        layer._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
