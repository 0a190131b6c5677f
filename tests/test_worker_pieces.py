"""Large responses of workers: in pieces, whole, and cut where their handler ends early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.worker import Message, SyncMessage, Worker
from asgi_ipc.worker._pieces import PIECE_BYTES, is_large, pieces

from .test_worker import serving

MakeLayer = Callable[..., AsyncIPCChannelLayer]

LARGE = random.Random(1).randbytes(12_000_000)  # more than the message memory of these tests


def test_only_the_content_of_a_response_goes_in_pieces() -> None:
    """Not what is small, not a websocket's frame, not a protocol of somebody's own."""
    edge = {"status": 200, "content": bytes(PIECE_BYTES)}
    assert not is_large("http.request", edge)
    assert is_large("http.request", {**edge, "content": bytes(PIECE_BYTES + 1)})
    assert not is_large("my.protocol", {"content": LARGE})
    assert not is_large("http.request", {"content": "x" * len(LARGE)})
    assert not is_large("websocket.receive", {"bytes": LARGE})


@pytest.mark.parametrize("size", [PIECE_BYTES + 1, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 1])
@pytest.mark.parametrize("more", [False, True])
def test_pieces_say_together_what_the_reply_says(size: int, more: bool) -> None:
    """The first has its status and headers, the last its ``more_content``; the sum its content."""
    reply = {"status": 200, "headers": [[b"a", b"b"]], "content": LARGE[:size]}
    found = list(pieces({**reply, "more_content": more}))
    assert b"".join(piece["content"] for piece in found) == LARGE[:size]
    assert all(0 < len(piece["content"]) <= PIECE_BYTES for piece in found)
    assert [piece["more_content"] for piece in found] == [True] * (len(found) - 1) + [more]
    length = [] if more else [[b"content-length", b"%d" % size]]
    assert (found[0]["status"], found[0]["headers"]) == (200, [[b"a", b"b"], *length])
    assert all(piece.keys() == {"content", "more_content"} for piece in found[1:])


@pytest.mark.parametrize(
    "headers", [[[b"Content-Length", b"7"]], ((b"content-length", b"7"),), [["a", "b"]], 7]
)
def test_a_length_that_is_said_and_headers_that_are_none_stay(headers: Any) -> None:
    """What is wrong with them is for their reader to say."""
    first = next(pieces({"status": 200, "headers": headers, "content": LARGE}))
    assert first["headers"] == headers


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_large_response_arrives_whole(make_layer: MakeLayer, kind: str) -> None:
    """One of more than the memory holds, in messages that none of its readers stands still for."""
    layer = make_layer(capacity=4)
    worker = Worker(layer)
    if kind == "coroutine":

        @worker.on("http.request")
        async def answer(message: Message) -> None:
            await message.reply({"status": 200, "content": LARGE})

    else:

        @worker.on("http.request")
        def answer_blocking(message: SyncMessage) -> None:
            message.reply({"status": 200, "content": LARGE})

    async with serving(worker):
        name = await layer.new_channel("test.reply")
        await layer.send("http.request", {"reply_channel": name})
        found, more = b"", True
        while more:
            piece = await layer.receive(name)
            assert len(piece["content"]) <= PIECE_BYTES
            found += piece["content"]
            more = piece["more_content"]
        assert found == LARGE
        assert await layer.receive_async([name], block=False) == (None, None)


async def test_nothing_comes_between_the_pieces(make_layer: MakeLayer) -> None:
    """Two coroutines of a handler that reply at once are heard one after the other."""
    layer = make_layer(capacity=2)
    worker = Worker(layer)

    @worker.on("http.request")
    async def answer(message: Message) -> None:
        both = (LARGE[:2_000_000], bytes(1_000_000))
        await message.reply({"status": 200, "more_content": True})
        await asyncio.gather(
            *(message.reply({"content": part, "more_content": True}) for part in both)
        )
        await message.reply({"content": b""})

    async with serving(worker):
        name = await layer.new_channel("test.reply")
        await layer.send("http.request", {"reply_channel": name})
        found, more = b"", True
        while more:
            piece = await layer.receive(name)
            found += piece.get("content", b"")
            more = piece.get("more_content", False)
        assert found == LARGE[:2_000_000] + bytes(1_000_000)


async def test_a_reply_that_is_cancelled_half_way_is_cut(make_layer: MakeLayer) -> None:
    """Its reader is told that the rest will not come."""
    layer = make_layer(capacity=2)
    worker = Worker(layer)

    @worker.on("http.request")
    async def answer(message: Message) -> None:
        replying = asyncio.create_task(message.reply({"status": 200, "content": LARGE}))
        while layer.sync.channel_statistics(message["reply_channel"])["messages_pending"] < 2:
            await asyncio.sleep(0)
        replying.cancel()
        await replying

    async with serving(worker):
        name = await layer.new_channel("test.reply")
        await layer.send("http.request", {"reply_channel": name})
        found: list[dict[str, Any]] = []
        while not found or not found[-1].get("closed", not found[-1]["more_content"]):
            found.append(await layer.receive(name))
        assert found[0]["status"] == 200
        assert found[-1] == {"content": b"", "more_content": True, "closed": True}
