"""The message formats of Channels 1 (``docs/asgi/www.rst`` of 1.1.8), both ways. Pure.

What comes from workers is input: it is checked, and `Malformed` says in one line what is
wrong with it. Where Daphne 1 was more lenient than the specification, so is this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "BODYLESS",
    "Chunk",
    "Malformed",
    "Start",
    "WebSocketReply",
    "connect_message",
    "is_push",
    "parse_chunk",
    "parse_start",
    "parse_websocket_reply",
    "request_message",
    "select_subprotocol",
    "shown",
]

Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

BODYLESS = frozenset({204, 304})
"""Statuses that have no content, whatever a worker says."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[^\x00\r\n]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
# What frames the response is the ASGI server's business; the rest does not exist in HTTP/2.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_WEBSOCKET_KEYS = frozenset({"accept", "bytes", "close", "subprotocol", "text"})
# Those that may go over the wire (RFC 6455, 7.4, and the registry).
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


class Malformed(Exception):
    """A worker's message breaks the format; the text says how."""


# -- to workers --------------------------------------------------------------------------


def _address(value: Sequence[Any] | None) -> list[Any] | None:
    """Return ``[host, port]``; ``None`` for unix sockets, which have no port."""
    if value is None or len(value) != 2 or not value[0] or not isinstance(value[1], int):
        return None
    return [value[0], value[1]]


def _head(
    scope: Scope, reply_channel: str, root_path: str | None, root_path_header: bytes | None
) -> dict[str, Any]:
    """Return what the first message of any connection says."""
    root = scope.get("root_path", "") if root_path is None else root_path
    headers = []
    for header in scope["headers"]:
        name = header[0]
        if name == root_path_header:
            root = header[1].decode("latin-1")
        elif b"_" not in name:  # CVE-2015-0219: x_y and x-y are one in META
            headers.append(header)
    return {
        "reply_channel": reply_channel,
        "scheme": scope["scheme"],
        "path": scope["path"],
        "root_path": root,
        "query_string": scope["query_string"],
        "headers": headers,
        "client": _address(scope.get("client")),
        "server": _address(scope.get("server")),
    }


def request_message(
    scope: Scope,
    reply_channel: str,
    root_path: str | None,
    root_path_header: bytes | None,
    body: bytes,
    body_channel: str | None,
) -> dict[str, Any]:
    """Return an ``http.request``."""
    message = _head(scope, reply_channel, root_path, root_path_header)
    message["http_version"] = scope["http_version"]
    message["method"] = scope["method"].upper()
    message["body"] = body
    if body_channel is not None:
        message["body_channel"] = body_channel
    return message


def connect_message(
    scope: Scope, reply_channel: str, root_path: str | None, root_path_header: bytes | None
) -> dict[str, Any]:
    """Return a ``websocket.connect``."""
    scope.setdefault("scheme", "ws")  # Daphne leaves it out
    message = _head(scope, reply_channel, root_path, root_path_header)
    message["order"] = 0
    return message


