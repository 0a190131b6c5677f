"""The doctor: looks at a site from outside and says what is wrong, and what to do about it.

* Only reads: it creates, attaches to and removes nothing, takes no slot and rings nobody. The
  running site pays with a few holds of its locks, of about a millisecond.
* Is bounded: it waits ``watch`` seconds for a lock that is held, not at all for a holder that
  is stopped, and looks at 20,000 channels at most.
* Works on what nobody can attach to: another layout, another user's, damaged, half made.
* Never raises for what it finds.

``python -m asgi_ipc doctor`` shows it; ``docs/troubleshooting.md`` goes from a symptom to a
code. Needs nothing beyond what the package itself needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...names import check_prefix
from .case import Case, open_case
from .content import check_clock, check_content
from .filesystem import check_filesystem
from .finding import CODES, ORDER, Finding, Severity, worst
from .loops import check_descriptors, check_doors, check_inotify, check_slots
from .segments import check_processes, check_segments, check_strangers
from .sites import StandingSite, sites
from .system import check_system

__all__ = ["CODES", "Finding", "Severity", "StandingSite", "examine", "sites", "worst"]

_CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    check_filesystem,
    check_segments,
    check_processes,
    check_doors,
    check_slots,
    check_content,
    check_clock,
    check_descriptors,
    check_inotify,
    check_strangers,
    check_system,
)


def examine(
    prefix: str,
    *,
    message_memory: int | None = None,
    group_memory: int | None = None,
    mode: int | None = None,
    user: int | None = None,
    watch: float = 0.1,
) -> list[Finding]:
    """Examine the site of ``prefix``, whether it runs or not.

    Args:
        prefix: the site's.
        message_memory: bytes, as the site is configured; ``None``: nothing is compared with it.
        group_memory: the same.
        mode: permission bits, as the site is configured; ``None``: what its files agree in.
        user: uid the site runs as; ``None``: this process's, and for root that of the
            processes that are attached, else of the segment.
        watch: seconds to wait for a lock that a running process holds.

    Returns:
        At least one finding for each thing that could be looked at, the gravest first, and
        those of one gravity in a fixed order.

    Raises:
        InvalidName: (``TypeError``) ``prefix`` cannot be one.
    """
    prefix = check_prefix(prefix)
    case = open_case(
        prefix,
        message_memory=message_memory,
        group_memory=group_memory,
        mode=mode,
        user=user,
        watch_s=watch,
    )
    try:
        findings: list[Finding] = []
        for check in _CHECKS:
            findings += check(case)
            if any(one.code == "shm-missing" for one in findings):
                break  # nothing else can be looked at
        return sorted(findings, key=lambda one: -ORDER.index(one.severity))
    finally:
        case.close()
