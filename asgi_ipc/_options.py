"""Options of a layer as attributes: each takes effect when it is set, or refuses to be.

An option is a plain entry of the layer's ``__dict__`` under its own name; these only see to who
may write it there, and to what is worked out from it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

__all__ = ["Changeable", "Fixed", "OfCore", "names_what_is_no_option", "refuse_unknown"]

P = ParamSpec("P")
T = TypeVar("T")


class _Option(Generic[T]):
    """What the kinds have in common."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, layer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, layer: object, owner: type) -> T: ...
    def __get__(self, layer: object | None, owner: type) -> Self | T:
        if layer is None:
            return self
        value: T = layer.__dict__[self.name]
        return value


class Fixed(_Option[T]):
    """An option that the segments were opened with: set once, by the constructor."""

    def __set__(self, layer: object, value: T) -> None:
        if self.name in layer.__dict__:
            raise AttributeError(
                f"{self.name} of a channel layer cannot be changed: give it to the constructor of "
                "another one",
                name=self.name,
                obj=layer,
            )
        layer.__dict__[self.name] = value


class _Deriving(Protocol):
    def _options_changed(self) -> None:
        """Work out anew what depends on the options."""


class Changeable(_Option[T]):
    """An option that holds from the next operation on."""

    def __init__(self, check: Callable[[Any, str], T]) -> None:
        """Take what returns the value if it is valid, and raises what names it otherwise."""
        self._check = check

    def __set__(self, layer: _Deriving, value: Any) -> None:
        valid = self._check(value, self.name)
        is_first = self.name not in layer.__dict__
        layer.__dict__[self.name] = valid
        if not is_first:
            layer._options_changed()


_OF_CHANNELS_REDIS = {
    "connection_kwargs",
    "hosts",
    "on_disconnect",
    "on_reconnect",
    "random_prefix_length",
    "serializer_format",
    "symmetric_encryption_keys",
}
_RENAMED = {"channel_memory": "message_memory"}  # before 1.4


def names_what_is_no_option(init: Callable[P, None]) -> Callable[P, None]:
    """Decorate a layer's ``__init__``: it names all that is no option of it, and does nothing."""
    known = frozenset(inspect.signature(init).parameters)

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        refuse_unknown(type(args[0]), known, options)
        init(*args, **options)

    return checked


def refuse_unknown(layer: type, known: Collection[str], options: Collection[str]) -> None:
    """Say what is wrong with options that a layer does not take, all at once.

    Raises:
        TypeError: there are some.
    """
    unknown = [option for option in options if option not in known]
    if not unknown:
        return
    redis = [option for option in unknown if option in _OF_CHANNELS_REDIS]
    says = [
        f"{option} is now {_RENAMED[option]}"
        if option in _RENAMED
        else f"there is no {option}" + _instead_of(option, known)
        for option in unknown
        if option not in redis
    ]
    if redis:
        what = "an option" if len(redis) == 1 else "options"
        listed = ", ".join(redis)
        says.append(f"{listed}: {what} of channels_redis; take them out, there is no connection")
    raise TypeError(f"{layer.__module__}.{layer.__qualname__}: {'; '.join(says)}")


def _instead_of(option: str, known: Collection[str]) -> str:
    import difflib

    close = difflib.get_close_matches(option, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


class _HasCore(Protocol):
    core: Any


class OfCore(Generic[T]):
    """An option of a face that wraps a layer, which has it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, face: None, owner: type) -> Self: ...
    @overload
    def __get__(self, face: _HasCore, owner: type) -> T: ...
    def __get__(self, face: _HasCore | None, owner: type) -> Self | T:
        if face is None:
            return self
        value: T = getattr(face.core, self.name)
        return value

    def __set__(self, face: _HasCore, value: Any) -> None:
        setattr(face.core, self.name, value)
