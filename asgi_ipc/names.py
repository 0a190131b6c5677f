"""Rules for channel and group names.

A channel name is ASCII letters, digits, ``-``, ``_`` and ``.``, shorter than 100
characters, with at most one ``?`` (single-reader) or ``!`` (process-specific) after
its first character. A group name is the same without ``?`` and ``!``. (ASGI channel layer
specification, "Channels" and "Groups".) The original package's patterns let a trailing
newline and non-ASCII digits through; these do not.
"""

from __future__ import annotations

import re

from .exceptions import InvalidName

__all__ = [
    "CHANNEL_NAME",
    "GROUP_NAME",
    "MAX_NAME_LENGTH",
    "check_channel",
    "check_group",
    "home_of",
]

MAX_NAME_LENGTH = 99
CHANNEL_NAME = re.compile(r"[a-zA-Z0-9\-_.]+([?!][a-zA-Z0-9\-_.]*)?\Z")
GROUP_NAME = re.compile(r"[a-zA-Z0-9\-_.]+\Z")
_ALLOWED = "ASCII letters, digits, hyphens, underscores and full stops"


def home_of(channel: str) -> str:
    """Return the name of the queue a channel's messages live in.

    A process-specific name ``a!b`` lives in ``a!``; every other name in itself.
    """
    mark = channel.find("!")
    return channel if mark < 0 else channel[: mark + 1]


def check_channel(name: object, *, receive: bool = False) -> str:
    """Return ``name`` if it is a valid channel name.

    Args:
        name: what the caller gave.
        receive: hold it to the rule for a Channels 1 receive, where a
            process-specific name must end at its ``!``.

    Raises:
        InvalidName: (a ``TypeError``) naming the rule and the offending character.
    """
    if not isinstance(name, str):
        raise InvalidName(f"channel name must be a str, not {type(name).__name__}: {name!r}")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(_too_long("channel", name))
    if not CHANNEL_NAME.match(name):
        raise InvalidName(_explain("channel", name, "?!"))
    if name[-1] == "?":
        raise InvalidName(
            f"channel name {name!r} ends in '?': that is a pattern for new_channel(), not a channel"
        )
    if receive and "!" in name and name[-1] != "!":
        raise InvalidName(
            f"channel name {name!r} must end at its '!' to be received from: "
            f"receive from {home_of(name)!r}, which carries every channel below it"
        )
    return name


def check_group(name: object) -> str:
    """Return ``name`` if it is a valid group name.

    Raises:
        InvalidName: (a ``TypeError``) naming the rule and the offending character.
    """
    if not isinstance(name, str):
        raise InvalidName(f"group name must be a str, not {type(name).__name__}: {name!r}")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(_too_long("group", name))
    if not GROUP_NAME.match(name):
        raise InvalidName(_explain("group", name, ""))
    return name


def _too_long(what: str, name: str) -> str:
    return (
        f"{what} name has {len(name)} characters, and at most {MAX_NAME_LENGTH} are allowed: "
        f"{name[:40]!r}..."
    )


def _explain(what: str, name: str, marks: str) -> str:
    if not name:
        return f"{what} name is empty"
    seen_mark = False
    for position, character in enumerate(name):
        if character in marks:
            if position == 0:
                return f"{what} name {name!r} must not begin with {character!r}"
            if seen_mark:
                return f"{what} name {name!r} has a second '?' or '!' at position {position}"
            seen_mark = True
        elif not (character.isascii() and (character.isalnum() or character in "-_.")):
            return (
                f"{what} name {name!r} has {character!r} at position {position}: "
                f"only {_ALLOWED} are allowed"
            )
    return f"{what} name {name!r} is not valid"  # pragma: no cover - the loop finds a reason
