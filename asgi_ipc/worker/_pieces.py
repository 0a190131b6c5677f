"""A large response in several messages. Pure.

A message is encoded, copied and decoded in one step, in which its process does nothing else:
80 MB hold up every connection of an interface server for 0.24 s. In pieces they hold up none,
are on their way to the client at once, and may be more than the message memory holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["PIECE_BYTES", "is_large", "pieces"]

# Of 128 KiB to 1 MiB, this is the quickest for 80 MB, if by little (benchmarks/interface.py).
PIECE_BYTES = 1 << 18


def is_large(channel: str, reply: Mapping[str, Any]) -> bool:
    """Whether a reply is a part of a response that goes in pieces.

    Only for requests: elsewhere nobody knows what ``more_content`` means.
    """
    if channel != "http.request":
        return False
    content = reply.get("content")
    return isinstance(content, bytes) and len(content) > PIECE_BYTES


def pieces(reply: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the messages of a large reply, each made when it is asked for.

    The first has everything that the reply says besides, and the length, if that is known.
    """
    content: bytes = reply["content"]
    first = dict(reply)
    if "status" in first and not first.get("more_content"):
        first["headers"] = _with_length(first.get("headers"), len(content))
    yield {**first, "content": content[:PIECE_BYTES], "more_content": True}
    for start in range(PIECE_BYTES, len(content), PIECE_BYTES):
        end = start + PIECE_BYTES
        more = end < len(content) or bool(reply.get("more_content"))
        yield {"content": content[start:end], "more_content": more}


def _with_length(headers: Any, length: int) -> Any:
    """Return headers that say the length; as they are if they do, or if they are no headers."""
    try:
        names = {bytes(name).lower() for name, _ in headers or ()}
    except (TypeError, ValueError):
        return headers  # whoever reads them says what is wrong
    if b"content-length" in names:
        return headers
    return [*(headers or ()), [b"content-length", str(length).encode()]]
