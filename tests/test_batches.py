"""Several messages in one transaction: what they wake, and all or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import (
    AsyncIPCChannelLayer,
    ChannelFull,
)
from asgi_ipc._shm.segment import Plan
from asgi_ipc._store import messages, records

if TYPE_CHECKING:
    from tests.conftest import Clock

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


async def test_nothing_is_committed_while_a_batch_is_planned(
    make_layer: MakeLayer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has expired is dropped before, so that the plan knows all that it changes."""
    opened: list[Plan] = []
    layer = make_layer(capacity=10)
    for channel in ("c", "h!a"):
        for _ in range(8):
            await layer.send(channel, {}, expiry=1)
    clock.advance(2)
    segment = layer._site.messages.segment
    commit = segment.commit

    class Noted(Plan):
        def __init__(self, words: memoryview) -> None:
            super().__init__(words)
            opened.append(self)

    def commit_noted(plan: dict[int, int], flags: int = 0) -> None:
        others = [one for one in opened if one and one is not plan]
        assert not others, "committed beside a plan"
        commit(plan, flags)
        opened.clear()

    with monkeypatch.context() as patch:
        for module in (messages, records):
            patch.setattr(module, "Plan", Noted)
        patch.setattr(segment, "commit", commit_noted)
        await layer.send_many([("d", {}), *[("c", {})] * 5, *[("h!a", {})] * 5])
    for channel, count in (("c", 5), ("h!a", 5), ("d", 1)):
        for _ in range(count):
            assert await layer.receive_async([channel], block=False) == (channel, {})
