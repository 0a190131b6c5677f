"""Every setting of the interface server and of its layer, in one place.

From the environment, the field ``request_timeout`` is ``ASGI_IPC_REQUEST_TIMEOUT``, and so
for all of them; ``as_environment`` is the way back, for processes that are started anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..aio import DEFAULT_GROUP_MEMORY, DEFAULT_MESSAGE_MEMORY, AsyncIPCChannelLayer
from ..sync import IPCChannelLayer

__all__ = ["InterfaceOptions", "LayerOptions", "core_of"]

MIB = 1 << 20
_PREFIX = "ASGI_IPC_"


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: parse(text) if text.strip().lower() not in ("", "none") else None


def _capacities(text: str) -> dict[str, int]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError('must be a JSON object such as {"http.request": 200}')
    return value


_PARSERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "str | None": _optional(str),
    "int": int,
    "int | None": _optional(int),
    "float": float,
    "float | None": _optional(float),
    "tuple[str, ...]": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
    "dict[str, int] | None": _optional(_capacities),
}
# Where a setting is written another way than its type is.
_SPECIAL: dict[str, Callable[[str], Any]] = {"mode": lambda text: int(text, 8)}


class _FromEnvironment:
    """What both kinds of options can do."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the options from variables named ``ASGI_IPC_<FIELD>``; what is not set is default.

        Raises:
            ValueError: a variable cannot be read, or has an impossible value; it is named.
        """
        environment = os.environ if environment is None else environment
        found = {}
        for field in fields(cls):  # type: ignore[arg-type]
            name = _PREFIX + field.name.upper()
            if name in environment:
                parse = _SPECIAL.get(field.name) or _PARSERS[str(field.type)]
                try:
                    found[field.name] = parse(environment[name])
                except ValueError as exc:
                    raise ValueError(f"{name}={environment[name]!r}: {exc}") from exc
        return cls(**found)

    def as_environment(self) -> dict[str, str]:
        """Return the variables that ``from_environment`` reads these options from."""
        variables = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, tuple):
                text = ",".join(value)
            elif isinstance(value, dict):
                text = json.dumps(value)
            else:
                text = f"{value:o}" if field.name == "mode" else str(value)
            variables[_PREFIX + field.name.upper()] = text
        return variables


@dataclass(frozen=True)
class LayerOptions(_FromEnvironment):
    """The options of the layer that ``make`` builds; see ``AsyncIPCChannelLayer``.

    ``prefix``, ``expiry`` and ``group_expiry`` must be what the workers have.
    """

    prefix: str = "asgi"
    expiry: float = 60.0
    group_expiry: float = 86400.0
    capacity: int = 100
    channel_capacity: dict[str, int] | None = None
    message_memory: int = DEFAULT_MESSAGE_MEMORY
    group_memory: int = DEFAULT_GROUP_MEMORY
    max_message_bytes: int | None = None
    mode: int = 0o600
    lock_timeout: float = 10.0

    def make(self) -> AsyncIPCChannelLayer:
        """Build the layer, attached to shared memory.

        Raises:
            ValueError, TypeError: an option is impossible.
            IPCError: the segments cannot be used; see ``exceptions``.
        """
        return AsyncIPCChannelLayer(
            **{field.name: getattr(self, field.name) for field in fields(self)}
        )


@dataclass(frozen=True)
class InterfaceOptions(_FromEnvironment):
    """How the interface server behaves.

    Attributes:
        request_timeout: seconds a worker may take for a response, and between two chunks of
            one: 504 before it has begun, a cut connection afterwards.
        client_timeout: seconds a client may stand still before or in its request body (408), or
            take nothing of a response that waits for it (cut).
        websocket_connect_timeout: seconds a worker may take to accept or refuse.
        websocket_timeout: seconds after which an open websocket is closed with 1000; ``None``:
            the layer's ``group_expiry``, as Daphne 1 does.
        websocket_full_timeout: seconds to wait for room in ``websocket.receive`` before the
            socket is closed with 1013. Its client is not read meanwhile.
        websocket_buffer_bytes: memory that what waits for a websocket's client may take before it
            is closed with 1013: about 150 bytes a message beside its payload. A single one may
            be larger.
        response_buffer_bytes: what an HTTP client may be behind before the worker is slowed
            down. Beyond ``memory_bytes`` it waits in a temporary file.
        max_body_bytes: the largest request body; 413 beyond. ``None``: any.
        inline_body_bytes: the largest body that goes into ``http.request`` itself; a larger
            one goes through a body channel.
        chunk_bytes: size of a chunk of such a body.
        memory_bytes: what one body, or one response, holds in memory before a file is used.
        shutdown_timeout: seconds that the end of the application waits for answers in flight. An
            ASGI server waits by itself before: ``serve`` gives uvicorn the same limit.
        websocket_protocols: subprotocols to agree to: the first one that the client offers.
        root_path: the path that the site is mounted at, if not what the ASGI server says.
        root_path_header: a request header that names it, such as ``daphne-root-path``. Only
            for servers behind a proxy that sets or removes it: clients could send it, too.
    """

    request_timeout: float = 120.0
    client_timeout: float = 60.0
    websocket_connect_timeout: float = 20.0
    websocket_timeout: float | None = None
    websocket_full_timeout: float = 5.0
    websocket_buffer_bytes: int = 16 * MIB
    response_buffer_bytes: int = 1024 * MIB
    max_body_bytes: int | None = 1024 * MIB
    inline_body_bytes: int = MIB
    chunk_bytes: int = MIB // 2
    memory_bytes: int = MIB
    shutdown_timeout: float = 30.0
    websocket_protocols: tuple[str, ...] = ()
    root_path: str | None = None
    root_path_header: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"{field.name} must be above 0, not {value}")


def core_of(layer: AsyncIPCChannelLayer | IPCChannelLayer) -> AsyncIPCChannelLayer:
    """Return the async layer of whatever face somebody has."""
    return layer.core if isinstance(layer, IPCChannelLayer) else layer
