"""Workers that say what they must not: a clear answer and one log line, never a hanging client."""

from __future__ import annotations

from typing import Any

import httpx
import msgpack
import pytest

from .processes import Server

OK = {"status": 200, "headers": [], "content": b"ok"}
# Daphne 4 has no way to cut a response.
CUTTING = pytest.mark.parametrize("server", ["uvicorn", "hypercorn"], indirect=True)

BAD_STARTS: dict[str, dict[Any, Any]] = {
    "nothing": {},
    "no status": {"headers": [], "content": b"x"},
    "status text": {"status": "200"},
    "status true": {"status": True},
    "status 99": {"status": 99},
    "status 100": {"status": 100},
    "status 1000": {"status": 1000},
    "content str": {"status": 200, "content": "text"},
    "content list": {"status": 200, "content": [b"x"]},
    "headers dict": {"status": 200, "headers": {"a": "b"}},
    "headers int": {"status": 200, "headers": 5},
    "header alone": {"status": 200, "headers": [[b"a"]]},
    "header of ints": {"status": 200, "headers": [[1, 2]]},
    "header empty": {"status": 200, "headers": [[b"", b"x"]]},
    "header space": {"status": 200, "headers": [[b"a b", b"x"]]},
    "header colon": {"status": 200, "headers": [[b"a:", b"x"]]},
    "header split": {"status": 200, "headers": [[b"a", b"x\r\nset-cookie: stolen=1"]]},
    "header nul": {"status": 200, "headers": [[b"a", b"x\x00"]]},
    "header not latin": {"status": 200, "headers": [["a", "☃"]]},
    "length text": {"status": 200, "headers": [[b"content-length", b"many"]]},
    "length two": {"status": 200, "headers": [[b"content-length", n] for n in (b"1", b"2")]},
    "length long": {"status": 200, "headers": [[b"content-length", b"9"]], "content": b"x"},
    "length short": {"status": 200, "headers": [[b"content-length", b"0"]], "content": b"x"},
    "of a websocket": {"text": "frame"},
    "odd keys": {7: 8, None: b"x"},
}


def post(server: Server, *replies: dict[Any, Any]) -> httpx.Response:
    """Have a worker answer with exactly these messages."""
    return server.client.post("/raw", content=msgpack.packb(replies))


def check_that_it_is_a_500(server: Server, bad: dict[Any, Any]) -> None:
    """One log line says what was wrong, and the next request is served."""
    before = server.log().count("a worker sent no response")
    answer = post(server, bad)
    assert answer.status_code == 500
    assert answer.text == "500 Internal Server Error\n\nThe worker's response is malformed.\n"
    assert server.log().count("a worker sent no response") == before + 1
    assert post(server, OK).text == "ok"


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_malformed_response_is_a_500(server: Server, name: str) -> None:
    """Whatever is wrong with it."""
    check_that_it_is_a_500(server, BAD_STARTS[name])


def test_a_malformed_response_is_a_500_behind_every_server(server: Server) -> None:
    """No server adds anything of its own to it."""
    check_that_it_is_a_500(server, BAD_STARTS["header split"])


@CUTTING
@pytest.mark.parametrize(
    "bad",
    [
        {"status": 200, "content": b"a second start"},
        {"content": "text"},
        {"content": 5, "more_content": True},
    ],
)
def test_a_malformed_chunk_cuts_the_response(server: Server, bad: dict[str, Any]) -> None:
    """The client sees that it is not whole; one log line says why."""
    before = server.log().count("a worker sent no chunk")
    with pytest.raises(httpx.RemoteProtocolError):
        post(server, {"status": 200, "content": b"begun", "more_content": True}, bad)
    assert server.log().count("a worker sent no chunk") == before + 1
    assert post(server, OK).text == "ok"


@CUTTING
def test_a_response_that_its_worker_gives_up_is_cut(server: Server) -> None:
    """At once; the log says why."""
    before = server.log().count("its worker failed, or was stopped, in the middle of it")
    given_up = {"content": b"", "more_content": True, "closed": True}
    with pytest.raises(httpx.RemoteProtocolError):
        post(server, {"status": 200, "content": b"begun", "more_content": True}, given_up)
    assert server.log().count("its worker failed, or was stopped, in the middle") == before + 1
    assert post(server, OK).text == "ok"


@CUTTING
@pytest.mark.parametrize("parts", [[b"1234", b"56"], [b"12", b"3"]], ids=["long", "short"])
def test_a_wrong_content_length_cuts_the_response(server: Server, parts: list[bytes]) -> None:
    """A streamed response has begun before it shows that its length is not what it says."""
    headers = [[b"Content-Length", b"5"]]
    start = {"status": 200, "headers": headers, "content": parts[0], "more_content": True}
    with pytest.raises(httpx.RemoteProtocolError):
        post(server, start, {"content": parts[1]})
    assert post(server, OK).text == "ok"


def test_messages_behind_the_end_are_ignored(server: Server) -> None:
    """As the specification says; and they do not get into another response."""
    assert post(server, OK, OK, {"content": b"late", "more_content": True}).text == "ok"
    for _ in range(5):
        assert post(server, {"status": 201, "content": b"next"}).text == "next"
