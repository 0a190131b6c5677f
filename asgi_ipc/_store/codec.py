"""Messages to bytes and back: msgpack, and never anything that can run code.

What comes back is what went in, but for what msgpack cannot tell apart: a tuple becomes
a list, ``bytearray`` and ``memoryview`` become ``bytes``, a subclass of ``str``, ``int``
or ``dict`` its base type. What cannot be read back is not accepted.

Beyond the specification, msgpack's own ``Timestamp`` and ``ExtType`` are carried as they are, and a
message may be nested as deeply as msgpack packs it: 511 levels, 1,024 from msgpack 1.2 on.

A layer may have hooks of its user's, ``default`` and ``object_hook``, which are msgpack's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgpack

from .._memory.scratch import give_back
from ..exceptions import InvalidMessage, SegmentCorrupt, UnserialisableValue

if getattr(msgpack, "version", (0,)) < (1, 0, 5):
    raise ImportError(
        "asgi_ipc needs msgpack 1.0.5 or newer, and what is installed is older or incomplete: the "
        "old distribution, msgpack-python, has the same files. Run pip uninstall msgpack-python, "
        "and then pip install --force-reinstall msgpack"
    )

__all__ = ["PLAIN", "RESERVED_KEY", "Codec", "Default", "ObjectHook"]

RESERVED_KEY = "__asgi_channel__"
_MAX_DEPTH = 1024  # how deep the search for a bad value goes: no msgpack packs more
_LONG_PATH = 200

_unpack = msgpack.unpackb


Default = Callable[[Any], Any]
"""What a value that msgpack does not know is sent as; ``TypeError``: it cannot be sent."""

ObjectHook = Callable[[dict[Any, Any]], Any]
"""What is returned in the place of each dict that is received, the innermost first."""


class _Packer(threading.local):
    """One packer a thread: making one costs as much as packing 1 KB (0.16 µs)."""

    def __init__(self, default: Default | None) -> None:
        self.pack = msgpack.Packer(default=default).pack


class _HookFailed(Exception):
    """Carries what an ``object_hook`` raised past what is caught around it."""


class Codec:
    """Encodes and decodes for one layer, with the hooks of its user."""

    def __init__(
        self, default: Default | None = None, object_hook: ObjectHook | None = None
    ) -> None:
        self._default = default
        self._packer = _Packer(default)
        self._hook = object_hook and _marked(object_hook)

    def encode(self, message: object) -> bytes:
        """Return the bytes of ``message``; ``message`` itself is never changed or kept.

        Raises:
            InvalidMessage: (an ``AssertionError``) not a dict, or it has the reserved key.
            UnserialisableValue: (a ``TypeError``) a value with no msgpack form, with its path.
        """
        if not isinstance(message, dict):
            raise InvalidMessage(
                f"message must be a dict, not {type(message).__name__}: {message!r}"
            )
        if RESERVED_KEY in message:
            raise InvalidMessage(f"message must not use the reserved key {RESERVED_KEY!r}")
        try:
            return self._packer.pack(message)  # type: ignore[no-any-return]
        except UnicodeEncodeError:
            # Lone surrogates (a file name from the operating system, say): the original package
            # carried them, so we do, on a slower path that others never pay for.
            pass
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise self._explain(message, exc) from exc
        try:
            return self._pack(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise self._explain(message, exc) from exc

    def _pack(self, value: object) -> bytes:
        packed: bytes = msgpack.packb(value, default=self._default, unicode_errors="surrogatepass")
        return packed

    def decode(self, body: bytes | memoryview) -> dict[str, Any]:
        """Return the message that ``encode`` made ``body`` from: a new, plain dict.

        Raises:
            SegmentCorrupt: the bytes are no message; they did not come from ``encode``.
            TypeError: the ``object_hook`` made something else than a dict of it; what the hook
                raises comes out of here too.
        """
        try:
            message = _unpack(body, strict_map_key=False, object_hook=self._hook)
        except (UnicodeDecodeError, TypeError, msgpack.exceptions.StackError):
            # Surrogates, or a tuple as a dict key, which msgpack made into a list, or one level
            # more than msgpack 1.2 unpacks, and packs.
            message = self._decode_unusual(body)
        except (ValueError, RecursionError) as exc:
            raise _no_message(body, exc) from exc
        except _HookFailed as exc:
            raise exc.args[0] from exc.args[0].__cause__
        if not isinstance(message, dict):
            what = f"it is a {type(message).__name__}, not a dict"
            if self._hook is not None:
                raise TypeError(f"object_hook must leave a message a dict: {what}")
            raise _no_message(body, TypeError(what))
        return message

    def decode_taken(self, body: bytes | memoryview) -> dict[str, Any]:
        """Decode what came out of a queue, and give its memory back if it was borrowed."""
        if not isinstance(body, memoryview):
            return self.decode(body)
        try:
            return self.decode(body)
        finally:
            give_back(body)

    def _decode_unusual(self, body: bytes | memoryview) -> Any:
        unpacker = msgpack.Unpacker(
            strict_map_key=False,
            unicode_errors="surrogatepass",
            object_pairs_hook=self._dict_with_tuple_keys,
            max_buffer_size=len(body),
        )
        unpacker.feed(body)
        try:
            count = unpacker.read_map_header()  # the outermost level by itself
            pairs = [(unpacker.unpack(), unpacker.unpack()) for _ in range(count)]
            if unpacker.tell() != len(body):
                raise ValueError("there is more than one object")
            return self._dict_with_tuple_keys(pairs)
        except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as exc:
            raise _no_message(body, exc) from exc
        except _HookFailed as exc:
            raise exc.args[0] from exc.args[0].__cause__

    def _dict_with_tuple_keys(self, pairs: list[tuple[Any, Any]]) -> Any:
        made = {_hashable(key): value for key, value in pairs}
        return made if self._hook is None else self._hook(made)

    def _explain(self, message: dict[Any, Any], cause: Exception) -> UnserialisableValue:
        found = self._find(message)
        if found is None and "recursion" in str(cause):
            found = "message", "nesting deeper than msgpack packs (511 levels, 1024 from 1.2 on)"
        if found is None:
            return UnserialisableValue(f"message cannot be sent: {cause}")
        path, reason = found
        return UnserialisableValue(
            f"{path}: {reason} cannot be sent: a message may hold str, bytes, int (64 bits), "
            "float, bool, None, list, tuple and dict"
        )

    def _find(self, message: dict[Any, Any]) -> tuple[str, str] | None:
        """Return the path to the first value msgpack refuses, and what it is."""
        todo: list[tuple[str, Any, int]] = [("message", message, 0)]
        while todo:
            path, value, depth = todo.pop()
            if depth > _MAX_DEPTH:
                return f"{path[:_LONG_PATH]}...", f"nesting deeper than {_MAX_DEPTH} levels"
            inner: list[tuple[str, Any, int]] = []
            if isinstance(value, dict):
                for key, one in value.items():
                    inner.append((f"{path} key {key!r}", key, depth + 1))
                    inner.append((f"{path}[{key!r}]", one, depth + 1))
            elif isinstance(value, (list, tuple)) and not isinstance(value, msgpack.ExtType):
                inner += [(f"{path}[{index}]", one, depth + 1) for index, one in enumerate(value)]
            else:
                try:
                    self._pack(value)
                except OverflowError:
                    return path, f"the integer {value} needs more than 64 bits and"
                except Exception:
                    return path, type(value).__name__
            todo += reversed(inner)
        return None


PLAIN = Codec()
"""What a layer without hooks uses, and who only looks."""


def _no_message(body: bytes | memoryview, cause: Exception) -> SegmentCorrupt:
    return SegmentCorrupt(
        f"a message of {len(body)} bytes was damaged in shared memory and is lost "
        f"({type(cause).__name__}: {cause}): stop every process that uses the segment, unlink it "
        "and start again"
    )


def _marked(hook: ObjectHook) -> ObjectHook:
    """Have what a hook raises told from what msgpack raises of damaged bytes."""

    def marked(made: dict[Any, Any]) -> Any:
        try:
            return hook(made)
        except Exception as exc:
            raise _HookFailed(exc) from exc

    return marked


def _hashable(key: Any) -> Any:
    """Return a key with lists made into tuples again; nested however deeply."""
    if not isinstance(key, list):
        return key
    lists = [key]
    for one in lists:  # which grows meanwhile
        lists += [part for part in one if isinstance(part, list)]
    made: dict[int, tuple[Any, ...]] = {}
    for one in reversed(lists):
        made[id(one)] = tuple(made.get(id(part), part) for part in one)
    return made[id(key)]
