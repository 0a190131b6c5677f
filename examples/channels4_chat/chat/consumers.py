"""A socket in a room.

Who is here is kept nowhere: a newcomer says hello to the group and everybody answers it with
their own card. Of those who vanished without a word, because their process was killed, the
channel layer knows: they are no longer among the group's channels.
"""

import os

from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.conf import settings

TYPING_LASTS_S = 2.0
LONGEST_TEXT = 2000
LONGEST_NAME = 24


class Room(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.group = f"room.{self.scope['url_route']['kwargs']['name']}"
        self.known = {}  # channel -> card, of everybody here
        self.card = None
        await self.accept()
        await self.send_json(
            {
                "kind": "welcome",
                "id": self.channel_name,
                "process": settings.CHAT_PROCESS,
                "pid": os.getpid(),
            }
        )

    async def disconnect(self, _code):
        await self.channel_layer.group_discard(self.group, self.channel_name)
        if self.card:
            await self.everybody({"type": "who.left", "id": self.channel_name})

    async def everybody(self, event, **options):
        await self.channel_layer.group_send(self.group, event, **options)

    # -- from the browser ------------------------------------------------------------------

    async def receive_json(self, content):
        if content["kind"] == "name":
            await self.take_name(str(content["name"]).strip()[:LONGEST_NAME] or "Nobody")
        elif self.card and content["kind"] == "say":
            text = str(content["text"])[:LONGEST_TEXT]
            await self.everybody(
                {"type": "said", "card": self.card, "text": text, "mark": content.get("mark")}
            )
            if await self.vanished():
                await self.everybody({"type": "who.check"})
        elif self.card and content["kind"] == "typing":
            # Not to oneself; and worth nothing a moment later, so it is not kept longer.
            await self.everybody(
                {"type": "typing", "id": self.channel_name},
                exclude=[self.channel_name],
                expiry=TYPING_LASTS_S,
            )

    async def take_name(self, name):
        is_new = self.card is None
        self.card = {"id": self.channel_name, "name": name, "process": settings.CHAT_PROCESS}
        if is_new:
            await self.channel_layer.group_add(self.group, self.channel_name)
        await self.everybody({"type": "who.hello" if is_new else "who.here", "card": self.card})
        if is_new:
            await self.everybody({"type": "who.check"})

    async def vanished(self):
        here = await self.channel_layer.group_channels(self.group)
        return set(self.known).difference(here)

    # -- from the group --------------------------------------------------------------------

    async def said(self, event):
        await self.send_json(
            {"kind": "said", "card": event["card"], "text": event["text"], "mark": event["mark"]}
        )

    async def typing(self, event):
        await self.send_json({"kind": "typing", "id": event["id"]})

    async def who_hello(self, event):
        newcomer = event["card"]["id"]
        if newcomer != self.channel_name:
            await self.channel_layer.send(newcomer, {"type": "who.here", "card": self.card})
        await self.meet(event["card"], is_new=True)

    async def who_here(self, event):
        await self.meet(event["card"], is_new=False)

    async def meet(self, card, is_new):
        self.known[card["id"]] = card
        await self.send_json({"kind": "here", "card": card, "new": is_new})

    async def who_check(self, _event):
        for channel in await self.vanished():
            await self.who_left({"id": channel})

    async def who_left(self, event):
        if self.known.pop(event["id"], None):
            await self.send_json({"kind": "left", "id": event["id"]})
