"""Websocket frames by hand, for clients that break the protocol."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Self

from .processes import PATIENCE_S, Server

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a client's frame."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 1 << 16:
        head += b"\xfe" + struct.pack("!H", len(payload))
    else:
        head += b"\xff" + struct.pack("!Q", len(payload))
    repeated = MASK * (len(payload) // 4 + 1)
    number = int.from_bytes(payload) ^ int.from_bytes(repeated[: len(payload)])
    return head + MASK + number.to_bytes(len(payload))


@dataclass
class Heard:
    """What a server has sent: messages, pongs, and the payload of its close frame."""

    messages: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    close: bytes | None = None

    @property
    def code(self) -> int | None:
        """Of the close frame; None if there was none, 1005 if it said none."""
        if self.close is None:
            return None
        return int.from_bytes(self.close[:2]) if self.close else 1005


class RawSocket:
    """A websocket without compression, whose client sends whatever it is told to."""

    def __init__(self, server: Server, path: str = "/echo") -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert self._reader.readline().startswith(b"HTTP/1.1 101 ")
        while self._reader.readline() != b"\r\n":
            pass
        self.heard = Heard()

    def send(self, data: bytes, chop: int = 0) -> None:
        """Send bytes, at once or some at a time; a server that has had enough may hang up."""
        try:
            for start in range(0, len(data), chop or len(data) or 1):
                self._socket.sendall(data[start : start + (chop or len(data))])
        except ConnectionError:
            pass

    def read_frame(self) -> bool:
        """Note the server's next frame; False at the end of the connection."""
        try:
            head = self._reader.read(2)
            if len(head) < 2:
                return False
            first, size = head
            assert not size & 0x80, "a server masks nothing"
            if size == 126:
                size = int.from_bytes(self._reader.read(2))
            elif size == 127:
                size = int.from_bytes(self._reader.read(8))
            payload = self._reader.read(size)
        except ConnectionError:  # reset: it has hung up with something unread
            return False
        assert first & 0x70 == 0, "no extension was agreed to"
        opcode = first & 0xF
        if opcode in (TEXT, BINARY):
            self.heard.messages.append(payload)
        elif opcode == CONTINUATION:
            self.heard.messages[-1] += payload
        elif opcode == PONG:
            self.heard.pongs.append(payload)
        elif opcode == CLOSE:
            self.heard.close = payload
        else:
            assert opcode == PING, opcode
        return True

    def read_to_the_end(self) -> Heard:
        """Read until the server hangs up; return all that it has sent."""
        while self.read_frame():
            pass
        return self.heard

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *exception: Any) -> None:
        """Hang up."""
        self._reader.close()
        self._socket.close()
