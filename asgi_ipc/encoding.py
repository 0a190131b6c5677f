"""Values that msgpack does not know, ready to be used: dates, times, decimal numbers, UUIDs.

Give a layer both, in every process of a site::

    AsyncIPCChannelLayer(default=encoding.default, object_hook=encoding.object_hook)

or, in Django's settings, ``"default": "asgi_ipc.encoding.default"`` and
``"object_hook": "asgi_ipc.encoding.object_hook"``. A value travels as a dict with one key, so
who has no hooks receives that: ``{"$decimal": "1.50"}``. A dict of a message that looks like one
of these becomes such a value.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["default", "object_hook"]

_Make = Callable[[str], Any]


def _timedelta(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split(" "))
    return timedelta(days, seconds, microseconds)


# Type, key, to text, from text; a datetime is a date as well, so it comes first.
_KINDS: list[tuple[type, str, Callable[[Any], str], _Make]] = [
    (datetime, "$datetime", datetime.isoformat, datetime.fromisoformat),
    (date, "$date", date.isoformat, date.fromisoformat),
    (time, "$time", time.isoformat, time.fromisoformat),
    (timedelta, "$timedelta", lambda d: f"{d.days} {d.seconds} {d.microseconds}", _timedelta),
    (Decimal, "$decimal", str, Decimal),
    (UUID, "$uuid", str, UUID),
]
_MAKERS: dict[str, _Make] = {key: make for _, key, _, make in _KINDS}


def default(value: object) -> dict[str, str]:
    """Return what a value is sent as.

    A ``tzinfo`` comes back as the fixed offset from UTC that it had at that time.

    Raises:
        TypeError: it is of none of these types.
    """
    for kind, key, to_text, _ in _KINDS:
        if isinstance(value, kind):
            return {key: to_text(value)}
    raise TypeError(f"{type(value).__name__} has no form in a message")


def object_hook(made: dict[Any, Any]) -> Any:
    """Return the value that a dict stands for, or the dict.

    Raises:
        ValueError, decimal.InvalidOperation: its text is none of that type.
    """
    if len(made) == 1:
        ((key, text),) = made.items()
        make = _MAKERS.get(key) if isinstance(key, str) else None
        if make is not None and isinstance(text, str):
            return make(text)
    return made
