"""Requests and responses through every ASGI server and a real worker."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator

import httpx
import msgpack
import pytest

from .answering import pattern
from .processes import Server


def test_a_request_arrives_as_the_specification_says(server: Server) -> None:
    """Path decoded, query not, names in lower case, duplicates kept, addresses as pairs."""
    answer = server.client.request(
        "patch",
        "/gr%C3%BC%C3%9Fe/a%20b?x=%20&y=1",
        headers=[(b"X-Twice", b"1"), (b"x-twice", b"2"), (b"X-Latin", "déjà".encode("latin-1"))],
    )
    facts = answer.json()
    assert (facts["method"], facts["path"], facts["query_string"]) == (
        "PATCH",
        "/grüße/a b",
        "x=%20&y=1",
    )
    assert facts["scheme"] == "http" and facts["http_version"] == "1.1"
    assert facts["root_path"] == "" and "body_channel" not in facts
    headers = [tuple(pair) for pair in facts["headers"]]
    assert [value for name, value in headers if name == "x-twice"] == ["1", "2"]
    assert ("x-latin", "déjà") in headers
    assert facts["client"][0] == "127.0.0.1" and isinstance(facts["client"][1], int)
    assert facts["server"] == ["127.0.0.1", server.port]
    home, _, rest = facts["reply_channel"].partition("!")
    assert home.startswith("http.response.") and rest


def test_a_name_with_an_underscore_is_no_header(server: Server) -> None:
    """``x_user`` would be the same as ``x-user`` to a worker: only the latter arrives."""
    answer = server.client.get("/", headers={"x_user": "forged", "x-user": "true"})
    values = [
        value for name, value in answer.json()["headers"] if "user" in name and name[0] == "x"
    ]
    assert values == ["true"]


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_body_arrives_whole(server: Server, size: int) -> None:
    """Small ones in the request itself, those of more than 1 MiB through a body channel."""
    body = random.Random(size).randbytes(size)
    facts = server.client.post("/", content=body).json()
    assert (facts["body_bytes"], facts["body_md5"]) == (size, hashlib.md5(body).hexdigest())
    assert bool(facts["chunks"]) == (size > 1 << 20)
    assert all(count <= 1 << 19 for count in facts["chunks"])


def test_a_body_of_unknown_length_arrives_whole(server: Server) -> None:
    """Chunked transfer encoding, in uneven pieces."""
    pieces = [random.Random(n).randbytes(n * 7919 % 100_000) for n in range(40)]

    def produce() -> Iterator[bytes]:
        yield from pieces

    facts = server.client.post("/", content=produce()).json()
    whole = b"".join(pieces)
    assert (facts["body_bytes"], facts["body_md5"]) == (len(whole), hashlib.md5(whole).hexdigest())


def test_a_worker_need_not_read_a_body(server: Server) -> None:
    """The answer comes though the body's chunks wait, and the next request is served."""
    answer = server.client.post("/ignores-body", content=bytes(20_000_000))
    assert answer.text == "no need"
    assert server.client.get("/").json()["method"] == "GET"


@pytest.mark.slow
def test_a_body_of_50_mb_arrives_whole(server: Server) -> None:
    """The same, with a hundred chunks in turn with the worker."""
    body = random.Random(50).randbytes(50_000_000)
    facts = server.client.post("/", content=body).json()
    assert (facts["body_bytes"], facts["body_md5"]) == (len(body), hashlib.md5(body).hexdigest())


@pytest.mark.parametrize("count", [0, 1, 100_000, 8_000_000])
def test_a_response_of_one_message(server: Server, count: int) -> None:
    """It has a Content-Length, whatever its size."""
    answer = server.client.get(f"/bytes?count={count}")
    assert answer.content == pattern(count)
    assert answer.headers["content-length"] == str(count)


@pytest.mark.parametrize(("count", "size"), [(1, 10), (300, 100), (20, 1 << 19)])
def test_a_response_of_many_messages(server: Server, count: int, size: int) -> None:
    """It arrives in order and complete: more messages than the capacity, and large ones."""
    with server.client.stream("GET", f"/stream?count={count}&size={size}") as answer:
        assert b"".join(answer.iter_raw()) == pattern(count * size)


def test_response_headers_arrive_as_they_were_given(server: Server) -> None:
    """Order and duplicates are kept; what concerns the connection is the server's."""
    cookies = [[b"Set-Cookie", b"a=1; Path=/"], [b"set-cookie", b"b=2"]]
    headers = [*cookies, [b"X-Text", b" padded "], [b"Transfer-Encoding", b"chunked"]]
    answer = server.client.post(
        "/raw", content=msgpack.packb([{"status": 201, "headers": headers, "content": b"made"}])
    )
    assert (answer.status_code, answer.content) == (201, b"made")
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]
    assert answer.headers["x-text"] == "padded"


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_content_has_none(server: Server, status: int) -> None:
    """Even if the worker sends some; the connection goes on."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        message = {"status": status, "headers": [], "content": b"surplus"}
        answer = client.post("/raw", content=msgpack.packb([message]))
        assert (answer.status_code, answer.content) == (status, b"")
        assert client.get("/bytes?count=3").content == pattern(3)


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_content_has_no_length(server: Server, status: int) -> None:
    """Whatever length the worker says; the connection goes on."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        message = {"status": status, "headers": [[b"Content-Length", b"7"]], "content": b"surplus"}
        answer = client.post("/raw", content=msgpack.packb([message]))
        assert (answer.status_code, answer.content) == (status, b"")
        assert "content-length" not in answer.headers
        assert client.get("/bytes?count=3").content == pattern(3)


def test_a_head_request_gets_the_length_of_the_content(server: Server) -> None:
    """That of the content which a GET would get, if the worker sends it."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.head("/bytes?count=1234").headers["content-length"] == "1234"
        assert client.get("/bytes?count=3").content == pattern(3)


@pytest.mark.parametrize("path", ["/bytes?count=1000", "/stream?count=3&size=1000"])
def test_a_head_request_gets_no_content(server: Server, path: str) -> None:
    """Even if the worker sends some; the connection goes on."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert client.get("/bytes?count=3").content == pattern(3)


def test_a_server_push_is_dropped(server: Server) -> None:
    """As the specification asks of who cannot push; the response follows."""
    push = {"request": {"method": "GET", "path": "/style.css"}}
    answer = server.client.post("/raw", content=msgpack.packb([push, {"status": 200}]))
    assert (answer.status_code, answer.content) == (200, b"")


def test_every_request_ends_with_a_disconnect(server: Server) -> None:
    """With its reply channel and path, after an ordinary answer too, as Daphne 1 does."""
    facts = server.client.get("/somewhere").json()
    server.wait_for_event(
        "http.disconnect", reply_channel=facts["reply_channel"], path="/somewhere"
    )


def test_curl_understands_it(server: Server) -> None:
    """Another client than the one above, with an ``Expect: 100-continue``."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = random.Random(1).randbytes(3_000_000)
    done = subprocess.run(
        [curl, "-sS", "-m30", "-H", "Expect: 100-continue", "--data-binary", "@-", server.url],
        input=body,
        capture_output=True,
        check=True,
    )
    assert hashlib.md5(body).hexdigest().encode() in done.stdout
