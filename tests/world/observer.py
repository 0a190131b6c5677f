"""The processes that look: one when all have settled, one when all have ended."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from asgi_ipc import AsyncIPCChannelLayer

from ..conftest import problems_of
from .hands import AioFace, Hands
from .journal import Journal, write_logs_to
from .life import OPTIONS, become_user
from .plan import GROUPS, LEAVES, SLOTS, SMALL, WORK, Plan, home_of_slot

__all__ = ["census", "drain"]

_PATIENCE_S = 20.0  # a loop looks by itself every 30 s: nobody may need that
_LARGE = 12 << 20  # of 16 MiB: it fits if everything was given back and merged


def census(plan: Plan, folder: Path, living: list[tuple[int, str]]) -> None:
    """Wait until the readers have everything, and write down who is in the groups."""
    journal = Journal(folder / "census.journal", "census")
    write_logs_to(journal)
    become_user(plan.user)
    layer = AsyncIPCChannelLayer(plan.prefix, **OPTIONS)
    read = {f"own.{slot}" for slot, _ in living} | {WORK[2]}
    if any(face in ("aio", "channels") for _, face in living):
        read |= {*WORK, SMALL[0]}
    if any(face == "old" for _, face in living):
        read |= {*WORK}
    for slot, _ in living:
        read |= {home_of_slot(slot) + leaf for leaf in LEAVES}
    if not living:
        read = set()
    give_up = time.monotonic() + _PATIENCE_S
    for channel in sorted(read):
        while count := layer.sync.channel_statistics(channel)["messages_pending"]:
            if time.monotonic() > give_up:
                journal.say("error", f"{count:.0f} messages lie in {channel} beside its readers")
                break
            time.sleep(0.01)
    for group in GROUPS:
        journal.say("census", group, layer.sync.group_channels(group))
    problems = problems_of(layer)
    if problems:
        journal.say("error", f"check, while they live: {problems}")
    layer.close_now()


def drain(plan: Plan, folder: Path, made_names: list[str]) -> None:
    """Take everything that is left, look at the segments, and remove the site."""
    journal = Journal(folder / "drain.journal", "drain")
    write_logs_to(journal)
    become_user(plan.user)
    journal.say("born", os.getpid(), "drain")
    layer = AsyncIPCChannelLayer(plan.prefix, **OPTIONS)
    names = [*WORK, *SMALL, *(f"own.{slot}" for slot in range(SLOTS))]
    names += [home_of_slot(slot) for slot in range(SLOTS)]
    names += sorted({name.partition("!")[0] + "!" if "!" in name else name for name in made_names})
    asyncio.run(_take_all(Hands(AioFace(layer), journal, 1, False), names))
    statistics = layer.sync.global_statistics()
    journal.say("statistics", statistics)
    for problem in problems_of(layer):
        journal.say("error", f"check, when all have ended: {problem}")
    layer.sync.send("large", {"body": bytes(_LARGE)})
    message = layer.sync.receive("large", 0)
    if message is None or len(message["body"]) != _LARGE:
        journal.say("error", "a large message does not come back")
    layer.sync.flush()
    for problem in problems_of(layer):
        journal.say("error", f"check, flushed: {problem}")
    layer.unlink()
    left = [name for name in os.listdir("/dev/shm") if name.startswith(plan.prefix)]
    if left:
        journal.say("error", f"left in /dev/shm: {left}")
    journal.say("over")


async def _take_all(hands: Hands, names: list[str]) -> None:
    for name in names:
        while (await hands.receive([name], 0))[1] is not None:
            pass
