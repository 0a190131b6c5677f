"""A socket that hears of orders, and a worker that ships them."""

import os
from typing import ClassVar

from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer


class Feed(AsyncJsonWebsocketConsumer):
    """Every socket is in one group."""

    groups: ClassVar[list[str]] = ["orders"]

    async def connect(self):
        """Say which process this is."""
        await self.accept()
        await self.send_json({"pid": os.getpid()})

    async def receive_json(self, content):
        """Tell everybody."""
        await self.channel_layer.group_send("orders", {"type": "order", "said": content})

    async def order(self, event):
        """Pass it on."""
        await self.send_json({"said": event["said"]})


class Shipping(SyncConsumer):
    """What ``runworker`` runs."""

    def ship(self, event):
        """Say who did it."""
        get_channel_layer().sync.send("shipped", {"n": event["n"], "pid": os.getpid()})
