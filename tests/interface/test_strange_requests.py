"""Requests on the edge of HTTP/1.1: refused, or one request for the worker, whatever the server.

The statuses are those of the table in ``docs/interface.md``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from tests.conftest import OURS

from .processes import PATIENCE_S, Server, start_worker

GET = b"GET /strange HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /strange HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
KINDS = {
    "httptools": ("uvicorn", ("--http", "httptools")),
    "h11": ("uvicorn", ("--http", "h11")),
    "hypercorn": ("hypercorn", ()),
    "daphne": ("daphne", ()),
}
# What is sent, and the statuses of each server in the order of KINDS; 0: it waits for more.
CASES: dict[str, tuple[bytes, tuple[int, int, int, int]]] = {
    "ordinary": (POST + b"Content-Length: 3\r\n\r\nabc", (200, 200, 200, 200)),
    "chunked": (CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n", (200, 200, 200, 200)),
    "a length and chunked": (
        CHUNKED + b"Content-Length: 6\r\n\r\n0\r\n\r\n",
        (400, 400, 400, 400),
    ),
    "two lengths": (
        POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        (400, 400, 400, 400),
    ),
    "one length twice": (
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        (400, 200, 200, 400),
    ),
    "a length with a sign": (POST + b"Content-Length: +3\r\n\r\nabc", (400, 400, 400, 400)),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", (400, 400, 400, 400)),
    "a space before the colon": (
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        (400, 400, 400, 400),
    ),
    "an unknown coding": (
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        (400, 400, 501, 400),
    ),
    "identity": (
        POST + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
        (400, 400, 501, 400),
    ),
    "chunked in 1.0": (
        b"POST /strange HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        (200, 200, 200, 200),
    ),
    "a folded header": (GET + b"X-A: 1\r\n 2\r\n\r\n", (400, 200, 200, 200)),
    "a bare CR": (GET + b"X-A: 1\rX-B: 2\r\n\r\n", (400, 400, 400, 400)),
    "a NUL": (GET + b"X-A: a\0b\r\n\r\n", (400, 400, 400, 400)),
    "no Host": (b"GET /strange HTTP/1.1\r\n\r\n", (200, 400, 400, 200)),
    "two Hosts": (GET + b"Host: y\r\n\r\n", (200, 400, 400, 200)),
    "a line break in an extension": (
        CHUNKED + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
        (400, 400, 400, 400),
    ),
    "a size with a prefix": (CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n", (400, 400, 400, 400)),
    "a chunk that is too long": (CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n", (400, 400, 400, 400)),
    # What h11's own tests read and refuse, as requests.
    "1.0 with a header": (b"GET /strange HTTP/1.0\r\nX-A: 1\r\n\r\n", (200, 200, 200, 200)),
    "1.0 without headers": (b"GET /strange HTTP/1.0\r\n\r\n", (200, 200, 200, 200)),
    "a value of single letters": (GET + b"X-A: a b c d \r\n\r\n", (200, 200, 200, 200)),
    "an empty value": (GET + b"X-A:\r\n\r\n", (200, 200, 200, 200)),
    "a blank value": (GET + b"X-A: \t \t \r\n\r\n", (200, 200, 200, 200)),
    "a value beyond ASCII": (GET + b"X-A: \xe9\xff\r\n\r\n", (200, 200, 200, 200)),
    "lines that end with LF": (b"GET /strange HTTP/1.1\nHost: x\nX-A: 1\n\n", (400, 200, 200, 0)),
    "one line that ends with LF": (GET + b"X-A: 1\nX-B: 2\r\n\r\n", (400, 200, 200, 400)),
    "a header folded twice": (GET + b"X-A: 1\r\n\t2\r\n   3\r\n\r\n", (400, 200, 200, 200)),
    "a fold of nothing": (
        b"GET /strange HTTP/1.1\r\n  a: 1\r\nHost: x\r\n\r\n",
        (400, 400, 400, 400),
    ),
    "spaces before the colon": (GET + b"X-A  : 1\r\n\r\n", (400, 400, 400, 400)),
    "a tab before the colon": (GET + b"X-A\t: 1\r\n\r\n", (400, 400, 400, 400)),
    "a header without a name": (GET + b": 1\r\n\r\n", (400, 400, 400, 400)),
    "a header without a colon": (GET + b"X-A\r\n\r\n", (400, 400, 400, 400)),
    "a control in a name": (GET + b"X\x01A: 1\r\n\r\n", (400, 400, 400, 400)),
    "something behind the version": (
        b"GET /strange HTTP/1.1 x\r\nHost: x\r\n\r\n",
        (400, 400, 400, 400),
    ),
    "a NUL behind the version": (
        b"GET /strange HTTP/1.1\0x\r\nHost: x\r\n\r\n",
        (400, 400, 400, 400),
    ),
    "an empty line first": (b"\r\n" + GET + b"\r\n", (200, 400, 400, 200)),
    "no bytes of a length": (POST + b"Content-Length: 0\r\n\r\n", (200, 200, 200, 200)),
    "no chunks": (CHUNKED + b"\r\n0\r\n\r\n", (200, 200, 200, 200)),
    "a trailer": (CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX-A: 1\r\n\r\n", (200, 200, 200, 200)),
    "two chunks": (CHUNKED + b"\r\n1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n", (200, 200, 200, 200)),
    "a size of both cases": (
        CHUNKED + b"\r\naA\r\n" + b"x" * 0xAA + b"\r\n0\r\n\r\n",
        (200, 200, 200, 200),
    ),
    "a size of 100 digits": (CHUNKED + b"\r\n" + b"9" * 100 + b"\r\nabc", (400, 400, 400, 0)),
    "a NUL in a size": (CHUNKED + b"\r\n3\0\r\nabc\r\n0\r\n\r\n", (400, 400, 400, 400)),
    "extensions": (
        CHUNKED + b'\r\n3; a=b\r\nabc\r\n0; c="d e"; f=g\r\n\r\n',
        (400, 200, 200, 200),
    ),
    "a size with blanks": (CHUNKED + b"\r\n3  \t \r\nabc\r\n0\r\n\r\n", (400, 200, 200, 400)),
    "a chunk that ends otherwise": (CHUNKED + b"\r\n3\r\nabc__1a\r\n", (400, 400, 400, 400)),
    "a chunk that ends without LF": (CHUNKED + b"\r\n3\r\nabc\r_1a\r\n", (400, 400, 400, 400)),
    "a chunk that ends without CR": (CHUNKED + b"\r\n3\r\nabc_\n1a\r\n", (400, 400, 400, 400)),
}
BODY_BYTES = {"two chunks": 3, "a size of both cases": 170}


@pytest.fixture(scope="module", params=list(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each server with each of its parsers, and one worker."""
    kind, arguments = KINDS[request.param]
    prefix = f"{OURS}strange-{request.param}"
    server, worker = Server(kind, prefix, *arguments), start_worker(prefix)
    server.name = request.param  # type: ignore[attr-defined]
    try:
        server.client.get("/")
        yield server
    finally:
        server.kill()
        worker.kill()
        AsyncIPCChannelLayer(prefix).unlink()


