"""Websocket consumers and a background one."""

# ruff: noqa: ARG001  (Django and Channels say which arguments there are)

import os

from channels import Group
from channels.exceptions import DenyConnection
from channels.sessions import enforce_ordering


def echo_connect(message):
    """Accept."""
    message.reply_channel.send({"accept": True})


def echo_receive(message):
    """Send every frame back as it came: text as text, bytes as bytes."""
    if message.get("bytes") is not None:
        message.reply_channel.send({"bytes": message["bytes"]})
    else:
        message.reply_channel.send({"text": message["text"]})


def room_connect(message, room):
    """Join the room; say so."""
    Group(f"room-{room}").add(message.reply_channel)
    message.reply_channel.send({"accept": True, "text": "joined"})


def room_receive(message, room):
    """Send the frame to everybody in the room, its sender included."""
    Group(f"room-{room}").send({"text": message["text"]})


def room_disconnect(message, room):
    """Leave the room."""
    Group(f"room-{room}").discard(message.reply_channel)


@enforce_ordering
def ordered_connect(message):
    """Accept."""
    message.reply_channel.send({"accept": True}, immediately=True)


@enforce_ordering
def ordered_receive(message):
    """Send the frame back, with the process that had it; frames come back in their order.

    `immediately`, since the next frame may be handled elsewhere before this consumer has
    finished, which is when messages are sent otherwise.
    """
    reply = f"{message['text']} {os.getpid()}"
    message.reply_channel.send({"text": reply}, immediately=True)


def denied_connect(message):
    """Refuse the handshake."""
    raise DenyConnection("nobody may connect here")


def shout(message):
    """Do what a view left for later: send its text to the room in capitals."""
    Group(f"room-{message['room']}").send({"text": message["text"].upper()})


def nothing(message):
    """Ignore the message."""
