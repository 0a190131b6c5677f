"""What asgi_ipc 1.4.2 needs in order to run with a msgpack that is built for today's Python.

It calls `msgpack.unpackb(data, encoding="utf8")`, which msgpack 1.0 dropped: every receive()
raises, and the message is lost. The releases before 1.0 work, but on Python 3.11 only their pure
Python half builds, and comparing that with a C extension would flatter us. So the original gets
the C extension, and the one call that it makes is translated.
"""

from typing import Any

import msgpack

_unpackb = msgpack.unpackb


def _unpackb_with_encoding(packed: bytes, *, encoding: str | None = None, **kwargs: Any) -> Any:
    if encoding is not None:
        kwargs |= {"raw": False, "strict_map_key": False}
    return _unpackb(packed, **kwargs)


msgpack.unpackb = _unpackb_with_encoding
