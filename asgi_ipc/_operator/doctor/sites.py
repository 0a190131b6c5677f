"""The sites of a machine: what stands in the shared-memory filesystem, and who uses it."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple

from ..._shm import layout as L
from ..._wake.bell import bells_directory
from .probe import is_alive
from .processes import Survey, survey
from .raw import Raw

__all__ = ["StandingSite", "State", "sites"]

_NAME = re.compile(r"([a-zA-Z0-9\-_.]+)-(messages|groups)\Z")
_KINDS = {"messages": L.KIND_MESSAGES, "groups": L.KIND_GROUPS}

State = Literal["alive", "stale", "unknown"]


class StandingSite(NamedTuple):
    """One prefix under which segments stand.

    Attributes:
        prefix: its name.
        owner: uid of the segments.
        pids: processes that are attached, as far as they can be seen.
        doors: sockets that somebody listens on, in whatever container.
        backed_bytes: memory of the machine that its segments take.
        created: wall clock when it was made, seconds; ``None``: it cannot be read.
        state: ``"stale"`` if nobody is attached; ``"unknown"`` if its users may not be looked at.
        note: why no process of this version can attach to it; "" if one can.
    """

    prefix: str
    owner: int
    pids: list[int]
    doors: int
    backed_bytes: int
    created: float | None
    state: State
    note: str


def sites(seen: Survey | None = None) -> list[StandingSite]:
    """Return every site that has a segment here, by prefix.

    Args:
        seen: who has mapped what, if that is known already.
    """
    base = os.path.dirname(bells_directory("asgi"))
    seen = survey() if seen is None else seen
    found: dict[str, list[Raw]] = {}
    for entry in sorted(os.listdir(base)):
        match = _NAME.match(entry)
        if match:
            raw = Raw(base, entry, _KINDS[match[2]])
            raw.close()
            if raw.info is not None and (raw.fd_was_refused or raw.is_ours or raw.is_original):
                found.setdefault(match[1], []).append(raw)
    return [_site(prefix, raws, seen) for prefix, raws in sorted(found.items())]


def _site(prefix: str, raws: list[Raw], seen: Survey) -> StandingSite:
    files = {(raw.info.st_dev, raw.info.st_ino) for raw in raws if raw.info is not None}
    pids = [
        pid
        for pid, process in sorted(seen.processes.items())
        if any((one.device, one.inode) in files for one in process.mappings)
    ]
    doors = _doors(prefix)
    owner = next(raw.info.st_uid for raw in raws if raw.info is not None)
    state: State = "stale"
    if pids or doors:
        state = "alive"
    elif seen.hidden and owner != os.geteuid():
        state = "unknown"
    created = [raw.word(L.CREATED) / 1e9 for raw in raws if raw.is_ours and raw.word(L.CREATED)]
    return StandingSite(
        prefix,
        owner,
        pids,
        doors,
        sum(raw.backed_bytes for raw in raws),
        min(created, default=None),
        state,
        next((note for raw in raws if (note := _note(raw))), ""),
    )


def _note(raw: Raw) -> str:
    if raw.fd_was_refused:
        return "may not be read"
    if raw.is_original:
        return "left by asgi_ipc 1.x"
    version = raw.word(L.VERSION_WORD)
    return "" if version in (0, L.LAYOUT_VERSION) else f"layout version {version}"


def _doors(prefix: str) -> int:
    """Return how many sockets of a site somebody listens on, in whatever container."""
    directory = bells_directory(prefix)
    try:
        return sum(is_alive(os.path.join(directory, one)) is True for one in os.listdir(directory))
    except OSError:
        return 0  # ENOENT: nobody ever waited; EACCES: another user's
