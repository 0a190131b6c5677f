"""One process of the site: its layer, its tasks or threads, its birth and its end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc.channels import IPCChannelLayer as ChannelsLayer

from .behaviours import Behaviours
from .board import END, RUN, Board
from .hands import AioFace, Face, Hands, InterruptedFace, OldFace, TwinFace, by_hand
from .journal import Journal, write_logs_to
from .plan import ALL_CAPACITY, SMALL_CAPACITY, WORK, Life, Plan, home_of_slot

__all__ = ["OPTIONS", "become_user", "live"]

OPTIONS: dict[str, Any] = {
    "expiry": 3600,
    "capacity": ALL_CAPACITY,
    "channel_capacity": {"small.*": SMALL_CAPACITY},
    "message_memory": 16 << 20,
    "group_memory": 4 << 20,
}
_DEATH_SIGNAL = 1
_PAD = b"this line is not the layer's\n"


def become_user(user: int) -> None:
    """Give up root's rights for good, and end with the parent."""
    if user and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    # Only now: whoever changes its user is not told of its parent's death any more.
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


class Process:
    """What the threads and tasks of one process share."""

    def __init__(self, plan: Plan, slot: int, number: int, folder: Path, board: Board) -> None:
        self.plan = plan
        self.life: Life = plan.lives[slot][number]
        self.slot = slot
        self.number = number
        self.board = board
        self.home = home_of_slot(slot)
        floor = min(plan.descriptors, 1024) - 2
        self.journal = Journal(folder / f"{slot}.{number}.journal", f"{slot}.{number}", floor)
        self.is_asked_to_end = False
        self.may_run_short = plan.descriptors <= 128  # of descriptors, even before the layer does
        self.busy: set[str] = set()  # who has something left to do before all is settled
        self.strangers: list[IO[bytes]] = []
        self.streams = itertools.count(1)
        write_logs_to(self.journal)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # loops closed in the middle

    # -- birth ---------------------------------------------------------------------------

    def attach(self) -> None:
        """Make the layer, amid what the life has in store for its descriptors."""
        if self.life.closed_output:
            for fd in range(3):
                os.close(fd)
        self.before = _descriptors()
        options = {**OPTIONS, "prefix": self.plan.prefix}
        self.layer: Any
        if self.life.face == "old":
            self.layer = IPCChannelLayer(**options, block_timeout=0.1)
            self.layer.core.on_drop = self.on_drop  # Channels 1 has no such option
        else:
            kind = ChannelsLayer if self.life.face == "channels" else AsyncIPCChannelLayer
            self.layer = kind(**options, on_drop=self.on_drop)
        if self.life.daemonises:
            by_hand(self.hands().send(WORK[0], 100))
            os.closerange(3, self.journal.fd)
            self.journal.say("daemonised")
        for _ in range(3):  # they take the numbers that are free now
            self.strangers.append(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115, kept open
            self.strangers[-1].write(_PAD)

    def on_drop(self, drop: Any) -> None:
        self.journal.say("drop", drop.channel, drop.members, drop.depth, drop.capacity, drop.cause)

    def face(self) -> Face:
        """Return a face for a thread of control without an event loop."""
        return OldFace(self.layer) if self.life.face == "old" else TwinFace(self.layer)

    def hands(self, face: Face | None = None) -> Hands:
        face = face or self.face()
        return Hands(face, self.journal, next(self.streams), self.may_run_short)

    # -- life ----------------------------------------------------------------------------

    def in_thread(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine that never suspends in a thread that nobody waits for."""

        def run() -> None:
            try:
                by_hand(coroutine)
            except BaseException:
                self.journal.say("error", f"{name}: {traceback.format_exc(limit=-12)}")

        threading.Thread(target=run, name=name, daemon=True).start()

    def on_term(self, *_: object) -> None:
        """End soon."""
        self.is_asked_to_end = True

    def is_over(self) -> bool:
        return self.board.phase == END or self.is_asked_to_end

    def look_around(self) -> None:
        """Say when all is done but for reading."""
        if self.board.phase != RUN and not self.busy:
            self.board.settle(self.slot, self.number)
        if self.life.closed_output:
            for fd in range(3):
                with suppress(OSError):  # what cannot be written to takes no harm
                    os.write(fd, _PAD)

    def run_in_threads(self, behaviours: Behaviours) -> None:
        """Everybody has a thread; the main thread sends and receives as well."""
        for name, behaviour in behaviours.in_threads():
            self.in_thread(name, behaviour)
        if self.life.is_interrupted:
            face = InterruptedFace(self.layer)
            face.spared = self.on_term.__code__
            signal.signal(signal.SIGALRM, face.on_signal)
            signal.setitimer(signal.ITIMER_REAL, 0.03, 0.0531)
            hands = self.hands(face)
        else:
            hands = self.hands()
        while not self.is_over():
            by_hand(behaviours.one_turn(hands))
            self.look_around()
        signal.setitimer(signal.ITIMER_REAL, 0)

    async def run_on_loop(self, behaviours: Behaviours) -> None:
        """Everybody is a task of one event loop, but for the second loops and a thread."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(behaviour, name=name) for name, behaviour in behaviours.on_loop()]
        while not self.is_over():
            self.look_around()
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    raise task.exception() or AssertionError
            await asyncio.sleep(0.03)
        if self.board.phase == END:
            await behaviours.wait_until_quiet()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await behaviours.take_rest(self.hands(AioFace(self.layer)))

    # -- end -----------------------------------------------------------------------------

    def end(self, behaviours: Behaviours) -> NoReturn:
        """End as planned: asked in the middle of everything, or when all is settled."""
        if self.board.phase == END:
            if self.life.face in ("twin", "old"):
                behaviours.wait_for_readers()
                by_hand(behaviours.take_rest(self.hands()))
            self.journal.say("settled")
            self._check_what_is_left()
        elif self.life.end == "close":
            self.hands().close()
        self.journal.say("over")
        if self.life.end == "_exit":
            os._exit(0)
        sys.exit(0)  # threads may still send

    def _check_what_is_left(self) -> None:
        for stranger in self.strangers:
            stranger.seek(0)
            content = stranger.read()
            if content.replace(_PAD, b"") or not content:
                self.journal.say("error", f"a file of somebody else holds {content[:200]!r}")
            stranger.close()
        self.face().close()
        gc.collect()
        left = {fd: link for fd, link in _descriptors().items() if fd not in self.before}
        for stream in ("0", "1", "2"):  # of who was born without them: for ever
            if left.get(stream) == os.devnull:
                del left[stream]
        # Numbers that were closed underneath a layer may be lost to it, not to the process.
        if left and not self.life.daemonises:
            self.journal.say("left", left)


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # that of this very listing
    return found


def live(plan: Plan, slot: int, number: int, folder: Path, board: Board) -> NoReturn:
    """Be a process of the site, from birth to end."""
    process = Process(plan, slot, number, folder, board)
    try:
        signal.signal(signal.SIGTERM, process.on_term)
        become_user(plan.user)
        random.seed(process.life.seed)
        process.journal.say("born", os.getpid(), process.life.face)
        process.attach()
        behaviours = Behaviours(process)
        by_hand(behaviours.settle_in(process.hands()))
        if process.life.face in ("twin", "old"):
            process.run_in_threads(behaviours)
        else:
            asyncio.run(process.run_on_loop(behaviours))
        process.end(behaviours)
    except SystemExit:
        raise
    except BaseException:
        process.journal.say("error", traceback.format_exc(limit=-12))
        time.sleep(0)
        os._exit(1)
