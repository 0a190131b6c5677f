"""Rules for channel and group names.

A channel name is ASCII letters, digits, ``-``, ``_`` and ``.``, shorter than 100
characters, with at most one ``?`` (single-reader) or ``!`` (process-specific) after
its first character. A group name is the same without ``?`` and ``!``. (ASGI channel layer
specification, "Channels" and "Groups".) The original package's patterns let a trailing
newline and non-ASCII digits through; these do not.

A subclass of ``str`` (a member of a ``str`` enumeration, Django's ``TextChoices`` or
``SafeString``) names what its value says, whatever ``str()`` makes of it. So does what equals a
``str`` and hashes like it: one of Django's lazy strings names what its text is at that moment.

``name_for`` makes a valid name of any text.
"""

from __future__ import annotations

import base64
import hashlib
import re

from .exceptions import InvalidName

__all__ = [
    "CHANNEL_NAME",
    "GROUP_NAME",
    "MAX_NAME_LENGTH",
    "MAX_PREFIX_LENGTH",
    "check_channel",
    "check_group",
    "check_prefix",
    "home_of",
    "name_for",
    "text_of",
]

MAX_NAME_LENGTH = 99
MAX_PREFIX_LENGTH = 60  # it is in the path of a socket, which has 108 bytes in all
CHANNEL_NAME = re.compile(r"[a-zA-Z0-9\-_.]+([?!][a-zA-Z0-9\-_.]*)?\Z")
GROUP_NAME = re.compile(r"[a-zA-Z0-9\-_.]+\Z")
_ALLOWED = "ASCII letters, digits, hyphens, underscores and full stops"
_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9\-_.]+")
_MADE = ".."  # is in every name that `name_for` has changed, and in no other that it returns
_DIGEST_BYTES = 16
_DIGEST_LENGTH = 22  # of them in base 64, whose alphabet is a name's


def text_of(name: object) -> str | None:
    """Return the ``str`` that a name stands for, of that very type; ``None`` if it is none.

    What equals a ``str`` counts as it, as it does in a dict: names are looked up in one.
    """
    if isinstance(name, str):
        return str.__str__(name)
    if isinstance(name, bytes) or name.__hash__ is None:
        return None
    text = str(name)
    return text if hash(name) == hash(text) and name == text else None


def name_for(topic: str) -> str:
    """Return a name for any text, valid for a channel and for a group.

    The same text has the same name, in every process and release; two texts never share one. A
    text that is a valid group name, without two full stops in a row, stays as it is. Of any other
    as much as fits stays readable, and a digest follows: ``"room 1"`` becomes
    ``"room_1..``, 22 characters and ``"``. Two spellings of one letter in Unicode are two texts.

    Args:
        topic: of any length, with your own prefix in it: ``name_for(f"chat.{room}")``.

    Raises:
        InvalidName: (``TypeError``) it is no ``str``.
    """
    text = _text(topic, "topic")
    if len(text) <= MAX_NAME_LENGTH and _MADE not in text and GROUP_NAME.match(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]
    readable = _NOT_ALLOWED.sub("_", text)[: MAX_NAME_LENGTH - len(_MADE) - _DIGEST_LENGTH]
    return readable + _MADE + base64.urlsafe_b64encode(digest).decode()[:_DIGEST_LENGTH]


def home_of(channel: str) -> str:
    """Return the name of the queue a channel's messages live in.

    A process-specific name ``a!b`` lives in ``a!``; every other name in itself.
    """
    mark = channel.find("!")
    return channel if mark < 0 else channel[: mark + 1]


def check_channel(name: object, *, receive: bool = False) -> str:
    """Return ``name``, as a plain ``str``, if it is a valid channel name.

    Args:
        name: what the caller gave.
        receive: hold it to the rule for a Channels 1 receive, where a
            process-specific name must end at its ``!``.

    Raises:
        InvalidName: (a ``TypeError``) naming the rule and the offending character.
    """
    if type(name) is not str:
        name = _text(name, "channel name")
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
    """Return ``name``, as a plain ``str``, if it is a valid group name.

    Raises:
        InvalidName: (a ``TypeError``) naming the rule and the offending character.
    """
    if type(name) is not str:
        name = _text(name, "group name")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(_too_long("group", name))
    if not GROUP_NAME.match(name):
        raise InvalidName(_explain("group", name, ""))
    return name


def check_prefix(prefix: str) -> str:
    """Return the prefix of a site, as a plain ``str``, if it is valid.

    Raises:
        InvalidName: (``TypeError``) it is not; one like it that is comes with the error.
    """
    text = _text(prefix, "prefix")
    if text and len(text) <= MAX_PREFIX_LENGTH and GROUP_NAME.match(text):
        return text
    like = _NOT_ALLOWED.sub("-", text).strip("-")[:MAX_PREFIX_LENGTH] or "asgi"
    raise InvalidName(
        f"prefix {text!r} is not valid: it is 1 to {MAX_PREFIX_LENGTH} {_ALLOWED}. "
        f"{like!r} would do"
    )


def _text(name: object, what: str) -> str:
    text = text_of(name)
    if text is None:
        raise InvalidName(f"{what} must be a str, not {type(name).__name__}: {name!r}")
    return text


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
