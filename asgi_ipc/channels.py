"""The Django Channels 4 backend: ``"BACKEND": "asgi_ipc.channels.IPCChannelLayer"``.

The async core with Channels' base class, names and exceptions. Needs the extra
``asgi_ipc[channels]``; this is the only module that imports Channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

try:
    from channels import exceptions as channels_exceptions
    from channels.layers import BaseChannelLayer
except ModuleNotFoundError as _exc:
    raise ImportError(
        f"asgi_ipc.channels needs Django Channels ({_exc}): pip install 'asgi_ipc[channels]'"
    ) from _exc

from . import exceptions
from ._store.fanout import GroupSent
from .aio import AsyncIPCChannelLayer
from .exceptions import InvalidName
from .names import check_channel, check_group, home_of

__all__ = ["ChannelFull", "IPCChannelLayer", "MessageTooLarge"]


class ChannelFull(exceptions.ChannelFull, channels_exceptions.ChannelFull):
    """Both this package's and Channels' ``ChannelFull``."""


class MessageTooLarge(exceptions.MessageTooLarge, channels_exceptions.MessageTooLarge):
    """Both this package's and Channels' ``MessageTooLarge``."""


class IPCChannelLayer(AsyncIPCChannelLayer, BaseChannelLayer):
    """A channel layer for Django Channels 4 on one machine.

    The options are those of ``AsyncIPCChannelLayer``, all optional. Capacity counts per full
    channel name, so one slow websocket never fills another one's channel.
    """

    extensions: ClassVar[list[str]] = [*AsyncIPCChannelLayer.extensions]
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    async def send(
        self, channel: str, message: dict[str, Any], *, expiry: float | None = None
    ) -> None:
        """Queue a message; see ``AsyncIPCChannelLayer.send``."""
        try:
            await super().send(channel, message, expiry=expiry)
        except (exceptions.ChannelFull, exceptions.MessageTooLarge) as exc:
            raise _as_channels(exc) from exc

    async def send_many(
        self, messages: Iterable[tuple[str, dict[str, Any]]], *, expiry: float | None = None
    ) -> None:
        """Queue several messages; see ``AsyncIPCChannelLayer.send_many``."""
        try:
            await super().send_many(messages, expiry=expiry)
        except (exceptions.ChannelFull, exceptions.MessageTooLarge) as exc:
            raise _as_channels(exc) from exc

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member; see ``AsyncIPCChannelLayer.group_add``."""
        try:
            await super().group_add(group, channel)
        except exceptions.ChannelFull as exc:
            raise _as_channels(exc) from exc

    async def group_send(
        self,
        group: str,
        message: dict[str, Any],
        *,
        exclude: Iterable[str] = (),
        expiry: float | None = None,
    ) -> GroupSent:
        """Send to every member; see ``AsyncIPCChannelLayer.group_send``."""
        try:
            return await super().group_send(group, message, exclude=exclude, expiry=expiry)
        except exceptions.MessageTooLarge as exc:
            raise _as_channels(exc) from exc

    async def close_pools(self) -> None:
        """Do what ``close`` does, under the name channels_redis gave it."""
        await self.close()

    def check_name(self, channel: object) -> str:
        """Hold a name to Channels 4's rule, which knows no single-reader channels."""
        name = check_channel(channel)
        if "?" in name:
            raise InvalidName(
                f"channel name {name!r} has a '?': Django Channels 4 knows no single-reader "
                "channels, use new_channel()"
            )
        return name

    def require_valid_channel_name(self, name: str, receive: bool = False) -> bool:
        """Return True, or raise ``InvalidName`` (a ``TypeError``)."""
        self.check_name(name)
        check_channel(name, receive=receive)
        return True

    def require_valid_group_name(self, name: str) -> bool:
        """Return True, or raise ``InvalidName`` (a ``TypeError``)."""
        check_group(name)
        return True

    def non_local_name(self, name: str) -> str:
        """Return the part of a process-specific name up to and including its ``!``."""
        return home_of(name)


def _as_channels(exc: exceptions.IPCError) -> exceptions.IPCError:
    """Return the same error as one that code written for Channels catches too."""
    kind = ChannelFull if isinstance(exc, exceptions.ChannelFull) else MessageTooLarge
    error = kind(*exc.args)
    error.__dict__.update(exc.__dict__)
    return error
