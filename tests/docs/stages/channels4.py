"""A Django site with one consumer and one order, as docs/channels4.md imagines it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from channels.layers import channel_layers, get_channel_layer
from django.conf import settings

settings.configure(SECRET_KEY="tests", CHANNEL_LAYERS={})

event = {"type": "chat.message", "text": "hello"}
channels = ["tasks", "mails"]
order = SimpleNamespace(id=7)


class Self:
    """The consumer whose code an example is."""

    channel_name = "specific.abc!def"


async def announce(order: Any, layer: Any) -> None:
    """Tell the group of an order."""
    await layer.group_send("orders", {"type": "order.placed", "id": order.id})


def names(prefix: str) -> dict[str, Any]:
    """Return the names, with the setting in force."""
    backend = "asgi_ipc.channels.IPCChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"prefix": prefix}}}
    get_channel_layer().sync.send("answers", {"what waits": "there"})
    return {
        "announce": announce,
        "channel_layers": channel_layers,
        "channels": channels,
        "event": event,
        "get_channel_layer": get_channel_layer,
        "order": order,
        "pytest": pytest,
        "self": Self,
    }
