"""The commands ``check`` and ``repair``."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import typer

from .. import AsyncIPCChannelLayer
from .._operator import procfs
from .._operator.check import check_groups, check_messages
from .._operator.inspect import Inspector
from .._operator.reading import Loop
from .._shm import layout as L
from .._wake.bell import bells_directory, is_door
from .._wake.blocking import drive
from .._wake.removing import open_directory
from ..exceptions import SegmentCorrupt
from . import words
from .attaching import layer_of
from .codes import Code
from .options import AsJson, Patience, Prefix, ending, print_json

__all__ = ["check", "repair"]

_SWEEP_BUCKETS = 64
_NEW_S = 60.0  # a socket this young may belong to a loop that is just starting


@ending
def check(prefix: Prefix = "asgi", as_json: AsJson = False, patience: Patience = 1.0) -> None:
    """Check the structure of both segments, every list and every byte of it.

    On a copy: the lock is held for one copy of what is in use (9 ms for 100 MiB).
    """
    problems: dict[str, list[str]] = {}
    holds = []
    with Inspector(prefix, patience=patience) as inspector:
        for image, checker in (
            (inspector.messages, check_messages),
            (inspector.groups, check_groups),
        ):
            try:
                problems[image.name] = checker(image.copy())
            except SegmentCorrupt as exc:
                problems[image.name] = [str(exc)]
            holds.append(image.longest_hold_s)
        pending = [image.name for image in (inspector.messages, inspector.groups) if image.pending]
    count = sum(len(found) for found in problems.values())
    if as_json:
        print_json(
            {
                "prefix": prefix,
                "sound": not count,
                "problems": problems,
                "pending_log": pending,
                "longest_hold_s": max(holds),
            }
        )
    else:
        for name, found in problems.items():
            print(f"{name}: {'sound' if not found else words.many(len(found), 'problem')}")
            for problem in found:
                print(f"  {problem}")
        for name in pending:
            print(f"{name}: an operation of a killed process is to be finished by the next one")
    if count:
        if not as_json:
            print("stop every process of the site, then: asgi-ipc unlink, and start again")
        raise typer.Exit(int(Code.PROBLEM))


@ending
def repair(prefix: Prefix = "asgi", as_json: AsJson = False, patience: Patience = 10.0) -> None:
    """Do at once what the processes of a site do in passing.

    Finish what a killed process had begun, free the slots and sockets of the dead and ring
    others in their place, drop their memberships and what has expired, merge free memory. A
    sound site stays as it is; damaged bytes are not healed by this (see check).
    """
    with Inspector(prefix, patience=patience) as inspector:
        reading = inspector.read()
        replayed = [image.name for image in (inspector.messages, inspector.groups) if image.pending]
    with layer_of(prefix, patience=patience) as layer:
        for segment in (layer._site.messages.segment, layer._site.groups.segment):
            drive(layer._run(segment.transact, lambda: None))  # replays the log
        reaped = _reap(layer, reading.loops)
        expired = _sweep(layer)
        merged = _consolidate(layer)
    sockets = _remove_dead_sockets(prefix)
    if as_json:
        report = {
            "prefix": prefix,
            "replayed": replayed,
            "reaped": [{"slot": loop.slot, "pid": loop.pid} for loop in reaped],
            "expired": expired,
            "sockets_removed": sockets,
            "memory_merged": merged,
        }
        print_json(report)
        return
    for name in replayed:
        print(f"{name}: finished an operation that a killed process had committed")
    for loop in reaped:
        print(f"freed slot {loop.slot} of dead process {loop.pid}")
    print(
        f"dropped {words.many(expired, 'expired message')}, "
        f"removed {words.many(sockets, 'dead socket')}, "
        f"{'merged free memory' if merged else 'free memory was merged already'}"
    )


def _reap(layer: AsyncIPCChannelLayer, loops: list[Loop]) -> list[Loop]:
    """Free the slots of the dead, and drop the memberships of all homes they owned; whose?"""
    site = layer._site
    slots = site.messages.slots
    drive(layer._run(slots.reap_all))
    drive(layer._run(slots.segment.transact, slots.find_dead_homes))
    if slots.dead_homes:
        drive(layer._run(site.drop_dead_homes))
    return [loop for loop in loops if not slots.owns(loop.slot, loop.token)]


def _sweep(layer: AsyncIPCChannelLayer) -> int:
    """Drop what has expired, a few buckets a hold; return how many messages."""
    store = layer._site.messages
    before = drive(layer._run(store.statistics))["expired"]
    total = store.segment.heap_start - L.BUCKETS
    for _ in range(0, total, _SWEEP_BUCKETS):
        now = time.monotonic_ns()
        drive(layer._run(store.segment.transact, store.records.sweep, now, _SWEEP_BUCKETS))
    return drive(layer._run(store.statistics))["expired"] - before


def _consolidate(layer: AsyncIPCChannelLayer) -> bool:
    site = layer._site
    merged = [
        drive(layer._run(segment.transact, heap.consolidate))
        for segment, heap in (
            (site.messages.segment, site.messages.queues.heap),
            (site.groups.segment, site.groups.groups.heap),
        )
    ]
    return any(merged)


def _remove_dead_sockets(prefix: str) -> int:
    """Remove sockets nobody listens on; their names are random and never used again."""
    directory = bells_directory(prefix)
    doors = open_directory(directory)
    if doors is None:
        return 0
    removed = 0
    sockets = procfs.listening()
    try:
        for name in filter(is_door, os.listdir(doors)):
            path = os.path.join(directory, name)
            with suppress(OSError):  # ENOENT: its owner, or another process, was faster
                info = os.stat(name, dir_fd=doors, follow_symlinks=False)
                is_new = time.time() - info.st_ctime < _NEW_S
                if is_new or path in sockets or procfs.door_answers(path) is not False:
                    continue
                os.unlink(name, dir_fd=doors)
                removed += 1
    finally:
        os.close(doors)
    return removed
