"""Several messages in one transaction: what they wake, and all or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull

MakeLayer = Callable[..., AsyncIPCChannelLayer]


async def test_each_message_of_a_batch_wakes_a_reader_of_its_own(
    make_layer: MakeLayer, only_rings: None
) -> None:
    """Three loops parked on one channel get three messages without a safety look."""
    layers = [make_layer() for _ in range(3)]  # each has a slot of its own on this loop
    readers = [asyncio.ensure_future(layer.receive("c")) for layer in layers]
    while any(not layer._site.ports() for layer in layers):
        await asyncio.sleep(0)
    await layers[0].send("known", {})
    await asyncio.sleep(0)
    await layers[0].send_many([("c", {"n": 1}), ("c", {"n": 2}), ("c", {"n": 3})])
    assert sorted(message["n"] for message in await asyncio.gather(*readers)) == [1, 2, 3]


async def test_a_batch_is_sent_whole_or_not_at_all(make_layer: MakeLayer) -> None:
    """A full channel in the middle leaves nothing of the batch anywhere."""
    layer = make_layer(capacity=2)
    await layer.send("full", {})
    await layer.send("full", {})
    with pytest.raises(ChannelFull, match="'full' is full: 2 of 2"):
        await layer.send_many([("a", {}), ("full", {}), ("b", {})])
    assert await layer.receive_async(["a", "b"], block=False) == (None, None)


async def test_a_batch_larger_than_a_transaction_arrives_in_order(make_layer: MakeLayer) -> None:
    """Two hundred messages go in slices of forty."""
    layer = make_layer(capacity=1000)
    await layer.send_many([("c", {"n": number}) for number in range(200)])
    assert [(await layer.receive("c"))["n"] for _ in range(200)] == list(range(200))
