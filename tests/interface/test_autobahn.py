"""The case list of the Autobahn testsuite, re-expressed: groups 1 to 7, 9, 12 and 13.

A worker echoes. Its way is longer than that of an ASGI server's own pongs and closes, so that
echoes and pongs each keep their order, and an echo need not come before a failure behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Deflate
from websockets.sync.client import connect

from .conftest import serving_with_a_worker
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawSocket, frame
from .processes import PATIENCE_S, Server

INVALID = """
    80 bf 8080 80bf80 c0 e0 f0 f8 fc c3 e282 f09f98 f8888080 fe ff fefeffff c080 c1bf c0af
    e080af e09fbf f08080af f08fbfbf f8808080af fc80808080af eda080 edadbf edae80 edafbf edb080
    edbebf edbfbf eda080edb080 edafbfedbfbf f4908080 f888808080 fc8480808080
    cebae1bdb9cf83cebcceb5eda080
"""
BROKEN, NOT_UTF8 = frozenset({1002}), frozenset({1007})


@pytest.fixture(scope="module", params=["uvicorn", "hypercorn"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with one worker, for all cases."""
    # Uvicorn has a traceback of its own for text that is not UTF-8.
    yield from serving_with_a_worker(request.param, unwanted="asgi_ipc/interface")


class Case(NamedTuple):
    """What is sent, what comes back, and the codes that the server may fail it with."""

    sent: bytes
    messages: tuple[bytes, ...] = ()
    pongs: tuple[bytes, ...] = ()
    fails: frozenset[int] = frozenset()
    chop: int = 0


def parts(opcode: int, *payloads: bytes) -> list[bytes]:
    """Return a message in fragments."""
    last = len(payloads) - 1
    return [
        frame(CONTINUATION if number else opcode, payload, fin=number == last)
        for number, payload in enumerate(payloads)
    ]


def framing() -> Iterator[tuple[str, Case]]:
    """1: texts and bytes of the sizes where a frame's head changes; 9: some large ones."""
    for group, opcode in ((1, TEXT), (2, BINARY)):
        for number, size in enumerate((0, 125, 126, 127, 128, 65535, 65536), 1):
            payload = b"*" * size
            yield f"1.{group}.{number}", Case(frame(opcode, payload), (payload,))
        payload = b"*" * 65536
        yield f"1.{group}.8", Case(frame(opcode, payload), (payload,), chop=997)
        large = b"\xc2\xbf" * (1 << 17)
        yield f"9.{group}.1", Case(frame(opcode, large), (large,))
        yield f"9.{group}.2", Case(frame(opcode, large), (large,), chop=1 << 14)
        for number, size in enumerate((1 << 10, 1 << 14, 1 << 17)):
            fragments = [large[at : at + size] for at in range(0, len(large), size)]
            yield f"9.{group + 2}.{number}", Case(b"".join(parts(opcode, *fragments)), (large,))
        many = [b"%d" % number for number in range(100)]
        yield f"9.{group + 6}.1", Case(b"".join(frame(opcode, one) for one in many), tuple(many))


def pings() -> Iterator[tuple[str, Case]]:
    """2: each ping has its pong, with its payload; a pong that nobody asked for has nothing."""
    payloads = (b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125)
    for number, payload in enumerate(payloads, 1):
        yield f"2.{number}", Case(frame(PING, payload), pongs=(payload,))
    yield "2.5", Case(frame(PING, b"\xfe" * 126), fails=BROKEN)
    yield "2.6", Case(frame(PING, b"\xfe" * 125), pongs=(b"\xfe" * 125,), chop=1)
    yield "2.7", Case(frame(PONG))
    yield "2.8", Case(frame(PONG, b"unsolicited"))
    yield "2.9", Case(frame(PONG, b"unsolicited") + frame(PING, b"mine"), pongs=(b"mine",))
    ten = tuple(b"payload-%d" % number for number in range(10))
    for number, chop in ((10, 0), (11, 1)):
        sent = b"".join(frame(PING, payload) for payload in ten)
        yield f"2.{number}", Case(sent, pongs=ten, chop=chop)


def reserved() -> Iterator[tuple[str, Case]]:
    """3 and 4: bits and opcodes that mean nothing fail the connection."""
    hello, ping = frame(TEXT, b"Hello, world!"), frame(PING)
    for rsv, opcode in zip(range(1, 8), (TEXT, TEXT, TEXT, TEXT, BINARY, PING, CLOSE), strict=True):
        bad = frame(opcode, b"\x03\xe8" if opcode == CLOSE else b"Hello", rsv=rsv)
        yield f"3.{rsv}", Case(bad + ping, fails=BROKEN)
        yield f"3.{rsv}b", Case(hello + bad, (b"Hello, world!",), fails=BROKEN, chop=1)
    for group, opcodes in ((1, range(3, 8)), (2, range(11, 16))):
        for number, opcode in enumerate(opcodes, 1):
            payload = b"" if number % 2 else b"reserved opcode payload"
            sent = hello + frame(opcode, payload) + ping
            yield f"4.{group}.{number}", Case(sent, (b"Hello, world!",), fails=BROKEN)


