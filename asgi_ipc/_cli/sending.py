"""The commands for scripts and debugging: ``send``, ``receive``, ``group-send``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from .. import AsyncIPCChannelLayer
from ..names import check_channel, check_group
from . import words
from .attaching import layer_of
from .codes import Code
from .messages import dumps, from_json, to_json
from .options import AsJson, Patience, Prefix, ending, fail, print_json

__all__ = ["group_send", "receive", "send"]

Message = Annotated[
    str,
    typer.Argument(
        metavar="JSON", help="A JSON object; '-' reads it from standard input. Bytes: $bytes."
    ),
]
Expiry = Annotated[
    float,
    typer.Option(min=0.001, metavar="SECONDS", help="When it is dropped unread."),
]
Capacity = Annotated[
    int, typer.Option(min=1, help="Messages the channel may hold; give what the site uses.")
]


def _text(message: str) -> str:
    if message != "-":
        return message
    return sys.stdin.read() if sys.stdin is not None else ""  # closed at the start


@ending
def send(
    channel: Annotated[str, typer.Argument(help="The channel's name.")],
    message: Message,
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    expiry: Expiry = 60,
    capacity: Capacity = 100,
    patience: Patience = 10.0,
) -> None:
    """Send one message to a channel."""
    check_channel(channel)
    content = from_json(_text(message))
    with layer_of(prefix, patience=patience, capacity=capacity) as layer:
        layer.sync.send(channel, content, expiry=expiry)
    if as_json:
        print_json({"prefix": prefix, "channel": channel, "sent": 1})


@ending
def group_send(
    group: Annotated[str, typer.Argument(help="The group's name.")],
    message: Message,
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    expiry: Expiry = 60,
    capacity: Capacity = 100,
    patience: Patience = 10.0,
) -> None:
    """Send one message to every member of a group; those that are full are skipped."""
    check_group(group)
    content = from_json(_text(message))
    with layer_of(prefix, patience=patience, capacity=capacity) as layer:
        reached, skipped = layer.sync.group_send(group, content, expiry=expiry)
    members = reached + skipped
    if as_json:
        print_json({"prefix": prefix, "group": group, "members": members, "skipped": skipped})
    else:
        print(f"{words.many(members, 'member')}, {skipped} of them full and skipped")


@ending
def receive(
    channel: Annotated[str, typer.Argument(help="A channel, 'a!', or a full name 'a!b'.")],
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Wait this long at most; 0: not at all."),
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="How many to receive; 0: no end.")] = 1,
    patience: Patience = 10.0,
) -> None:
    """Take messages from a channel and print them, one JSON object a line.

    Waits for ever unless --timeout is given. What is printed is gone from the channel.
    """
    check_channel(channel)
    if sys.stdout is None:
        fail(Code.USAGE, "standard output is closed: what is taken would be lost", as_json=False)
    with layer_of(prefix, patience=patience, block_timeout=timeout or None) as layer:
        received = 0
        while not count or received < count:
            got = asyncio.run(_receive(layer, channel, block=timeout != 0))
            if got is None:
                wait = f"within {timeout:g} s" if timeout else "just now"
                fail(Code.NOTHING, f"no message for {channel} {wait}", as_json=as_json)
            name, message = got
            try:
                if as_json:
                    print_json({"prefix": prefix, "channel": name, "message": message})
                else:
                    print(dumps(message), flush=True)
            except OSError:  # a full disk, a reader that has gone: it is in the channel no more
                print(f"asgi-ipc: taken, and not written: {dumps(message)}", file=sys.stderr)
                raise
            received += 1


async def _receive(
    layer: AsyncIPCChannelLayer, channel: str, *, block: bool
) -> tuple[str, object] | None:
    name, message = await layer.receive_async([channel], block)
    return None if name is None else (name, to_json(message))
