"""The blocking face: ``IPCChannelLayer``, what Channels 1 and Daphne 1 call.

A thin wrapper of the async core. An operation that does not suspend is driven by one step
of its coroutine; a blocking receive first tries without blocking, then runs the core's
receive on a private event loop of the calling thread. Any number of threads may call at
once.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import _asgiref
from ._drive.poll_loop import PrivateLoops
from ._options import OfCore, names_what_is_no_option
from ._receive.reception import Received
from ._store.codec import Default, ObjectHook
from ._store.fanout import GroupSent
from ._wake.blocking import drive
from ._wake.port import HostLoop
from .aio import DEFAULT_GROUP_MEMORY, DEFAULT_MESSAGE_MEMORY, AsyncIPCChannelLayer
from .capacity import ChannelCapacity, compile_capacities
from .exceptions import ChannelFull, InvalidName, MessageTooLarge
from .names import CHANNEL_NAME, GROUP_NAME, MAX_NAME_LENGTH, check_channel, check_group, home_of

if TYPE_CHECKING:
    from ._drive import twisted

__all__ = ["IPCChannelLayer"]


class _BlockingCore(AsyncIPCChannelLayer):
    """The core as Channels 1 wants it: capacity counted on the home, waiting by sleeping."""

    capacity_per_name = False

    async def receive_checked(
        self,
        keys: tuple[str, ...],
        block: bool,
        deadline: float | None,
        pause: Callable[[float], Awaitable[None]] | None = None,
        loop: HostLoop | None = None,
    ) -> Received | None:
        """Receive for names that were checked and are homes; ``None`` if nothing came."""
        got = self._reception.take_now(keys[0], keys[0]) if len(keys) == 1 else None
        if got is not None:
            return got
        return await self._reception.receive(keys, keys, block, deadline, pause or self.pause, loop)


class IPCChannelLayer(_asgiref.Layer):
    """A channel layer over POSIX shared memory with the interface of asgiref 1.x.

    The options are those of ``AsyncIPCChannelLayer``; ``block_timeout`` is 5 seconds here,
    because Channels 1 stops gracefully, and times body channels out, only when a blocking
    receive returns now and then. Where asgiref 1.x is installed it is a ``BaseChannelLayer``.
    """

    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge
    channel_name_regex = CHANNEL_NAME
    group_name_regex = GROUP_NAME
    invalid_name_error = (
        "{} name must be a valid unicode string containing only ASCII alphanumerics, hyphens, "
        "underscores, or periods."
    )

    extensions: Sequence[str] = AsyncIPCChannelLayer.extensions
    prefix: OfCore[str] = OfCore()
    expiry: OfCore[float] = OfCore()
    group_expiry: OfCore[float] = OfCore()
    capacity: OfCore[int] = OfCore()
    channel_capacity: OfCore[list[tuple[re.Pattern[str], int]]] = OfCore()
    message_memory: OfCore[int] = OfCore()
    group_memory: OfCore[int] = OfCore()
    max_message_bytes: OfCore[int | None] = OfCore()
    mode: OfCore[int] = OfCore()
    lock_timeout: OfCore[float] = OfCore()
    block_timeout: OfCore[float] = OfCore()
    default: OfCore[Default | None] = OfCore()
    object_hook: OfCore[ObjectHook | None] = OfCore()

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
        block_timeout: float = 5.0,
        default: Default | str | None = None,
        object_hook: ObjectHook | str | None = None,
    ) -> None:
        """Attach to the segments of ``prefix``; see ``AsyncIPCChannelLayer``."""
        self.core: _BlockingCore = _BlockingCore(
            prefix,
            expiry,
            group_expiry,
            capacity,
            channel_capacity,
            message_memory,
            group_memory,
            max_message_bytes=max_message_bytes,
            mode=mode,
            lock_timeout=lock_timeout,
            block_timeout=block_timeout,
            default=default,
            object_hook=object_hook,
        )
        if importlib.util.find_spec("twisted") is not None:
            self.extensions = [*self.extensions, "twisted"]
        self._loops = PrivateLoops()

    # -- messages ------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Queue a message; see ``AsyncIPCChannelLayer.send`` for what it raises.

        Does not block, but for a lock that another process holds (``lock_timeout``).
        """
        drive(self.core.send(channel, message))

    def receive(
        self, channels: Iterable[str] | None, block: bool = False
    ) -> tuple[str, dict[str, Any]] | tuple[None, None]:
        """Return ``(channel, message)``, or ``(None, None)`` if there is none.

        Args:
            channels: names; a process-specific one must end at its ``!``.
            block: wait up to ``block_timeout`` seconds. Signal handlers run meanwhile, and
                what they raise comes out of here.

        Raises:
            InvalidName: (``TypeError``) one of the names.
        """
        keys = self._checked(channels)
        got = drive(self.core.receive_checked(keys, False, None))
        if got is None and block:
            deadline = time.monotonic() + self.block_timeout
            got = self._loops.run(
                lambda loop: self.core.receive_checked(keys, True, deadline, None, loop)
            )
        return got or (None, None)

    receive_many = receive

    async def receive_async(
        self, channels: Iterable[str] | None
    ) -> tuple[str, dict[str, Any]] | tuple[None, None]:
        """Wait for a message on the running event loop; see ``AsyncIPCChannelLayer``."""
        keys = self._checked(channels)
        got = await self.core.receive_checked(keys, True, None)
        return got or (None, None)

    receive_asyncio = receive_async

    def receive_twisted(self, channels: Iterable[str] | None) -> Any:
        """Return a Deferred of ``(channel, message)``, waiting on the reactor without a poll.

        It waits for ever, and never has fired already; cancel it to stop waiting. To be called
        on the reactor's thread, whichever thread that is.

        Raises:
            InvalidName: (``TypeError``) one of the names.
            ImportError: Twisted is not installed.
        """
        from ._drive import twisted

        keys = self._checked(channels)
        loop = twisted.reactor_loop()
        return twisted.as_deferred(loop, self._receive_on(loop, keys))

    async def _receive_on(
        self, loop: twisted.ReactorLoop, keys: tuple[str, ...]
    ) -> Received | tuple[None, None]:
        got = await self.core.receive_checked(keys, True, None, loop.pause, loop)
        return got or (None, None)

    def _checked(self, channels: Iterable[str] | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(check_channel(name, receive=True) for name in channels or ()))

    def new_channel(self, pattern: str) -> str:
        """Return an unused single-reader channel: ``reply?`` gives ``reply?<random>``.

        Raises:
            InvalidName: (``TypeError``) the pattern does not end in ``?``.
        """
        if not isinstance(pattern, str) or not pattern.endswith("?"):
            raise InvalidName(
                f"new_channel() takes a pattern that ends in '?', not {pattern!r}: "
                "process-specific names are made by the process itself"
            )
        return drive(self.core.new_channel(pattern))

    # -- groups --------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member, or renew its membership."""
        drive(self.core.group_add(group, channel))

    def group_discard(self, group: str, channel: str) -> None:
        """End a membership; a channel that is no member is fine."""
        drive(self.core.group_discard(group, channel))

    def send_group(self, group: str, message: dict[str, Any]) -> None:
        """Send to every member; those whose channel is full are skipped.

        Returns nothing, as Channels 1 has it: ``group_send`` returns the counts.
        """
        self.group_send(group, message)

    def group_send(self, group: str, message: dict[str, Any]) -> GroupSent:
        """Send to every member; return how many were reached, and skipped."""
        return drive(self.core.group_send(group, message))

    def group_channels(self, group: str) -> list[str]:
        """Return the members of a group; a snapshot."""
        return drive(self.core.group_channels(group))

    # -- everything ----------------------------------------------------------------------

    def flush(self) -> None:
        """Drop every message and every group, for every process."""
        drive(self.core.flush())

    def global_statistics(self) -> dict[str, float]:
        """Return counts over all channels; see ``AsyncIPCChannelLayer``."""
        return drive(self.core.global_statistics())

    def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the counts of one channel; see ``AsyncIPCChannelLayer``."""
        return drive(self.core.channel_statistics(channel))

    def close(self) -> None:
        """Detach; the messages stay, and the layer attaches again when it is next used."""
        self.core.close_now()
        self._loops.close()

    def unlink(self) -> None:
        """Remove the segments and sockets of this prefix from the machine, and detach."""
        self.close()
        self.core.unlink()

    # -- what third parties use of asgiref's base class ----------------------------------

    def get_capacity(self, channel: str) -> int:
        """Return how many messages a channel may hold."""
        return self.core.get_capacity(channel)

    @staticmethod
    def compile_capacities(channel_capacity: ChannelCapacity | None) -> list[tuple[Any, int]]:
        """Turn patterns into regular expressions; the first that matches wins."""
        return compile_capacities(channel_capacity)

    @staticmethod
    def match_type_and_length(name: object) -> bool:
        """Whether a name is a str and short enough."""
        return isinstance(name, str) and len(name) <= MAX_NAME_LENGTH

    @staticmethod
    def valid_channel_name(name: str, receive: bool = False) -> bool:
        """Return True, or raise ``InvalidName`` (a ``TypeError``)."""
        check_channel(name, receive=receive)
        return True

    def valid_channel_names(self, names: Iterable[str], receive: bool = False) -> bool:
        """Return True if every name is valid, or raise ``InvalidName``."""
        return all(self.valid_channel_name(name, receive) for name in names)

    @staticmethod
    def valid_group_name(name: str) -> bool:
        """Return True, or raise ``InvalidName`` (a ``TypeError``)."""
        check_group(name)
        return True

    @staticmethod
    def non_local_name(name: str) -> str:
        """Return the part of a process-specific name up to and including its ``!``."""
        return home_of(name)

    def __repr__(self) -> str:
        """Name the site."""
        return f"{type(self).__name__}(prefix={self.prefix!r})"