def fragmentation() -> Iterator[tuple[str, Case]]:
    """5: fragments are joined, pings may come between; what continues nothing fails."""
    yield "5.1", Case(b"".join(parts(PING, b"frag", b"ment")), fails=BROKEN)
    yield "5.2", Case(b"".join(parts(PONG, b"frag", b"ment")), fails=BROKEN)
    first, second = parts(TEXT, b"fragment1", b"fragment2")
    whole, ping = (b"fragment1fragment2",), frame(PING, b"ping")
    for number, chop in ((3, 0), (4, len(first)), (5, 1)):
        yield f"5.{number}", Case(first + second, whole, chop=chop)
    for number, chop in ((6, 0), (7, len(first)), (8, 1)):
        yield f"5.{number}", Case(first + ping + second, whole, (b"ping",), chop=chop)
    hello = frame(TEXT, b"Hello")
    for number, (fin, chop) in enumerate(product((True, False), (0, 8, 1)), 9):
        stray = frame(CONTINUATION, b"non-continuation", fin=fin)
        yield f"5.{number}", Case(stray + hello, fails=BROKEN, chop=chop)
    stray = frame(CONTINUATION, b"stray", fin=False)
    yield "5.15", Case(first + second + stray + hello, whole, fails=BROKEN)
    for number, fin in ((16, False), (17, True)):
        stray = frame(CONTINUATION, b"stray", fin=fin)
        yield f"5.{number}", Case((stray + first + second) * 2, fails=BROKEN)
    yield "5.18", Case(first + frame(TEXT, b"fragment2"), fails=BROKEN)
    five = parts(TEXT, b"1", b"2", b"3", b"4", b"5")
    sent = b"".join(five[:2]) + ping + b"".join(five[2:4]) + ping + five[4]
    for number, chop in ((19, 0), (20, 1)):
        yield f"5.{number}", Case(sent, (b"12345",), (b"ping", b"ping"), chop=chop)


def utf8() -> Iterator[tuple[str, Case]]:
    """6: text that is UTF-8 comes back, however it is cut; what is not, fails."""
    yield "6.1.1", Case(frame(TEXT), (b"",))
    yield "6.1.2", Case(b"".join(parts(TEXT, b"", b"", b"")), (b"",))
    yield (
        "6.1.3",
        Case(b"".join(parts(TEXT, b"", b"middle frame payload", b"")), (b"middle frame payload",)),
    )
    greek = "Hello-µ@ßöäüàá-UTF-8!! κόσμε 𝄞".encode()
    yield "6.2.1", Case(frame(TEXT, greek), (greek,))
    yield "6.2.2", Case(b"".join(parts(TEXT, greek[:12], greek[12:])), (greek,))
    octets = [greek[at : at + 1] for at in range(len(greek))]
    yield "6.2.3", Case(b"".join(parts(TEXT, *octets)), (greek,))
    yield "6.2.4", Case(frame(TEXT, greek), (greek,), chop=1)
    bad = "κόσμε".encode() + b"\xed\xa0\x80edited"
    yield "6.3.1", Case(frame(TEXT, bad), fails=NOT_UTF8)
    yield (
        "6.3.2",
        Case(b"".join(parts(TEXT, *(bad[at : at + 1] for at in range(len(bad))))), fails=NOT_UTF8),
    )
    yield (
        "6.4.1",
        Case(
            b"".join(parts(TEXT, "κόσμε".encode(), b"\xf4\x90\x80\x80", b"edited")), fails=NOT_UTF8
        ),
    )
    good = (
        0x0,
        0x7F,
        0x80,
        0x7FF,
        0x800,
        0xD7FF,
        0xE000,
        0xFFFD,
        0xFFFE,
        0xFFFF,
        0x10000,
        0x1FFFE,
        0x10FFFF,
    )
    for number in good:
        payload = chr(number).encode()
        yield f"6.valid.{number:x}", Case(frame(TEXT, payload), (payload,))
    for text in INVALID.split():
        yield f"6.invalid.{text}", Case(frame(TEXT, bytes.fromhex(text)), fails=NOT_UTF8)


