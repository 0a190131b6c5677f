"""The states of a wait, and who is listed for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._wake import waiting as waiting_module
from asgi_ipc._wake.waiting import (
    ASLEEP,
    GONE,
    LATE,
    LOOKING,
    RUNG,
    SERVED,
    TOLD,
    TOOK,
    Waiter,
    Waiting,
)
from asgi_ipc.exceptions import LayerClosed

MakeLayer = Callable[..., AsyncIPCChannelLayer]

EVENTS: dict[str, Callable[[Waiter], object]] = {
    "told": Waiter.wake,
    "rung": Waiter.ring,
    "late": Waiter.time_is_over,
    "looked": Waiter.has_looked,
    "served": Waiter.was_served,
    "took": Waiter.has_taken,
}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Make a loop that never runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def waiter_in(state: int, loop: asyncio.AbstractEventLoop) -> Waiter:
    waiter = Waiter(("c",), ("c",))
    waiter.sleep_on(loop.create_future())
    waiter.state = state
    return waiter


def drawn_table() -> Iterator[tuple[str, str, str]]:
    """Yield the table of the docstring: a state, an event, and the state that follows."""
    doc = waiting_module.__doc__
    assert doc is not None
    lines = iter(doc.splitlines())
    header = next(line for line in lines if line.strip().startswith("state "))
    events = header.split()[-len(EVENTS) :]
    for line in lines:
        words = line.split()
        if not words:
            return
        for event, follows in zip(events, words[-len(EVENTS) :], strict=True):
            yield words[0], event, words[0] if follows == "." else follows


@pytest.mark.parametrize(("state", "event", "follows"), list(drawn_table()))
def test_the_table_is_what_happens(
    loop: asyncio.AbstractEventLoop, state: str, event: str, follows: str
) -> None:
    """Each event moves each state as the docstring of the module draws it."""
    waiter = waiter_in(getattr(waiting_module, state), loop)
    future = waiter.future
    EVENTS[event](waiter)
    assert waiter.state == getattr(waiting_module, follows)
    woken = state == "ASLEEP" and event in ("told", "rung", "late")
    assert future.done() == woken
    # From Python 3.14 on a future keeps the task that awaits it, until that runs.
    assert hasattr(waiter, "future") != woken


def test_every_state_is_drawn() -> None:
    """Eight states, six events."""
    assert {state for state, _, _ in drawn_table()} == {
        name for name in waiting_module.__all__ if name.isupper()
    }
    assert len(list(drawn_table())) == 8 * len(EVENTS)
    assert sorted((GONE, LOOKING, ASLEEP, TOLD, RUNG, LATE, SERVED, TOOK)) == list(range(8))


def test_who_was_cancelled_in_its_sleep_is_neither_told_nor_rung(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The news goes to another; it leaves as one that sleeps."""
    waiting = Waiting()
    waiters = [Waiter(("c",), ("c",)) for _ in range(3)]
    for waiter in waiters:
        waiting.add(waiter)
        waiter.sleep_on(loop.create_future())
    waiters[0].future.cancel()
    waiting.wake("c", 1)
    assert [waiter.state for waiter in waiters] == [ASLEEP, TOLD, ASLEEP]
    waiting.ring("c")
    assert [waiter.state for waiter in waiters] == [ASLEEP, RUNG, ASLEEP]
    waiting.wake_each(["c", "nobody waits for it"])
    assert waiters[2].state == TOLD


def test_listing_and_striking_can_be_done_again(loop: asyncio.AbstractEventLoop) -> None:
    """Twice, or in part only: nobody is listed twice, and nothing is left."""
    waiting = Waiting()
    first, second = Waiter(("a", "x!b"), ("a", "x!")), Waiter(("x!c",), ("x!",))
    for waiter in (first, second, first):
        waiting.add(waiter)
    assert not waiting.is_alone("x!")
    assert waiting.only_by(first) == ["a"]
    for waiter in (second, second):
        waiting.remove(waiter)
    assert waiting.only_by(first) == ["a", "x!"]
    assert waiting.only_one() is first
    for waiter in (first, first):
        waiting.remove(waiter)
    assert not waiting.by_key
    assert not waiting.by_home
    assert waiting.only_one() is None


async def test_a_receive_of_no_channel_ends_when_the_layer_is_closed(make_layer: MakeLayer) -> None:
    """It waits for ever otherwise, for nothing."""
    layer = make_layer()
    task: asyncio.Task[Any] = asyncio.create_task(layer.receive_async([]))
    while not layer._site.ports():
        await asyncio.sleep(0)
    assert not task.done()
    layer.close_now()
    with pytest.raises(LayerClosed):
        await task
