"""Where asgi_ipc 1.x had its layer: ``asgi_ipc.core.IPCChannelLayer``."""

from __future__ import annotations

from .sync import IPCChannelLayer

__all__ = ["IPCChannelLayer"]
