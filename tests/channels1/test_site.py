"""Every route of the example site, over real HTTP and real websockets."""

import asyncio
import hashlib
import random

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_sync

from .running_site import DEADLINE_S, Site


def patterned_bytes(count: int) -> bytes:
    """Return what the site's /download sends."""
    blocks = (hashlib.sha256(str(number).encode()).digest() for number in range(count // 32 + 1))
    return b"".join(blocks)[:count]


def test_view_answers(site: Site) -> None:
    """An ordinary view's answer arrives with its headers."""
    answer = httpx.get(site.url, timeout=DEADLINE_S)
    assert (answer.status_code, answer.text) == (200, "hello\n")
    assert int(answer.headers["x-worker-pid"]) in {process.pid for process in site.processes}


def test_request_arrives_whole(site: Site) -> None:
    """Method, path, query, headers, cookies and body are in the worker what the client sent."""
    body = bytes(range(256))
    answer = httpx.put(
        f"{site.url}/request/gr%C3%BC%C3%9Fe/a%20b",
        params={"x": ["1", "zwei ä"], "empty": ""},
        headers=[(b"X-Example", "déjà".encode("latin-1")), (b"Cookie", b"a=1; b=2")],
        content=body,
        timeout=DEADLINE_S,
    )
    assert answer.json() == {
        "method": "PUT",
        "path": "/request/grüße/a b",
        "query": {"x": ["1", "zwei ä"], "empty": [""]},
        "header": "déjà",
        "cookies": {"a": "1", "b": "2"},
        "body_bytes": 256,
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }


def test_upload_of_8_mb(site: Site) -> None:
    """A form with a file of 8 MB arrives in the view byte for byte."""
    content = random.Random(8).randbytes(8 * 1024 * 1024)
    answer = httpx.post(
        f"{site.url}/upload",
        data={"title": "hölidäy"},
        files={"file": ("photo.jpg", content)},
        timeout=DEADLINE_S,
    )
    assert answer.json() == {
        "name": "photo.jpg",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "title": "hölidäy",
    }


def test_download_of_5_mb(site: Site) -> None:
    """A response of 5 MB, ten messages, arrives in order and complete."""
    answer = httpx.get(f"{site.url}/download", timeout=DEADLINE_S)
    assert answer.content == patterned_bytes(5 * 1024 * 1024)


def test_streaming_response(site: Site) -> None:
    """A response of 300 messages, three times the capacity, arrives in order and complete."""
    answer = httpx.get(f"{site.url}/stream?lines=300", timeout=DEADLINE_S)
    assert answer.text == "".join(f"line {number}\n" for number in range(300))


def test_session_spans_workers(site: Site) -> None:
    """A browser's session goes on whichever worker has its requests."""
    with httpx.Client(base_url=site.url, timeout=DEADLINE_S) as browser:
        counted = [browser.get("/visits").json()["visits"] for _ in range(20)]
    assert counted == list(range(1, 21))


def test_failing_view(site: Site) -> None:
    """A view that raises gives a 500, and its worker goes on."""
    statuses = [httpx.get(f"{site.url}/failure", timeout=DEADLINE_S).status_code for _ in "123456"]
    assert statuses == [500] * 6
    assert httpx.get(site.url, timeout=DEADLINE_S).status_code == 200


def test_websocket_echo(site: Site) -> None:
    """Frames of text and bytes come back as they were, up to 5 MB."""
    frames: list[str | bytes] = [
        "héllo ☃",
        b"\x00\xff" * 10,
        "x" * 100_000,
        b"y" * 5_000_000,
        "\x00",
        "last",
    ]
    with connect_sync(f"{site.ws_url}/echo", max_size=None) as socket:
        for frame in frames:
            socket.send(frame)
            assert socket.recv(timeout=DEADLINE_S) == frame


def test_websocket_denied(site: Site) -> None:
    """A consumer that refuses the connection gives the client a 403."""
    with (
        pytest.raises(InvalidStatus) as refused,
        connect_sync(f"{site.ws_url}/denied", open_timeout=DEADLINE_S),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_room_reaches_all_members(site: Site) -> None:
    """A frame of one member, and a POST, reach every member once; a member that left, never."""

    async def scenario() -> None:
        url = f"{site.ws_url}/rooms/all"
        async with connect(url) as first, connect(url) as second, connect(url) as third:
            for socket in (first, second, third):
                assert await socket.recv() == "joined"
            await first.send("from the first")
            for socket in (first, second, third):
                assert await socket.recv() == "from the first"
            await third.close()
            async with httpx.AsyncClient(timeout=DEADLINE_S) as client:
                await client.post(f"{site.url}/rooms/all", data={"text": "from outside"})
            for socket in (first, second):
                assert await socket.recv() == "from outside"

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_background_consumer(site: Site) -> None:
    """What a view leaves to a background channel is done, and sent to the room."""
    with connect_sync(f"{site.ws_url}/rooms/quiet") as socket:
        assert socket.recv(timeout=DEADLINE_S) == "joined"
        httpx.post(f"{site.url}/background/quiet", data={"text": "psst"}, timeout=DEADLINE_S)
        assert socket.recv(timeout=DEADLINE_S) == "PSST"


def test_enforced_ordering(site: Site) -> None:
    """Frames of a socket are handled in their order, though five consumers share the work."""
    count = 60

    async def scenario() -> list[str]:
        async with connect(f"{site.ws_url}/ordered") as socket:
            for number in range(count):
                await socket.send(str(number))
            return [str(await socket.recv()) for _ in range(count)]

    replies = asyncio.run(asyncio.wait_for(scenario(), 2 * DEADLINE_S))
    assert [int(reply.split()[0]) for reply in replies] == list(range(count))
