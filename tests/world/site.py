"""Carries out a plan: ``python -m tests.world.site plan.json folder``.

This process never touches the package: it starts the processes of the site as its children,
kills, stops and continues them, and writes down how each has ended. Orphans become its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from .board import END, SETTLE, Board
from .journal import Journal, read_facts
from .life import live
from .observer import census, drain
from .plan import Event, Plan

__all__ = ["Site"]

_PATIENCE_S = 40.0
_SUBREAPER, _DEATH_SIGNAL = 36, 1
# What would be imported later, when an ordinary user may not read it any more.
_LATE = ("encodings.idna", "concurrent.futures.thread", "tempfile", "subprocess", "linecache")


class Site:
    """The processes of a plan, as their parent sees them."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.board = Board()
        self.journal = Journal(folder / "site.journal", "site")
        self.lives = [-1] * len(plan.lives)
        self.pids = [0] * len(plan.lives)
        self.names: dict[int, str] = {}

    def start(self, name: str, body: Callable[[], None]) -> int:
        """Start a process as the plan's user; it ends with ``SystemExit`` or ``os._exit``."""
        pid = os.fork()
        if pid:
            self.names[pid] = name
            self.journal.say("started", name, pid)
            return pid
        os.setpgid(0, 0)
        os.close(self.journal.fd)
        errors = os.open(self.folder / f"{name}.errors", os.O_WRONLY | os.O_CREAT, 0o600)
        for fd in (1, 2):
            os.dup2(errors, fd)
        limit = self.plan.descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        # Where neither a daemoniser nor one without standard error takes it for its own.
        faulthandler.enable(fcntl.fcntl(errors, fcntl.F_DUPFD_CLOEXEC, min(limit, 1024) - 1))
        os.close(errors)
        body()
        sys.exit(0)

    def next_life(self, slot: int) -> None:
        """Start the next process of a slot."""
        self.lives[slot] += 1
        life = self.lives[slot]
        self.pids[slot] = self.start(
            f"{slot}.{life}", lambda: live(self.plan, slot, life, self.folder, self.board)
        )

    def reap(self) -> None:
        """Write down who has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.names.pop(pid, "")
            self.journal.say("gone", name, os.waitstatus_to_exitcode(status), pid)

    def wait(self, what: str, is_done: Callable[[], bool]) -> bool:
        """Wait until something is so; say so if it never is."""
        give_up = time.monotonic() + _PATIENCE_S
        while not is_done():
            self.reap()
            if time.monotonic() > give_up:
                self.journal.say("error", f"waited {_PATIENCE_S:.0f} s in vain: {what}")
                return False
            time.sleep(0.01)
        return True

    def is_gone(self, pid: int) -> bool:
        """Whether a child has ended."""
        self.reap()
        return pid not in self.names

    # -- what happens ------------------------------------------------------------------------

    def run(self) -> None:
        """Carry out the plan."""
        begun = time.monotonic()
        for slot in range(len(self.lives)):
            self.next_life(slot)
        for event in self.plan.events:
            self._until(begun + event.at_s)
            self.happen(event)
        self._until(begun + self.plan.seconds)
        self.board.phase = SETTLE
        self.wait("that all settle", self._all_have_settled)
        living = [
            (slot, self.plan.lives[slot][life].face)
            for slot, life in enumerate(self.lives)
            if self.pids[slot] in self.names
        ]
        self._run_to_end("census", lambda: census(self.plan, self.folder, living))
        self.board.phase = END
        self.wait("that all end", lambda: not self.names)
        self.kill_all()
        self._run_to_end("drain", lambda: drain(self.plan, self.folder, self._made_names()))
        self.journal.say("over")

    def _until(self, at_s: float) -> None:
        while (rest := at_s - time.monotonic()) > 0:
            self.reap()
            time.sleep(min(rest, 0.05))

    def happen(self, event: Event) -> None:
        """Do to a process what the plan says."""
        slot, pid = event.slot, self.pids[event.slot]
        name = f"{slot}.{self.lives[slot]}"
        self.journal.say("event", event.kind, name)
        if event.kind in ("kill", "end"):
            if not self.is_gone(pid):
                os.kill(pid, signal.SIGKILL if event.kind == "kill" else signal.SIGTERM)
            self.wait(f"that {name} ends", lambda: self.is_gone(pid))
            if pid in self.names:
                os.kill(pid, signal.SIGKILL)
            self.next_life(slot)
            return
        whom = pid if event.kind == "stop" else -pid
        try:
            os.kill(whom, signal.SIGSTOP)
            time.sleep(event.for_s)
            os.kill(whom, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it has ended by itself, which is written down as such

    def _all_have_settled(self) -> bool:
        return all(
            self.pids[slot] not in self.names or self.board.has_settled(slot, life)
            for slot, life in enumerate(self.lives)
        )

    def _run_to_end(self, name: str, body: Callable[[], None]) -> None:
        pid = self.start(name, body)
        if not self.wait(f"the {name}", lambda: self.is_gone(pid)):
            os.kill(pid, signal.SIGKILL)

    def _made_names(self) -> list[str]:
        calls: dict[tuple[str, int], str] = {}
        names = []
        for fact in read_facts(self.folder):
            if fact.kind == "do":
                calls[fact.who, fact.call] = fact.more[0]
            elif fact.kind == "end" and calls.get((fact.who, fact.call)) == "new_channel":
                names += fact.more[1:2]
        return [name for name in names if name]

    def kill_all(self) -> None:
        """Let nobody be left, orphans included; after ``END`` there should be nobody."""
        if self.wait("that orphans end", lambda: not self._children()):
            return
        for child in self._children():
            self.journal.say("error", f"process {child} was left behind")
            os.kill(int(child), signal.SIGKILL)

    def _children(self) -> list[str]:
        self.reap()
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _main() -> None:
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    for module in _LATE:
        importlib.import_module(module)
    asyncio.run(asyncio.to_thread(str))  # imports what it needs
    traceback.format_exc()
    gc.freeze()
    Site(Plan.load(Path(sys.argv[1])), Path(sys.argv[2])).run()


if __name__ == "__main__":
    _main()