@pytest.mark.parametrize("group", [framing, pings, reserved, fragmentation, utf8])
def test_messages(server: Server, group: Callable[[], Iterator[tuple[str, Case]]]) -> None:
    """What may be sent is answered in order; what may not, ends the connection."""
    for name, case in group():
        with RawSocket(server) as client:
            client.send(case.sent, case.chop)
            if case.fails:
                fails(name, client, case)
            else:
                succeeds(name, client, case)


def fails(name: str, client: RawSocket, case: Case) -> None:
    """See a connection end."""
    heard = client.read_to_the_end()
    # Who hangs up at once may not have got its close frame through.
    assert heard.code is None or heard.code in case.fails, (name, heard)
    assert heard.messages == list(case.messages[: len(heard.messages)]), (name, heard)


def succeeds(name: str, client: RawSocket, case: Case) -> None:
    """See everything answered, and close."""
    heard = client.heard
    while len(heard.messages) < len(case.messages) or len(heard.pongs) < len(case.pongs):
        assert client.read_frame(), (name, heard)
    client.send(frame(CLOSE, b"\x03\xe8"))
    client.read_to_the_end()
    assert (tuple(heard.messages), tuple(heard.pongs)) == (case.messages, case.pongs), name
    assert heard.code == 1000, (name, heard)


CLOSES = {
    # payload of the client's close frame: the codes that the server may answer with
    "7.3.1": (b"", {1000, 1005}),
    "7.3.2": (b"a", BROKEN),
    "7.3.3": (b"\x03\xe8", {1000}),
    "7.3.4": (b"\x03\xe8Hello World!", {1000}),
    "7.3.5": (b"\x03\xe8" + b"*" * 123, {1000}),
    "7.3.6": (b"\x03\xe8" + b"*" * 124, BROKEN),
    "7.5.1": (b"\x03\xe8" + "κόσμε".encode() + b"\xed\xa0\x80", BROKEN | NOT_UTF8),
    **{
        f"7.7.{code}": (code.to_bytes(2), {code, 1000})
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    },
    **{
        f"7.9.{code}": (code.to_bytes(2), BROKEN)
        for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


def test_closes(server: Server) -> None:
    """One that is right is answered in kind, one that is wrong with 1002; the connection ends."""
    for name, (payload, codes) in CLOSES.items():
        with RawSocket(server) as client:
            client.send(frame(TEXT, b"Hello World!"))
            while not client.heard.messages:
                assert client.read_frame(), name
            client.send(frame(CLOSE, payload))
            heard = client.read_to_the_end()
            assert heard.messages == [b"Hello World!"], (name, heard)
            assert heard.code is None or heard.code in codes, (name, heard)


BEHIND_A_CLOSE = {
    "7.1.2": frame(CLOSE, b"\x03\xe8"),
    "7.1.3": frame(PING),
    "7.1.4": frame(TEXT, b"late"),
    "7.1.5": frame(CONTINUATION, b"fragment2"),
    "7.1.6": frame(TEXT, b"BAsd7&jh23" * 26_000),
}


def test_what_is_sent_behind_a_close(server: Server) -> None:
    """Nothing comes of it."""
    for name, behind in BEHIND_A_CLOSE.items():
        with RawSocket(server) as client:
            client.send(frame(CLOSE, b"\x03\xe8") + behind)
            heard = client.read_to_the_end()
            assert (heard.messages, heard.pongs) == ([], []), (name, heard)
            assert heard.code in (None, 1000), (name, heard)


OFFERS = {
    "13.1": Deflate(),
    "13.2": Deflate(server_no_context_takeover=True),
    "13.3": Deflate(server_max_window_bits=9),
    "13.4": Deflate(server_max_window_bits=15),
    "13.5": Deflate(server_no_context_takeover=True, server_max_window_bits=9),
    "13.6": Deflate(client_no_context_takeover=True),
}
SIZES = (0, 16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_compressed_messages(server: Server, binary: bool) -> None:
    """12 and 13: messages of 16 bytes to 128 KiB, whole and in fragments, come back."""
    for name, offer in OFFERS.items():
        options: dict[str, Any] = {"compression": None, "max_size": None, "extensions": [offer]}
        with connect(f"{server.ws_url}/echo", open_timeout=PATIENCE_S, **options) as client:
            assert client.protocol.extensions or name != "13.1"
            for size in SIZES:
                text = (f"{{'AutobahnPython': {size}}} " * size)[:size]
                message: str | bytes = text.encode() if binary else text
                client.send(message)
                client.send(message)
                client.send(message[at : at + 1000] for at in range(0, size + 1, 1000))
                for _ in range(3):
                    assert client.recv(timeout=PATIENCE_S) == message
