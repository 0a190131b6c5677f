"""What an examination says: one finding for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "CODES",
    "ORDER",
    "Finding",
    "Number",
    "Severity",
    "count",
    "error",
    "mib",
    "ok",
    "warning",
    "worst",
]

Severity = Literal["ok", "warning", "error"]
Number = int | float | str | bool | None | list[Any] | dict[str, Any]
ORDER: tuple[Severity, ...] = ("ok", "warning", "error")

CODES = {
    "shm-filesystem": "the shared-memory filesystem is there and fit for it",
    "shm-missing": "there is no shared-memory filesystem",
    "shm-disk": "the shared-memory filesystem is not in memory",
    "shm-readonly": "the shared-memory filesystem is mounted read-only",
    "shm-unsticky": "anybody may delete anybody's files in the shared-memory filesystem",
    "shm-inodes": "the shared-memory filesystem has no room for another file",
    "shm-space": "its free space against what the segments may still take",
    "shm-docker": "it has the 64 MiB that Docker and Kubernetes give, and that is too small",
    "shm-full": "it has no room left at all",
    "memory-available": "the memory behind it: of the machine and of the control group",
    "site-missing": "there is no site of this prefix",
    "segment": "a segment: its size, mode, owner and layout",
    "segment-missing": "one of the two segments is missing",
    "segment-unreadable": "a segment may not be read by whoever asks",
    "segment-not-ours": "something else stands in the place of a segment",
    "segment-original": "a segment of asgi_ipc 1.x stands there",
    "segment-unfinished": "a segment whose creator died half way",
    "segment-layout": "a segment of another layout version",
    "segment-damaged": "a segment whose numbers contradict each other",
    "segment-owner": "a segment that the site's user may not use",
    "segment-mode": "a segment or socket with other permissions than the site asks for",
    "segment-size": "a segment that was made with another size than the site asks for",
    "processes": "who is attached",
    "process-stopped": "an attached process is stopped",
    "segment-deleted": "a process still uses a segment that was deleted: the site is split",
    "segment-elsewhere": "a process uses a segment of this name in another /dev/shm",
    "stale-segments": "segments of other prefixes that nobody is attached to",
    "bells": "the directory of doors, and its sockets",
    "bells-owner": "the directory of doors, or a socket, belongs to another user",
    "bells-mode": "the directory of doors, or a socket, has other permissions than asked for",
    "bells-missing": "the doors of living loops were deleted",
    "stale-sockets": "sockets nobody listens on",
    "slots": "how many event loops receive",
    "slots-full": "nearly all slots for event loops are taken",
    "dead-slots": "slots of loops that are dead",
    "lock": "whether a segment's lock can be had",
    "lock-busy": "a segment's lock is held for long by a running process",
    "lock-stopped": "a segment's lock is held by a stopped process",
    "lock-frozen": "a segment's lock is held by a process of a frozen control group",
    "log-pending": "a killed process left an operation for the next one to finish",
    "memory": "how full a segment is",
    "memory-full": "a segment is nearly full, or was",
    "channels": "what waits in channels, and for how long",
    "channel-unread": "channels with old messages that nobody waits for",
    "clock": "the clocks that messages and slots are stamped with",
    "clock-namespace": "processes of the site have different monotonic clocks",
    "clock-stepped": "the wall clock was set back",
    "remove-ipc": "whether systemd-logind deletes the segments when a user logs out",
    "protected-regular": "the kernel's fs.protected_regular",
    "descriptors": "open files of the attached processes against their limits",
    "inotify": "inotify instances of the site's user against their limit",
    "versions": "versions of Python and of what is depended on",
}
"""Every code there is, and what it is about: ``docs/troubleshooting.md`` has a line for each."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        code: stable; one of ``CODES``.
        severity: "ok", "warning" (it works, and may not for long) or "error".
        what: one line.
        detail: the numbers behind it, in words.
        remedy: what to do, exactly; "" when nothing is to be done. Lines that begin with
            "$ " are commands.
        numbers: the same numbers for programs; sizes in bytes, times in seconds.
    """

    code: str
    severity: Severity
    what: str
    detail: str = ""
    remedy: str = ""
    numbers: dict[str, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def as_dict(self) -> dict[str, Number]:
        """Return it as what JSON can carry."""
        return asdict(self)


def ok(code: str, what: str, detail: str = "", **numbers: Number) -> Finding:
    """All is well."""
    return Finding(code, "ok", what, detail, "", numbers)


def warning(code: str, what: str, detail: str, remedy: str, **numbers: Number) -> Finding:
    """It works, and may not for long."""
    return Finding(code, "warning", what, detail, remedy, numbers)


def error(code: str, what: str, detail: str, remedy: str, **numbers: Number) -> Finding:
    """It does not work."""
    return Finding(code, "error", what, detail, remedy, numbers)


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the gravest severity among findings; "ok" when there are none."""
    return max((one.severity for one in findings), key=ORDER.index, default="ok")


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def mib(size_bytes: float) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / (1 << 20):.1f} MiB"
