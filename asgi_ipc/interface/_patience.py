"""How long a client may stand still while something is sent to it.

A send is done once the ASGI server's buffer has room. That says little about the client: the
kernel's buffers hold megabytes, and room in them shows only when a third of them is free. So
while a send waits, the kernel is asked how many bytes the client has not acknowledged yet
(``sock_diag(7)``, by the connection's two addresses). Any change is progress. Where it cannot
say (a unix socket, addresses from a proxy's header), only a send that is done is.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import types
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Literal, Self

from ._interrupt import Interrupt
from ._messages import Scope

__all__ = ["Patience", "abort_transport", "patiently", "unacknowledged"]

_LOOKS = 4  # of the kernel's count, within the time that a client has

_SOCK_DIAG, _BY_FAMILY, _REQUEST, _ERROR = 4, 20, 1, 2  # linux/netlink.h, linux/sock_diag.h
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_QUERY = struct.Struct("=BBBBI")  # struct inet_diag_req_v2, without the socket
_ANY = b"\0\0\0\0" + b"\xff" * 8  # any interface, and no cookie
_WRITE_QUEUE_AT = _HEADER.size + 4 + 48 + 8  # of struct inet_diag_msg


def unacknowledged(scope: Scope) -> int | None:
    """Return how many bytes the kernel holds for a connection's client; None: not known."""
    here, there = scope.get("server"), scope.get("client")
    if not here or not there or not here[1] or not there[1]:
        return None
    try:
        family = socket.AF_INET6 if ":" in there[0] else socket.AF_INET
        wanted = struct.pack("!HH", here[1], there[1])
        for host, _ in (here, there):
            wanted += socket.inet_pton(family, host.partition("%")[0]).ljust(16, b"\0")
        query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + wanted + _ANY
        size = _HEADER.size + len(query)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.setblocking(False)  # it answers within the call that asks
            kernel.send(_HEADER.pack(size, _BY_FAMILY, _REQUEST, 1, 0) + query)
            answer = kernel.recv(4096)
    except (OSError, TypeError, struct.error):  # no such family here, no address, no port
        return None
    if len(answer) < _WRITE_QUEUE_AT + 4 or _HEADER.unpack_from(answer)[1] == _ERROR:
        return None  # no such connection: the addresses are not its own
    return int(struct.unpack_from("=I", answer, _WRITE_QUEUE_AT)[0])


def abort_transport(send: object) -> None:
    """Drop a connection whose client takes nothing, where the ASGI server lets us.

    ASGI has no word for that, and a server that closes waits until its buffer is empty: for
    ever. Under uvicorn ``send`` is a method of what holds the transport.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    abort = getattr(transport, "abort", None)
    if abort is not None:
        abort()


class Patience(Interrupt):
    """Around sends: raises ``TimeoutError`` when the client has taken nothing for so long."""

    __slots__ = ("_loop", "_moved_at", "_scope", "_seconds", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, scope: Scope, seconds: float) -> None:
        super().__init__()
        self._loop = loop
        self._scope = scope
        self._seconds = seconds

    def __enter__(self) -> Self:
        """Begin: the client has its whole time from now on."""
        super().__enter__()
        self._waiting: int | None = None
        self._moved_at = self._loop.time()
        self._timer = self._loop.call_later(self._seconds / _LOOKS, self._look)
        return self

    def _look(self) -> None:
        now = self._loop.time()
        waiting = unacknowledged(self._scope)
        if waiting is not None and waiting != self._waiting:
            self._waiting = waiting
            self._moved_at = now
        if now - self._moved_at >= self._seconds:
            self.fire()
        else:
            self._timer = self._loop.call_later(self._seconds / _LOOKS, self._look)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        """End, with ``TimeoutError`` if it was ended by us."""
        self._timer.cancel()
        if super().__exit__(kind, exc, traceback):
            raise TimeoutError from exc
        return False


@types.coroutine
def patiently(
    sending: Coroutine[Any, Any, None], make: Callable[[], Patience]
) -> Generator[Any, None, None]:
    """Await what sends, with patience from its first wait on.

    Nearly always there is none, since the ASGI server's buffer has room: then there is no clock
    to set and to take back, either.
    """
    try:
        waits_for = sending.send(None)
    except StopIteration:
        return
    with make():
        try:
            while True:
                try:
                    yield waits_for
                except GeneratorExit:
                    sending.close()
                    raise
                except BaseException as exc:  # a cancellation, of ours or of others
                    waits_for = sending.throw(exc)
                else:
                    waits_for = sending.send(None)
        except StopIteration:
            return