def select_subprotocol(offered: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the first subprotocol a client offers that is known, as Daphne 1 does."""
    return next((protocol for protocol in offered if protocol in known), None)


# -- HTTP, from workers ------------------------------------------------------------------


class Start(NamedTuple):
    """A response message: ``length`` is what its Content-Length says."""

    status: int
    headers: Headers
    length: int | None
    content: bytes
    more: bool


class Chunk(NamedTuple):
    """A response chunk message; ``closed``: its worker gives the response up."""

    content: bytes
    more: bool
    closed: bool = False


def is_push(message: Mapping[str, Any]) -> bool:
    """Whether it is a server push, which who cannot do it must drop."""
    return "request" in message and "status" not in message


def parse_start(message: Mapping[str, Any]) -> Start:
    """Read the first message of a response.

    Raises:
        Malformed: it is none.
    """
    if "status" not in message:
        raise Malformed(f"the first message of a response has no status, only {_keys(message)}")
    status = message["status"]
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise Malformed(f"status must be an integer from 200 to 599, not {shown(status)}")
    given = message.get("headers")
    if given is None:
        given = []
    if not isinstance(given, (list, tuple)):
        raise Malformed(f"headers must be a list of [name, value], not {shown(given)}")
    headers: Headers = []
    length = None
    for header in given:
        name, value = _header(header)
        if name in _HOP_BY_HOP or (name == b"content-length" and status in BODYLESS):
            continue
        if name == b"content-length":
            if not _DIGITS.fullmatch(value) or length not in (None, int(value)):
                raise Malformed(f"content-length must be one number, not {shown(value)}")
            if length is not None:
                continue
            length = int(value)
        headers.append((name, value))
    return Start(status, headers, length, _content(message), bool(message.get("more_content")))


def _header(header: object) -> tuple[bytes, bytes]:
    if not isinstance(header, (list, tuple)) or len(header) != 2:
        raise Malformed(f"a header must be [name, value], not {shown(header)}")
    name, value = (_as_bytes(part) for part in header)
    if not _TOKEN.fullmatch(name):
        raise Malformed(f"{shown(name)} is no header name")
    value = value.strip(b" \t")
    if not _VALUE.fullmatch(value):
        raise Malformed(f"header {shown(name)} has a line break or a NUL in its value")
    return name.lower(), value


def _as_bytes(part: object) -> bytes:
    """Return a header's part; the specification says bytes, early versions said str."""
    if isinstance(part, bytes):
        return part
    if isinstance(part, str):
        try:
            return part.encode("latin-1")
        except UnicodeEncodeError:
            pass
    raise Malformed(f"a header's name and value must be bytes, not {shown(part)}")


def parse_chunk(message: Mapping[str, Any]) -> Chunk:
    """Read a further message of a response.

    Raises:
        Malformed: it is none.
    """
    if "status" in message:
        raise Malformed("a second message with a status, where a chunk was due")
    closed = bool(message.get("closed"))
    return Chunk(_content(message), bool(message.get("more_content")), closed)


def _content(message: Mapping[str, Any]) -> bytes:
    content = message.get("content")
    if content is None:
        return b""
    if not isinstance(content, bytes):
        raise Malformed(f"content must be bytes, not {shown(content)}")
    return content


# -- websockets, from workers ------------------------------------------------------------


class WebSocketReply(NamedTuple):
    """A Send/Close/Accept message; ``None`` for what it does not say."""

    accept: bool | None
    data: str | bytes | None
    close: int | None
    subprotocol: str | None


def parse_websocket_reply(message: Mapping[str, Any]) -> WebSocketReply:
    """Read a reply to a websocket.

    Raises:
        Malformed: it is none.
    """
    if not _WEBSOCKET_KEYS.issuperset(message):
        strange = {key: None for key in message if key not in _WEBSOCKET_KEYS}
        raise Malformed(f"unknown {_keys(strange)}: there are accept, bytes, close and text")
    text, data = message.get("text"), message.get("bytes")
    if text is not None and not isinstance(text, str):
        raise Malformed(f"text must be a str, not {shown(text)}")
    if data is not None and not isinstance(data, bytes):
        raise Malformed(f"bytes must be bytes, not {shown(data)}")
    if text and data:
        raise Malformed("both text and bytes, of which there may be one")
    subprotocol = message.get("subprotocol")
    if subprotocol is not None and not _is_token(subprotocol):
        raise Malformed(f"{shown(subprotocol)} is no subprotocol")
    accept = message.get("accept")
    return WebSocketReply(
        None if accept is None else bool(accept),
        # An empty one beside another that is not is no more than a default.
        data if text is None or data else text,
        _close_code(message.get("close")),
        subprotocol,
    )


def _is_token(value: object) -> bool:
    return isinstance(value, str) and bool(_TOKEN.fullmatch(value.encode("utf-8", "replace")))


def _close_code(close: object) -> int | None:
    if close is None or close is False or close == 0:
        return None
    if close is True:
        return 1000
    if isinstance(close, int) and (close in _CLOSE_CODES or 3000 <= close <= 4999):
        return close
    raise Malformed(f"close must be True or a code that may be sent, not {shown(close)}")


# -- words -------------------------------------------------------------------------------


def shown(value: object, limit: int = 60) -> str:
    """Return what a log line, or an error, shows of something that others sent.

    Quoted, as ``repr`` does it: no line break of theirs begins a line, no escape of theirs
    reaches a terminal. Shortened, if it is longer than ``limit``.
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 10]}... ({type(value).__name__})"


def _keys(message: Mapping[Any, Any]) -> str:
    return "keys " + ", ".join(sorted(map(shown, message))[:8]) if message else "nothing"
