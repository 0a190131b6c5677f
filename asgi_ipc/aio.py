"""The asyncio face: ``AsyncIPCChannelLayer``.

Nothing is bound to an event loop at construction. ``send``, ``group_send`` and their like
do not suspend in the ordinary case, so they work from any thread and any loop; each loop
that waits for messages gets a slot and a bell of its own, and gives them back when it ends.

A receive may be cancelled at any point: it never holds a message that it has not returned. One
in 64 lets the loop turn before it looks, so that a loop of receives that never have to wait leaves
timeouts and the other tasks alive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pkgutil
import re
import string
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

from . import exceptions
from ._drive.twin import SyncTwin
from ._options import Changeable, Fixed, names_what_is_no_option
from ._process.own import here
from ._receive.reception import TURN_EVERY, Reception
from ._receive.resting import give_up, may_rest, rest, served
from ._receive.subscription import Subscription, Subscriptions
from ._shm import layout as L
from ._shm.segment import LockBusy
from ._store.addressing import all_of, but_for, to_all, to_others
from ._store.codec import Codec, Default, ObjectHook
from ._store.fanout import Drop, Envelope, GroupMessage, GroupSent
from ._store.membership import Snapshot
from ._store.messages import MANY, Letter
from ._store.throttle import Throttle
from ._wake.blocking import pause
from ._wake.port import HostLoop
from ._wake.site import Site
from .capacity import ChannelCapacity, check_capacity, compile_capacities
from .exceptions import ChannelFull, InvalidName, MessageTooLarge
from .names import check_channel, check_group, check_prefix, home_of, text_of

__all__ = ["AsyncIPCChannelLayer"]

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Callable[..., Any])

logger: logging.Logger = logging.getLogger("asgi_ipc")

DEFAULT_MESSAGE_MEMORY = 100 * 1024 * 1024
DEFAULT_GROUP_MEMORY = 20 * 1024 * 1024
_NAME_CACHE = 20_000
_ALPHANUMERIC = ((string.ascii_letters + string.digits) * 5)[:256].encode()  # for each byte
_RATE_OVER_S = 1.0  # a shorter time would make a rate out of one message
_MOST_SPIN_ROUNDS = 1000


def _positive(seconds: float, what: str) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")
    if not 0 < seconds < 1e9:
        raise ValueError(f"{what} must be a positive number of seconds, not {seconds}")
    return seconds


def _spin_rounds(rounds: int, what: str) -> int:
    if not 0 <= rounds <= _MOST_SPIN_ROUNDS:
        raise ValueError(f"{what} must be 0 to {_MOST_SPIN_ROUNDS}, not {rounds}")
    return rounds


def _hook(given: H | str | None, what: str) -> H | None:
    """Return a hook that was given itself or by its dotted name, as settings have it."""
    hook: Any = given
    if isinstance(given, str):
        try:
            hook = pkgutil.resolve_name(given)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ValueError(f"{what}={given!r} cannot be imported: {exc}") from exc
    if hook is not None and not callable(hook):
        raise TypeError(f"{what} must be callable, or the dotted name of what is, not {given!r}")
    return hook  # type: ignore[no-any-return]


def _compiled(patterns: ChannelCapacity | None, _: str) -> list[tuple[re.Pattern[str], int]]:
    return compile_capacities(patterns)


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

    prefix: Fixed[str] = Fixed()
    message_memory: Fixed[int] = Fixed()
    group_memory: Fixed[int] = Fixed()
    max_message_bytes: Fixed[int | None] = Fixed()
    mode: Fixed[int] = Fixed()
    lock_timeout: Fixed[float] = Fixed()
    default: Fixed[Default | None] = Fixed()
    object_hook: Fixed[ObjectHook | None] = Fixed()
    expiry: Changeable[float] = Changeable(_positive)
    group_expiry: Changeable[float] = Changeable(_positive)
    capacity: Changeable[int] = Changeable(check_capacity)
    channel_capacity: Changeable[list[tuple[re.Pattern[str], int]]] = Changeable(_compiled)
    spin_rounds: Changeable[int] = Changeable(_spin_rounds)

    @names_what_is_no_option
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
        spin_rounds: int = 16,
        on_drop: Callable[[Drop], None] | None = None,
        default: Default | str | None = None,
        object_hook: ObjectHook | str | None = None,
    ) -> None:
        """Attach to the segments of ``prefix``; create them if there are none.

        Each option is an attribute too. What the segments were opened with (``prefix``, the
        memories, ``max_message_bytes``, ``mode``, ``lock_timeout``) is read-only; of the others,
        what is set holds from the next operation on.

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
            spin_rounds: rounds of the event loop, about 6 µs each if nothing else runs, for
                which a receive looks again before it sleeps, where that has found messages
                lately; 0: none, and no processor time for it.
            on_drop: called with a ``Drop`` for group messages that found a full channel.
            default: called with each value that msgpack does not know; returns one that it does,
                or raises ``TypeError``. As those of ``asgi_ipc.encoding``, or their dotted name.
            object_hook: called with each dict of a message that is received, the innermost first;
                returns what is to be in its place. The message itself must be a dict still.

        Raises:
            TypeError: an option of another layer, or a class with ``serialize`` or ``deserialize``.
            SegmentError: see ``exceptions``; each names what is wrong and the remedy.
        """
        prefix = check_prefix(prefix)
        _refuse_overridden_encoding(type(self))
        for what, size in (("message_memory", message_memory), ("group_memory", group_memory)):
            if not L.MIN_SEGMENT_BYTES <= size <= L.MAX_SEGMENT_BYTES:
                raise ValueError(
                    f"{what} must be {L.MIN_SEGMENT_BYTES} to {L.MAX_SEGMENT_BYTES} bytes, "
                    f"not {size}"
                )
        self.prefix = prefix
        self.expiry = expiry
        self.group_expiry = group_expiry
        self.capacity = capacity
        self.channel_capacity = channel_capacity
        self.message_memory = int(message_memory)
        self.group_memory = int(group_memory)
        self.max_message_bytes = max_message_bytes
        self.mode = mode
        self.lock_timeout = _positive(lock_timeout, "lock_timeout")
        self.block_timeout = block_timeout
        self.spin_rounds = spin_rounds
        self.on_drop = on_drop
        self.default = _hook(default, "default")
        self.object_hook = _hook(object_hook, "object_hook")
        codec = Codec(self.default, self.object_hook)
        self._encode = codec.encode
        self._names: dict[str, tuple[str, str, int]] = {}
        self._group_names: set[str] = set()  # that are valid
        self._process_parts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, str] = (
            weakref.WeakKeyDictionary()
        )
        self._process_part = _random()
        self._made: set[str] = set()  # homes of names made here: they had no owner before
        self._dropped = Throttle()
        self._subscriptions = Subscriptions()
        self._twin: SyncTwin | None = None
        self._addressed: tuple[Snapshot | None, list[Envelope], GroupSent]
        self._addressed = (None, [], GroupSent(0, 0))
        self._rates: dict[str | None, tuple[float, dict[str, int]]] = {}
        self._reception = Reception(self.known_capacity, self._report_drops, codec)
        self._options_changed()
        self._site = self._reception.site = Site(
            prefix,
            message_memory=self.message_memory,
            group_memory=self.group_memory,
            max_message_bytes=max_message_bytes,
            mode=mode,
            lock_timeout=self.lock_timeout,
            serve=self._reception.serve,
            on_reset=self._reset,
            on_safety=self._reception.on_safety,
        )

    def _options_changed(self) -> None:
        """Work out what is asked for in each operation."""
        self._expiry_ns = _nanoseconds(self.expiry, "expiry")
        self._group_expiry_ns = _nanoseconds(self.group_expiry, "group_expiry")
        self._names.clear()  # each with its capacity
        least = min([self.capacity, *(capacity for _, capacity in self.channel_capacity)])
        self._reception.least_capacity = least
        self._reception.spin_rounds = self.spin_rounds

    # -- life ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Detach from shared memory; waiting receives raise ``LayerClosed``.

        Idempotent; the messages stay, and the layer attaches again when it is next used.
        """
        self.close_now()

    def close_now(self) -> None:
        """Do what ``close`` does, without a loop."""
        self._site.close()
        if self._twin is not None:
            self._twin.close()

    def unlink(self) -> None:
        """Remove the segments and sockets of this prefix from the machine, and detach.

        For tests and for taking a site down: processes that are still attached keep what
        they have, but no new process finds them. Files of other users in the directory of sockets
        stay, and a symlink there is not followed.

        Raises:
            SegmentError: something of another user's stands in a segment's place, say.
        """
        self._site.unlink()

    def _reset(self) -> None:
        """Start anew, closed or in a forked child, whose process part must be its own."""
        self._reception.reset()
        self._process_parts = weakref.WeakKeyDictionary()
        self._process_part = _random()
        self._made = set()

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

    async def pause(self, seconds: float) -> None:
        """Let others run for a while."""
        await pause(seconds)

    @property
    def sync(self) -> SyncTwin:
        """The same operations as blocking calls, for code without an event loop."""
        if self._twin is None:
            self._twin = SyncTwin(self)
        return self._twin

    async def _run(self, operation: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an operation of a store, waiting while its lock is busy."""
        if here[0] != self._site.attached_by:
            self._site.open()
        elif time.monotonic_ns() > self._site.watch_at_ns:
            self._site.watch()
        try:
            return operation(*args, **kwargs)
        except LockBusy:
            return await self._site.patiently(self.pause, operation, *args, **kwargs)

    # -- sending -------------------------------------------------------------------------

    async def send(
        self, channel: str, message: dict[str, Any], *, expiry: float | None = None
    ) -> None:
        """Queue a message; it is neither kept nor changed.

        Suspends only while another process holds the lock for milliseconds. When cancelled
        then, nothing was sent.

        Args:
            expiry: seconds until it is dropped unread, if not the layer's.

        Raises:
            ChannelFull: the channel has ``capacity`` messages, or the memory is full.
            MessageTooLarge: it can never fit.
            InvalidName: (``TypeError``) the channel's name.
            InvalidMessage: (``AssertionError``) not a dict, or a reserved key.
            UnserialisableValue: (``TypeError``) a value inside, named by its path.
            StoreLocked: the lock could not be had within ``lock_timeout``.
        """
        name, home, capacity = self._names.get(channel) or self._learn(channel)
        body = self._encode(message)
        site = self._site
        if here[0] != site.attached_by:
            site.open()
        if len(body) > site.most_bytes:
            raise self._too_large(len(body))
        if time.monotonic_ns() > site.watch_at_ns:
            site.watch()
        expiry_ns = self._expiry_ns if expiry is None else _nanoseconds(expiry, "expiry")
        send = site.messages.send
        try:
            send(name, home, body, capacity, expiry_ns, self.capacity_per_name)
        except (LockBusy, exceptions.ChannelFull) as exc:
            if not isinstance(exc, LockBusy) and not self._reception.settle():
                raise
            how = (name, home, body, capacity, expiry_ns, self.capacity_per_name)
            await self._run_with_room(send, *how)

    async def send_many(
        self, messages: Iterable[tuple[str, dict[str, Any]]], *, expiry: float | None = None
    ) -> None:
        """Queue several messages, given as ``(channel, message)``, in order.

        Up to 40 go in one transaction: all of them or none. More go in slices of 40.

        Raises:
            ChannelFull: one has no room. Nothing of its slice was sent, what came before was.
            MessageTooLarge, InvalidName, InvalidMessage, UnserialisableValue, StoreLocked: as
                ``send``; nothing was sent.
        """
        expiry_ns = self._expiry_ns if expiry is None else _nanoseconds(expiry, "expiry")
        letters = []
        for channel, message in messages:
            name, home, capacity = self._names.get(channel) or self._learn(channel)
            body = self._encode(message)
            if len(body) > self._site.most_bytes:
                raise self._too_large(len(body))
            letters.append(Letter(name, home, body, capacity, expiry_ns, self.capacity_per_name))
        for first in range(0, len(letters), MANY):
            part = letters[first : first + MANY]
            await self._run_with_room(self._site.messages.send_many, part)

    async def _run_with_room(
        self, send: Callable[P, None], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Send; a channel may be full only with what this layer has read and not yet said so."""
        try:
            await self._run(send, *args, **kwargs)
        except exceptions.ChannelFull:
            if not self._reception.settle():
                raise
            await self._run(send, *args, **kwargs)

    def check_name(self, channel: object) -> str:
        """Return a channel's name if it is valid, or raise ``InvalidName``."""
        return check_channel(channel)

    def _learn(self, channel: str) -> tuple[str, str, int]:
        """Check a channel's name once; remember it, its home and its capacity.

        The home of an ordinary channel is the same object as its name.
        """
        name = self.check_name(channel)
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
        limit = self._site.most_bytes
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
        keys, homes = self._checked(channels)
        deadline = None
        if block and self.block_timeout is not None:
            deadline = time.monotonic() + self.block_timeout
        self._reception.count += 1
        if not self._reception.count % TURN_EVERY and block:
            await self._reception.let_the_loop_turn()
        got = self._reception.take_now(keys[0], homes[0]) if len(keys) == 1 else None
        if got is None:
            got = await self._reception.receive(keys, homes, block, deadline, self.pause)
        return got or (None, None)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of one channel, waiting for ever: Channels 4's form.

        Raises:
            InvalidName: (``TypeError``) the name.
            LayerClosed: the layer was closed while this was waiting.
        """
        name, home, _ = self._names.get(channel) or self._learn(channel)
        reception = self._reception
        waiter = None
        if name is not home:
            waiter = may_rest(self._site, name, home, reception.spin_rounds)
        if waiter is None:
            reception.count += 1
            if not reception.count % TURN_EVERY:
                await reception.let_the_loop_turn()
            got = reception.take_now(name, home)
            if got is None:
                got = await reception.receive((name,), (home,), True, None, self.pause)
        else:
            try:
                await rest(waiter, reception.inboxes, name, home)
                crowded_at = reception.least_capacity
                message = served(
                    self._site, reception.inboxes, waiter, name, home, crowded_at, reception.decode
                )
                if reception.inboxes.read:
                    reception.settle_soon()
                if message is not None:
                    return message
                got = await reception.go_on(waiter, waiter.port, waiter.closings, self.pause)
            except BaseException:
                try:
                    give_up(waiter)
                finally:
                    give_up(waiter)  # does nothing, unless a signal handler cut that short
                raise
        assert got is not None
        return got[1]

    async def receive_within(
        self, channel: str, deadline: float | None, *, loop: HostLoop | None = None
    ) -> dict[str, Any] | None:
        """Return the next message of one channel, ``None`` if none came in time.

        Args:
            deadline: ``time.monotonic()`` to wait until; ``None``: for ever.
            loop: to wait on, if it is not the running asyncio loop.

        Raises:
            InvalidName: (``TypeError``) the name.
            LayerClosed: the layer was closed while this was waiting.
        """
        name, home, _ = self._names.get(channel) or self._learn(channel)
        keys, homes = (name,), (home,)
        self._reception.count += 1
        if not self._reception.count % TURN_EVERY and loop is None:
            await self._reception.let_the_loop_turn()
        got = self._reception.take_now(name, home)
        if got is None:
            got = await self._reception.receive(keys, homes, True, deadline, self.pause, loop)
        return None if got is None else got[1]

    def _checked(self, channels: Iterable[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names and their homes, each once."""
        names = self._names
        known = [names.get(name) or self._learn(name) for name in channels or ()]
        if len(known) == 1:
            return known[0][:1], known[0][1:2]
        return (
            tuple(dict.fromkeys([name for name, _, _ in known])),
            tuple(dict.fromkeys([home for _, home, _ in known])),
        )

    def known_capacity(self, channel: str) -> int:
        """Return the capacity of a channel that is in the site, remembered."""
        try:
            known = self._names.get(channel) or self._learn(channel)
        except InvalidName:  # another face's, whose names this one does not take from its users
            return self.get_capacity(channel)
        return known[2]

    # -- names ---------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a channel name nobody uses.

        ``specific`` gives ``specific.<process part>!<random>``, which belongs to the calling
        event loop (to the process, outside of one); ``reply?`` gives ``reply?<random>``.

        Raises:
            InvalidName: (``TypeError``) the prefix makes no valid name.
        """
        text = text_of(prefix)
        if text is not None and text.endswith("?"):
            return self.check_name(text + _random())
        if text is None or "!" in text or "?" in text:
            raise InvalidName(f"new_channel() takes 'name' or 'name?', not {prefix!r}")
        if here[0] != self._site.process:
            self._site.let_go()  # the name of a forked child must not be its parent's
        loop = asyncio._get_running_loop()
        part = self._process_part
        if loop is not None:
            part = self._process_parts.setdefault(loop, "") or _random()
            self._process_parts[loop] = part
        home = f"{text}.{part}!"
        if len(self._made) >= _NAME_CACHE:
            self._made.clear()
        self._made.add(home)
        return self.check_name(home + _random())

    # -- groups --------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member, or renew its membership for ``group_expiry`` seconds.

        Raises:
            InvalidName: (``TypeError``) either name.
            ChannelFull: the memory for groups is full.
        """
        if type(group) is not str or group not in self._group_names:
            group = self._learn_group(group)
        name, home, _ = self._names.get(channel) or self._learn(channel)
        site = self._site
        if here[0] != site.attached_by:
            site.open()
        elif time.monotonic_ns() > site.watch_at_ns:
            site.watch()
        if home is not name and home not in self._made:
            # Who joins a home after its owner's death is to stay: the others are dropped first.
            try:
                is_dead = site.have_dead_owner((home,))
            except LockBusy:
                is_dead = await self._run(site.have_dead_owner, (home,))
            if is_dead:
                await self._run(site.drop_dead_homes, (home,))
        try:
            site.groups.add(group, home, name, self._group_expiry_ns)
        except LockBusy:
            await self._run(site.groups.add, group, home, name, self._group_expiry_ns)

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; a channel that is no member is fine.

        Raises:
            InvalidName: (``TypeError``) either name.
        """
        if type(group) is not str or group not in self._group_names:
            group = self._learn_group(group)
        name, home, _ = self._names.get(channel) or self._learn(channel)
        await self._run(self._discard, group, home, name)

    def _discard(self, group: str, home: str, channel: str) -> None:
        messages = self._site.messages
        # What was sent before now and is still queued for this home is still the member's.
        pending = (
            channel is not home
            and not messages.records.is_surely_empty(home)
            and messages.depth(home)
        )
        self._site.groups.discard(group, home, channel, self._expiry_ns if pending else 0)

    def _learn_group(self, group: str) -> str:
        """Check a group's name once; return it as a plain ``str``."""
        group = check_group(group)
        if len(self._group_names) >= _NAME_CACHE:
            self._group_names.clear()
        self._group_names.add(group)
        return group

    async def group_send(
        self,
        group: str,
        message: dict[str, Any],
        *,
        exclude: Iterable[str] = (),
        expiry: float | None = None,
    ) -> GroupSent:
        """Send to every member; members whose channel is full are skipped and counted.

        The message is stored once, with one envelope for each process-specific home. What is
        returned has the counts of members ``reached`` and ``skipped``.

        Args:
            exclude: members that do not get it (the sender's own channel, say).
            expiry: seconds until it is dropped unread, if not the layer's.

        Raises:
            InvalidName, InvalidMessage, UnserialisableValue, MessageTooLarge, StoreLocked:
                as ``send``; never ``ChannelFull``.
        """
        if type(group) is not str or group not in self._group_names:
            group = self._learn_group(group)
        body = self._encode(message)
        site = self._site
        if here[0] != site.attached_by:
            site.open()
        if len(body) > site.most_bytes:
            raise self._too_large(len(body))
        if time.monotonic_ns() > site.watch_at_ns:
            site.watch()
        try:
            snapshot = site.groups.snapshot(group)
        except LockBusy:
            snapshot = await self._run(site.groups.snapshot, group)
        latest, envelopes, sent = self._addressed
        excluded: dict[str, list[str]] = {}
        for given in exclude:
            name = self.check_name(given)
            excluded.setdefault(home_of(name), []).append(name)
        if excluded:
            envelopes = await self._run(self._others, group, snapshot, excluded)
            sent = all_of(envelopes)
        elif latest is not snapshot:
            envelopes = to_all(snapshot)
            sent = all_of(envelopes)
            self._addressed = snapshot, envelopes, sent
        if not envelopes:
            return sent
        expiry_ns = self._expiry_ns if expiry is None else _nanoseconds(expiry, "expiry")
        addressed = GroupMessage(group, body, envelopes, self.known_capacity, expiry_ns)
        try:
            dead, drops = site.messages.send_group(addressed)
        except LockBusy:
            dead, drops = await self._run(site.messages.send_group, addressed)
        if dead:
            await self._run(site.drop_dead_homes, dead)
        if drops:
            self._report_drops(drops)
        return sent if not dead and not drops else but_for(sent, envelopes, dead, drops)

    def _others(
        self, group: str, snapshot: Snapshot, excluded: dict[str, list[str]]
    ) -> list[Envelope]:
        def count(home: str, names: Sequence[str]) -> int:
            return self._site.groups.count(group, home, names, snapshot.version)

        return to_others(snapshot, excluded, count)

    send_group = group_send

    def subscribe(self, *groups: str, channel: str | None = None) -> Subscription:
        """Join groups, receive what is sent to them, and leave them, whatever ends the block.

        ::

            async with layer.subscribe("room") as messages:
                async for message in messages:
                    ...

        Args:
            groups: to be joined; none: only what is sent to the channel itself.
            channel: where to receive; ``None``: a new one of this process.

        Raises:
            InvalidName: (``TypeError``) one of the names.
        """
        return Subscription(self, self._site, self._subscriptions, groups, channel)

    async def group_channels(self, group: str) -> list[str]:
        """Return the members of a group, in no particular order; a snapshot.

        Raises:
            InvalidName: (``TypeError``) the name.
        """
        group = check_group(group)
        names = await self._run(self._site.groups.channels, group)
        homes = tuple({home_of(name) for name in names if "!" in name})
        is_dead: bool = bool(homes) and await self._run(self._site.have_dead_owner, homes)
        if is_dead:
            await self._run(self._site.drop_dead_homes, homes)
            names = await self._run(self._site.groups.channels, group)
        return names

    async def group_count(self, group: str) -> int:
        """Return how many members a group has.

        Raises:
            InvalidName: (``TypeError``) the name.
        """
        return len(await self.group_channels(group))

    def _report_drops(self, drops: Sequence[Drop]) -> None:
        """Tell subscriptions and the callback of every drop, and the log now and then."""
        self._subscriptions.note(drops)
        if self.on_drop is not None:
            for drop in drops:
                self.on_drop(drop)
        count = self._dropped.add(sum(drop.members for drop in drops))
        if not count:
            return
        last = drops[-1]
        logger.warning(
            "%d group messages skipped since the last such line; the latest: one of group %r, %s, "
            "%r with %d of %d messages",
            count,
            last.group,
            last.cause,
            last.channel,
            last.depth,
            last.capacity,
            extra={"event": "messages-dropped"},
        )

    # -- everything ----------------------------------------------------------------------

    async def flush(self) -> None:
        """Drop every message and every group, for every process; waiting receives go on."""
        await self._run(self._site.messages.flush)
        await self._run(self._site.groups.flush)

    async def global_statistics(self) -> dict[str, float]:
        """Return counts over all channels, with the keys of the ASGI statistics extension.

        ``messages_count`` and ``channel_full_count`` since the segment was made, their
        ``..._per_second`` over at least the last second in which this layer asked (0 the first
        time), ``messages_pending`` now, ``messages_max_age`` in seconds. Beyond the specification,
        with their rates: ``received_count``, ``expired_count``, ``memory_full_count``,
        ``dropped_count`` (group messages), ``flushed_count``; and ``channels_count``.

        Looks at every channel with the lock held: 25 ms for 10,000 of them. ``asgi-ipc stats``
        and the metrics read in slices.
        """
        counts = await self._run(self._site.messages.statistics)
        statistics = self._rated(None, counts, ("memory_full", "dropped", "flushed"))
        statistics["channels_count"] = counts["channels"]
        return statistics

    async def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the counts of one channel, as ``global_statistics`` does.

        A channel that stays empty for a minute is forgotten, and its counts begin anew. For one
        name below a process-specific home what expired counts as received, and there is no
        age: ask for ``home!``.

        Raises:
            InvalidName: (``TypeError``) the name.
        """
        channel = self.check_name(channel)
        counts = await self._run(self._site.messages.channel_statistics, channel, home_of(channel))
        return self._rated(channel, counts)

    def _rated(
        self, key: str | None, counts: dict[str, int], more: Iterable[str] = ()
    ) -> dict[str, float]:
        """Name the counts, and add how fast they grew since the last sample of a second ago."""
        now = time.monotonic()
        since, before = self._rates.get(key, (now, counts))
        if len(self._rates) > 10_000:
            self._rates.clear()
        if now - since >= _RATE_OVER_S or key not in self._rates:
            self._rates[key] = (now, counts)
        statistics: dict[str, float] = {
            "messages_pending": counts["pending"],
            "messages_max_age": counts["max_age_ns"] / 1e9,
        }
        named = {"sent": "messages", "full": "channel_full"}
        for name in ("sent", "full", "received", "expired", *more):
            grown = max(0, counts[name] - before[name])
            counted = f"{named.get(name, name)}_count"
            statistics[counted] = counts[name]
            statistics[f"{counted}_per_second"] = grown / (now - since) if now > since else 0.0
        return statistics


def _refuse_overridden_encoding(layer: type) -> None:
    """Say what is instead of what channels_redis has its users override.

    Raises:
        TypeError: there is such a method, which nobody would call.
    """
    for method, option in (("serialize", "default"), ("deserialize", "object_hook")):
        if hasattr(layer, method):
            raise TypeError(
                f"{layer.__module__}.{layer.__qualname__}.{method} would never be called: give "
                f"the option {option} instead"
            )


def _random() -> str:
    """Return twelve characters of a name that nobody guesses: 71 random bits."""
    return os.urandom(12).translate(_ALPHANUMERIC).decode()


def _nanoseconds(seconds: float, what: str) -> int:
    return int(_positive(seconds, what) * 1_000_000_000)
