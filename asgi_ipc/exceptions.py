"""Everything this package raises on purpose.

::

    IPCError
    ├── ChannelFull              a send found no room: the channel, or the memory
    ├── MessageTooLarge          the message can never fit
    ├── InvalidName              (also TypeError)       a channel or group name
    ├── InvalidMessage           (also AssertionError)  not a dict, or a reserved key
    ├── UnserialisableValue      (also TypeError)       a value inside a message
    ├── LayerClosed              the layer was closed while it was waited on
    ├── StoreLocked              another process holds the lock for too long
    ├── TooManyLoops             every slot for a receiving event loop is taken
    └── SegmentError
        ├── SegmentCorrupt       bytes in shared memory that no code of ours wrote
        ├── SegmentMismatch      another layout version, or not a segment at all
        ├── SegmentPermission    (also PermissionError) owner or mode
        └── SharedMemoryFull     (also OSError)         no room to create a segment

The classes that callers catch through a layer instance (``ChannelFull``,
``MessageTooLarge``) accept any arguments, because third parties raise them too. Where asgiref
1.x is installed they are those of its ``BaseChannelLayer`` as well.
"""

from __future__ import annotations

from . import _asgiref

__all__ = [
    "ChannelFull",
    "IPCError",
    "InvalidMessage",
    "InvalidName",
    "LayerClosed",
    "MessageTooLarge",
    "SegmentCorrupt",
    "SegmentError",
    "SegmentMismatch",
    "SegmentPermission",
    "SharedMemoryFull",
    "StoreLocked",
    "TooManyLoops",
    "UnserialisableValue",
]


class IPCError(Exception):
    """Base of every error of this package."""


class ChannelFull(IPCError, _asgiref.ChannelFull):
    """A message could not be queued; nothing was changed, send it again later.

    Attributes:
        channel: the name sent to, or ``None`` when raised by somebody else.
        depth: messages waiting in the channel when the send was refused.
        capacity: messages the channel may hold; ``None`` when it is the *memory* that is full.
        needed_bytes: what the message needed, when the memory is full.
        memory_bytes: size of the segment, when the memory is full.
    """

    def __init__(
        self,
        *args: object,
        channel: str | None = None,
        depth: int | None = None,
        capacity: int | None = None,
        needed_bytes: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        super().__init__(*args)
        self.channel = channel
        self.depth = depth
        self.capacity = capacity
        self.needed_bytes = needed_bytes
        self.memory_bytes = memory_bytes


class MessageTooLarge(IPCError, _asgiref.MessageTooLarge):
    """The encoded message is larger than the layer can ever carry.

    Attributes:
        message_bytes: its encoded size.
        limit_bytes: the largest size that is accepted.
    """

    def __init__(
        self,
        *args: object,
        message_bytes: int | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        super().__init__(*args)
        self.message_bytes = message_bytes
        self.limit_bytes = limit_bytes


class InvalidName(IPCError, TypeError):
    """A channel or group name breaks a rule of the specification."""


class InvalidMessage(IPCError, AssertionError):
    """A message is not a dict, or uses the reserved key ``__asgi_channel__``."""


class UnserialisableValue(IPCError, TypeError):
    """A value inside a message has no msgpack form; the text names its path."""


class LayerClosed(IPCError):
    """``close()`` was called while this receive was waiting."""


class StoreLocked(IPCError):
    """The lock of a segment could not be had within ``lock_timeout`` seconds.

    Attributes:
        holder_pid: process id of the holder, ``None`` when it cannot be told.
    """

    def __init__(self, *args: object, holder_pid: int | None = None) -> None:
        super().__init__(*args)
        self.holder_pid = holder_pid


class TooManyLoops(IPCError):
    """Every slot for a receiving event loop is taken by a living process."""


class SegmentError(IPCError):
    """A shared memory segment cannot be used; the text names the reason and the remedy."""


class SegmentCorrupt(SegmentError):
    """The bytes of a segment contradict themselves."""


class SegmentMismatch(SegmentError):
    """The segment belongs to another layout version, or is no segment of ours."""


class SegmentPermission(SegmentError, PermissionError):
    """The segment's owner or mode forbids its use."""


class SharedMemoryFull(SegmentError, OSError):
    """The shared-memory filesystem has no room for a new segment."""
