"""Messages as JSON, for people and for scripts.

JSON lacks some of what a message may hold. Each such value is an object with one key:

============================ =============================================
``{"$bytes": "aGVsbG8="}``   bytes, in base64
``{"$float": "nan"}``        a float that is not a number, or infinite
``{"$dict": [[1, "one"]]}``  a dict with a key that is not a str, as pairs
``{"$timestamp": [1, 500]}`` msgpack's Timestamp: seconds, nanoseconds
``{"$ext": [5, "aGk="]}``    msgpack's ExtType: code, data in base64
============================ =============================================

A dict that has one such key of its own is written as ``$dict`` too, so what is printed by
``peek`` and ``receive`` always means the same again to ``send``.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack

from ..exceptions import InvalidMessage

__all__ = ["dumps", "from_json", "to_json"]

_MARKS = ("$bytes", "$float", "$dict", "$timestamp", "$ext")
_DEEP = 10_000  # levels of calls: a message has 1,024 at most, each of them two or three


@contextmanager
def _deep() -> Iterator[None]:
    """Let Python go as deep as a message can be nested."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def dumps(value: Any, **options: Any) -> str:
    """Do what ``json.dumps`` does, for whatever depth a message can have."""
    with _deep():
        return json.dumps(value, **options)


def to_json(value: Any) -> Any:
    """Return what ``dumps`` can write: of every message that can be received."""
    with _deep():
        return _marked(value)


def _marked(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": _base64(value)}
    if isinstance(value, msgpack.Timestamp):
        return {"$timestamp": [value.seconds, value.nanoseconds]}
    if isinstance(value, msgpack.ExtType):
        return {"$ext": [value.code, _base64(value.data)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, (list, tuple)):
        return [_marked(item) for item in value]
    if isinstance(value, dict):
        is_marked = len(value) == 1 and next(iter(value)) in _MARKS
        if is_marked or not all(isinstance(key, str) for key in value):
            return {"$dict": [[_marked(key), _marked(item)] for key, item in value.items()]}
        return {key: _marked(item) for key, item in value.items()}
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_json(text: str) -> dict[str, Any]:
    """Return the message that a text stands for.

    Raises:
        InvalidMessage: it is not JSON, not an object, or has a mark that makes no sense.
    """
    try:
        with _deep():
            message = _restored(json.loads(text))
    except (ValueError, TypeError, RecursionError, binascii.Error) as exc:
        raise InvalidMessage(
            f"the message {text[:40]!r} is not valid JSON of a message: {exc}"
        ) from exc
    if not isinstance(message, dict):
        raise InvalidMessage(
            f'the message must be a JSON object like \'{{"text": "hello"}}\', not {text[:40]!r}'
        )
    return message


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key == "$bytes":
            return base64.b64decode(inner, validate=True)
        if key == "$float":
            return float(inner)
        if key == "$dict":
            return {_as_key(_restored(k)): _restored(item) for k, item in inner}
        if key == "$timestamp":
            return msgpack.Timestamp(*inner)
        if key == "$ext":
            code, data = inner
            return msgpack.ExtType(code, base64.b64decode(data, validate=True))
    return {key: _restored(item) for key, item in value.items()}


def _as_key(key: Any) -> Any:
    return tuple(_as_key(part) for part in key) if isinstance(key, list) else key
