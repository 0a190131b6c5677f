"""asgi_ipc: a channel layer for everybody whose site lives on one machine."""

from __future__ import annotations

from ._store.fanout import Drop, GroupSent
from .aio import AsyncIPCChannelLayer
from .exceptions import ChannelFull, IPCError, MessageTooLarge
from .sync import IPCChannelLayer

__version__ = "2.0.0b1"

__all__ = [
    "AsyncIPCChannelLayer",
    "ChannelFull",
    "Drop",
    "GroupSent",
    "IPCChannelLayer",
    "IPCError",
    "MessageTooLarge",
    "__version__",
]