def ask(server: Server, request: bytes, *, is_cut: bool = False) -> tuple[int, bytes]:
    """Send a request, and no more if it is cut; return the first answer's status and content.

    The status is 0 if the connection is closed without an answer.
    """
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
        client.sendall(request)
        if is_cut:
            client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb")
        begin = answer.readline().split()
        if not begin:
            return 0, b""
        status = int(begin[1])
        length = 0
        while line := answer.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, answer.read(length)


@pytest.mark.parametrize("case", CASES)
def test_a_strange_request(server: Server, case: str) -> None:
    """It is refused, or a worker gets it as one, with the body that its framing says."""
    request, statuses = CASES[case]
    expected = statuses[list(KINDS).index(server.name)]  # type: ignore[attr-defined]
    status, content = ask(server, request, is_cut=not expected)
    assert status == expected
    if status == 200:
        facts = json.loads(content)
        assert facts["path"] == "/strange"
        assert facts["body_bytes"] == BODY_BYTES.get(case, 3 if b"\nabc" in request else 0)


def test_whose_address_is_believed(server: Server) -> None:
    """Uvicorn believes a proxy on this machine what it forwards; the others hand it on as it is."""
    forwarded = b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n"
    facts = json.loads(ask(server, GET + forwarded + b"\r\n")[1])
    believed = ("203.0.113.9", "https") if server.kind == "uvicorn" else ("127.0.0.1", "http")
    assert (facts["client"][0], facts["scheme"]) == believed
    assert ["x-forwarded-for", "203.0.113.9"] in facts["headers"]
