"""Forks of all kinds, and what a forked child does with the layer that it inherits."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import traceback
from collections.abc import Callable

from .board import RUN, Board
from .hands import Hands, by_hand
from .journal import Journal
from .plan import GROUPS, SLOTS, WORK, home_of_slot

__all__ = ["FORKS", "fork", "live_as_child", "run_true"]

FORKS = ("os", "os", "daemon", "exec")


def fork(kind: str) -> int:
    """Fork with Python's hooks, or as a C program forks: uWSGI, say.

    The latter only before there are threads: a Python that is forked without its hooks while
    another thread waits for the interpreter waits for that thread for ever.
    """
    return int(ctypes.PyDLL(None).fork()) if kind == "c" else os.fork()


def run_true() -> None:
    """Start another program, as anybody may at any time."""
    subprocess.run(["/bin/true"], check=True)


def live_as_child(
    kind: str, name: str, journal: Journal, board: Board, make_hands: Callable[[], Hands], seed: int
) -> None:
    """Be a forked child to its end. Never returns."""
    status = 1
    try:
        if kind == "daemon" and os.fork():
            os._exit(0)
        journal.who = name
        journal.say("born", os.getpid(), kind)
        by_hand(_work(make_hands(), random.Random(seed), board))
        journal.say("over")
        status = 0
    except BaseException:
        journal.say("error", traceback.format_exc(limit=-12))
    finally:
        os._exit(status)


async def _work(hands: Hands, chance: random.Random, board: Board) -> None:
    """Send to everybody, receive, and be a member of a group for a while."""
    mine = await hands.new_channel()
    if mine is not None:
        await hands.receive([mine], 0.1)
    for _ in range(chance.randint(5, 80)):
        if board.phase != RUN:
            return
        action = chance.random()
        if action < 0.4:
            target = chance.choice((*WORK, home_of_slot(chance.randrange(SLOTS)) + "b"))
            await hands.send(target, chance.randint(0, 700))
        elif action < 0.6:
            await hands.receive([chance.choice(WORK)], chance.choice((0, 0.02)))
        elif action < 0.7:
            await hands.send_group(chance.choice(GROUPS), chance.randint(0, 700))
        elif mine is not None and action < 0.8:
            await hands.send(mine, 10)
            await hands.receive([mine], chance.choice((0, 0.02)))
        elif mine is not None and action < 0.85:
            await hands.join("g1", mine)
        await hands.face.sleep(chance.uniform(0, 0.01))
