"""A running site as an operator sees it: channels, groups, loops, memory, counts.

Read-only, and beside a running site without disturbing it: nothing is created, written,
rung or swept, and the lock is held for about a millisecond at a time; see ``_operator/survey``.
"""

from __future__ import annotations

import os
import time

from .._process.witness import Life, Witness
from .._shm import layout as L
from .._wake.bell import bells_directory
from . import procfs
from .image import Image, LockHeld, NoSite, segment_name
from .reading import Channel, Group, Home, Leaf, Loop, Memory, Process, Reading, Totals
from .survey import HOLD_S, Messages, read_groups, read_memory, repeat_if_flushed

__all__ = [
    "HOLD_S",
    "Channel",
    "Group",
    "Home",
    "Inspector",
    "Leaf",
    "LockHeld",
    "Loop",
    "Memory",
    "NoSite",
    "Process",
    "Reading",
    "Totals",
]


class Inspector:
    """Reads one site again and again; attached read-only all the while."""

    def __init__(self, prefix: str, *, patience: float = 1.0) -> None:
        """Attach to both segments.

        Args:
            patience: seconds to wait for a lock whose holder is not stopped.

        Raises:
            SegmentError: see ``Image``; ``NoSite`` if there is nothing to attach to.
        """
        self.prefix = prefix
        self.patience = patience
        self.witness = Witness(bells_directory(prefix), 0)
        self.messages = Image(
            segment_name(prefix, L.KIND_MESSAGES), L.KIND_MESSAGES, patience=patience
        )
        try:
            self.groups = Image(
                segment_name(prefix, L.KIND_GROUPS), L.KIND_GROUPS, patience=patience
            )
        except BaseException:
            self.messages.close()
            raise

    def close(self) -> None:
        """Detach; idempotent."""
        self.messages.close()
        self.groups.close()
        self.witness.close()

    def __enter__(self) -> Inspector:
        """Return the inspector itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Detach."""
        self.close()

    def is_deleted(self) -> bool:
        """Whether somebody removed one of the segments' names."""
        return self.messages.is_deleted() or self.groups.is_deleted()

    def follow(self) -> None:
        """Attach to the new segments, if those attached to were deleted.

        Raises:
            SegmentError: there are no new ones, or they cannot be read; see ``__init__``.
        """
        if self.is_deleted():
            fresh = Inspector(self.prefix, patience=self.patience)
            self.close()
            self.messages, self.groups = fresh.messages, fresh.groups

    def read(self) -> Reading:
        """Read everything.

        Raises:
            LockHeld: a segment's lock could not be had.
            SegmentCorrupt: its bytes contradict themselves.
        """
        self.messages.longest_hold_s = self.groups.longest_hold_s = 0.0
        taken_at = time.time()
        messages = repeat_if_flushed(lambda: Messages(self.messages))
        groups = repeat_if_flushed(lambda: read_groups(self.groups))
        channels = messages.channels()
        memory = tuple(image.transact(read_memory, image) for image in (self.messages, self.groups))
        return Reading(
            prefix=self.prefix,
            taken_at=taken_at,
            created=messages.created_ns / 1e9,
            totals=messages.totals(channels),
            channels=channels,
            groups=groups,
            loops=messages.loops(channels),
            memory=(memory[0], memory[1]),
            pending_log=bool(self.messages.pending or self.groups.pending),
            longest_hold_s=max(self.messages.longest_hold_s, self.groups.longest_hold_s),
            taken_s=messages.taken_ns / 1e9,
        )

    def attached(self) -> set[int]:
        """Return the processes that have a segment of the site mapped, this one left out.

        Those of other users and of other PID namespaces are not seen.
        """
        files = [(image.name[1:], image.inode()) for image in (self.messages, self.groups)]
        return procfs.mapping(files) - {os.getpid()}

    def processes(self, loops: list[Loop]) -> list[Process]:
        """Return every process that is attached or owns a slot, with its loops."""
        attached = self.attached()
        by_pid: dict[int, list[Loop]] = {pid: [] for pid in attached}
        for loop in loops:
            by_pid.setdefault(loop.pid, []).append(loop)
        found = []
        for pid, owned in sorted(by_pid.items()):
            is_ours = pid in attached  # else the number means nothing here
            found.append(
                Process(
                    pid=pid,
                    attached=is_ours,
                    alive=is_ours or self._lives(owned),
                    state=procfs.state_of(pid) if is_ours else None,
                    command=procfs.command_line(pid) if is_ours else None,
                    loops=tuple(owned),
                )
            )
        return found

    def _lives(self, loops: list[Loop]) -> bool | None:
        """Whether the process of a loop lives, as its witness says."""
        lives = {self.witness.ask(loop.process) for loop in loops}
        if Life.ALIVE in lives:
            return True
        return None if Life.UNKNOWN in lives else False
