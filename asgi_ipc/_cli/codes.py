"""Exit codes: what a script that runs the command can tell apart."""

from __future__ import annotations

from enum import IntEnum

from .._operator.image import NoSite
from ..exceptions import (
    ChannelFull,
    InvalidMessage,
    InvalidName,
    MessageTooLarge,
    SegmentError,
    SharedMemoryFull,
    StoreLocked,
    TooManyLoops,
    UnserialisableValue,
)

__all__ = ["Code", "code_of"]


class Code(IntEnum):
    """Exit codes; the names, in lower case, are the ``code`` of an error in JSON."""

    OK = 0
    PROBLEM = 1
    """``check`` or ``doctor`` found something wrong; or an error that has no code of its own."""
    USAGE = 2
    """A wrong option, name or message."""
    NO_SITE = 3
    """There are no segments of that prefix."""
    LOCKED = 4
    """A stopped process holds a segment's lock, or somebody held it for too long."""
    UNUSABLE = 5
    """The segments cannot be used: permissions, another layout version, damaged bytes."""
    NOTHING = 6
    """No message came in time."""
    FULL = 7
    """The channel, or the memory, is full."""
    ATTACHED = 8
    """``unlink`` refused, because processes are attached."""
    MISSING = 9
    """Something that is not installed is needed."""


_CODES: tuple[tuple[type[Exception], Code], ...] = (
    (NoSite, Code.NO_SITE),
    (StoreLocked, Code.LOCKED),
    (ChannelFull, Code.FULL),
    (MessageTooLarge, Code.FULL),
    (SharedMemoryFull, Code.FULL),
    (TooManyLoops, Code.FULL),
    (InvalidName, Code.USAGE),
    (InvalidMessage, Code.USAGE),
    (UnserialisableValue, Code.USAGE),
    (SegmentError, Code.UNUSABLE),
)


def code_of(exc: Exception) -> Code:
    """Return the exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(exc, kind)), Code.PROBLEM)
