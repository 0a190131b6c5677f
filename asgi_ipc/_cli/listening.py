"""The command ``listen``: live traffic, without taking it from anybody.

A group is heard by a member of one's own. A channel has no members: its queue is looked at
200 times a second, by reading, and what its reader was faster to take is counted.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from .. import AsyncIPCChannelLayer
from .._operator import peek
from .._operator.inspect import Inspector
from .._store.codec import PLAIN
from ..exceptions import SegmentCorrupt
from ..names import check_channel, check_group
from . import words
from .attaching import layer_of
from .codes import Code
from .messages import dumps, to_json
from .options import AsJson, Patience, Prefix, ending, fail, print_json

__all__ = ["listen"]

_EVERY_S = 0.005


class _Heard:
    """Prints what is heard, and knows when it is enough."""

    def __init__(self, prefix: str, count: int, *, as_json: bool) -> None:
        self.prefix = prefix
        self.messages = 0
        self.missed = 0
        self.is_enough = asyncio.Event()
        self._count = count
        self._as_json = as_json

    def message(self, channel: str | None, group: str | None, message: Any) -> None:
        """Print a message, unless there were enough already."""
        if self.is_enough.is_set():
            return
        if self._as_json:
            self._print(channel, group, {"message": message})
        else:
            moment = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
            source = f"{channel} ({group})" if channel and group else channel or group
            print(f"{moment}  {source}  {dumps(message)}", flush=True)
        self.messages += 1
        if self.messages == self._count:
            self.is_enough.set()

    def gone(self, channel: str, missed: int) -> None:
        """Print that messages went by unseen."""
        self.missed += missed
        if self._as_json:
            self._print(channel, None, {"missed": missed})
        else:
            text = f"{words.many(missed, 'message')} of {channel} taken before they could be seen"
            print(text, file=sys.stderr, flush=True)

    def _print(self, channel: str | None, group: str | None, rest: dict[str, Any]) -> None:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        place = {"prefix": self.prefix, "at": moment, "channel": channel, "group": group}
        print_json(place | rest)


@ending
def listen(
    channels: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHANNEL]...", help="Channels, 'a!', or full names 'a!b'."),
    ] = None,
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    group: Annotated[
        list[str] | None, typer.Option("--group", "-g", help="This group. May be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many messages; 0: no end.")] = 0,
    seconds: Annotated[
        float | None, typer.Option("--for", min=0, metavar="SECONDS", help="End after so long.")
    ] = None,
    patience: Patience = 1.0,
) -> None:
    """Watch live traffic without taking it from anybody, a message a line.

    It joins a group as a member, and leaves it at the end: it hears all that the others hear. Of
    a channel it sees what waits for five milliseconds; what a reader takes sooner is counted.
    """
    names, group_names = (
        list(map(check_channel, channels or [])),
        list(map(check_group, group or [])),
    )
    if not names and not group_names:
        fail(Code.USAGE, "name a CHANNEL or a --group to listen to", as_json=as_json)
    heard = _Heard(prefix, count, as_json=as_json)
    asyncio.run(_listen(heard, names, group_names, seconds, patience))
    if not heard.messages and not heard.missed and seconds is not None:
        fail(Code.NOTHING, f"nothing was sent within {seconds:g} s", as_json=as_json)


async def _listen(
    heard: _Heard, channels: list[str], groups: list[str], seconds: float | None, patience: float
) -> None:
    """Listen until it is enough, time is over, or something is wrong."""
    async with AsyncExitStack() as stack:
        tasks = []
        if channels:
            inspector = stack.enter_context(Inspector(heard.prefix, patience=patience))
            marks = {name: peek.news(inspector.messages, name, None).mark for name in channels}
            tasks.append(asyncio.create_task(_watch(heard, inspector, marks)))
        if groups:
            layer = stack.enter_context(layer_of(heard.prefix, patience=patience))
        for name in groups:
            mine = await layer.new_channel("listen")
            await layer.group_add(name, mine)
            stack.push_async_callback(layer.group_discard, name, mine)
            tasks.append(asyncio.create_task(_attend(heard, layer, name, mine)))
        enough = asyncio.create_task(heard.is_enough.wait())
        try:
            print("listening", file=sys.stderr, flush=True)
            done, _ = await asyncio.wait(
                [enough, *tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {enough}:
                task.result()  # which is an error
        finally:
            for task in (enough, *tasks):
                task.cancel()
            await asyncio.gather(enough, *tasks, return_exceptions=True)


async def _attend(heard: _Heard, layer: AsyncIPCChannelLayer, group: str, mine: str) -> None:
    while True:
        heard.message(None, group, to_json(await layer.receive(mine)))


async def _watch(heard: _Heard, inspector: Inspector, marks: dict[str, peek.Mark]) -> None:
    while True:
        inspector.follow()
        for name in marks:
            news = peek.news(inspector.messages, name, marks[name])
            marks[name] = news.mark
            if news.missed:
                heard.gone(name, news.missed)
            for one in news.messages:
                try:
                    message = to_json(PLAIN.decode(one.body))
                except SegmentCorrupt as exc:
                    message = {"damage": str(exc)}
                heard.message(one.channel, one.group, message)
        await asyncio.sleep(_EVERY_S)
