"""How many messages a channel may hold: a default, and patterns that override it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

__all__ = ["ChannelCapacity", "compile_capacities"]

ChannelCapacity = Mapping[str | re.Pattern[str], int]


def compile_capacities(
    channel_capacity: ChannelCapacity | None,
) -> list[tuple[re.Pattern[str], int]]:
    """Turn ``{glob or compiled regex: capacity}`` into ``[(regex, capacity), ...]``.

    The order is kept, because the first pattern that matches wins. A compiled regex is
    used through ``.match`` (anchored at the start only), as in every channel layer.

    Raises:
        TypeError: a pattern that is neither a glob nor a regex, or a capacity that is no int.
        ValueError: a capacity below 1.
    """
    compiled: list[tuple[re.Pattern[str], int]] = []
    patterns = channel_capacity or {}
    if not isinstance(patterns, Mapping):
        raise TypeError(
            f"channel_capacity must be a dict of globs or regexes and capacities, not {patterns!r}"
        )
    for pattern, capacity in patterns.items():
        check_capacity(capacity, f"channel_capacity[{pattern!r}]")
        if isinstance(pattern, str):
            compiled.append((re.compile(fnmatch.translate(pattern)), capacity))
        elif isinstance(pattern, re.Pattern):
            compiled.append((pattern, capacity))
        else:
            raise TypeError(
                f"channel_capacity keys must be globs or compiled regexes, not {pattern!r}"
            )
    return compiled


def check_capacity(capacity: object, what: str) -> int:
    """Return ``capacity`` if it is a positive int, else say what is wrong with ``what``."""
    if isinstance(capacity, bool) or not isinstance(capacity, int):
        raise TypeError(f"{what} must be an int (messages), not {capacity!r}")
    if capacity < 1:
        raise ValueError(f"{what} must be at least 1 message, not {capacity}")
    return capacity
