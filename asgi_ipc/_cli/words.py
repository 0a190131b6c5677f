"""Numbers in words that people read: ages, sizes, rates."""

from __future__ import annotations

__all__ = ["age", "count", "many", "printable", "rate", "size"]


def age(seconds: float | None) -> str:
    """Return a duration: ``850 ms``, ``12.3 s``, ``4 m 05 s``, ``3 h 12 m``, ``5 d 02 h``."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def size(size_bytes: float) -> str:
    """Return a number of bytes: ``512 B``, ``1.5 KiB``, ``100.0 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB"):
        size_bytes /= 1024
        if size_bytes < 1024:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:.1f} GiB"


def count(number: float) -> str:
    """Return a whole number with its thousands apart."""
    return f"{number:,.0f}"


def many(number: int, noun: str) -> str:
    """Return a number of things: ``1 group``, ``2 groups``, ``2 processes``."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{count(number)} {noun}{ending}"


def printable(text: str) -> str:
    """Return a text on one line, without what would move a terminal's cursor about.

    What comes from outside, a command line or a message, goes through here.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def rate(per_second: float | None) -> str:
    """Return a rate per second; "" if it is not known yet."""
    if per_second is None:
        return ""
    return f"{per_second:.1f}/s" if 0 < per_second < 10 else f"{per_second:,.0f}/s"
