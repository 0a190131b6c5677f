"""Receives and loops that are thrown away, by the garbage collector and at the worst moment."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._drive.poll_loop import PollLoop
from asgi_ipc._shm import layout as L

from .stepping import SteppingLoop, drive

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

WAITS = {
    "one name twice": (("x!a",), ("x!a",)),
    "a channel twice": (("c",), ("c",)),
    "several names": (("c", "x!a"), ("c", "x!a"), ("x!",)),
    "one of several": (("c", "x!a"), ("c",), ("x!a",)),
}


async def _receive(layer: AsyncIPCChannelLayer, channels: tuple[str, ...], out: list[Any]) -> None:
    try:
        if len(channels) == 1 and channels[0][-1] != "!":
            await layer.receive(channels[0])
        else:
            await layer.receive_async(channels)
    except Exception as exc:
        out.append(exc)
        raise


def _leave_behind(layer: AsyncIPCChannelLayer, waits: tuple[tuple[str, ...], ...]) -> list[Any]:
    """Close a loop whose receives were rung and have not looked yet; what they raise is put here.

    They are garbage then.
    """
    loop = SteppingLoop()
    loop.set_exception_handler(lambda *_: None)
    out: list[Any] = []
    for channels in waits:
        task = loop.create_task(_receive(layer, channels, out))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.settle()
    for name in ("x!a", "c"):
        drive(layer.send(name, {}))
    loop.step()  # the ring is answered; nobody who was told has run
    loop.close()
    return out


def _slots(layer: AsyncIPCChannelLayer) -> int:
    words = layer._site.messages.segment.words
    return sum(map(bool, words[L.SLOTS : L.BUCKETS].tolist()[L.SLOT_TOKEN :: L.SLOT_WORDS]))


def _goes_on(layer: AsyncIPCChannelLayer) -> None:
    """Check that another loop gets what was left, and waits for more."""
    loop = SteppingLoop()
    for name in ("x!a", "c"):
        while drive(layer.receive_async([name], block=False))[0]:
            pass
        task = loop.create_task(layer.receive(name))
        loop.settle()
        drive(layer.send(name, {"n": 1}))
        loop.settle()
        assert task.result() == {"n": 1}
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("inside", [None, "messages", "groups"])
def test_a_receive_is_thrown_away_with_its_closed_loop(
    make_layer: MakeLayer, waits: tuple[tuple[str, ...], ...], inside: str | None
) -> None:
    """In the middle of a transaction of the same thread as well: nothing is raised or left."""
    layer = make_layer(spin_rounds=0)
    gc.collect()
    gc.disable()
    try:
        out = _leave_behind(layer, waits)
        if inside is None:
            gc.collect()
        else:
            getattr(layer._site, inside).segment.transact(gc.collect)
    finally:
        gc.enable()
    assert out == []
    assert _slots(layer) == 0
    _goes_on(layer)


def test_what_a_closed_loop_was_rung_for_is_passed_on(
    make_layer: MakeLayer, only_rings: None
) -> None:
    """A loop of another layer that sleeps beside the message is woken when the garbage goes."""
    layer, other = make_layer(spin_rounds=0), make_layer(spin_rounds=0)
    gc.collect()
    gc.disable()
    try:
        lost, loop = SteppingLoop(), SteppingLoop()
        lost.set_exception_handler(lambda *_: None)
        out: list[Any] = []
        for _ in range(2):
            task: Any = lost.create_task(_receive(layer, ("c",), out))
            task._log_destroy_pending = False
            del task
        lost.settle()
        for _ in range(2):  # each of the two loops is rung in turn
            receive = loop.create_task(other.receive("c"))
            loop.settle()
            drive(other.send("c", {}))
            loop.settle()
            if not receive.done():
                break
        assert not receive.done()
        lost.step()  # it has told one of its receives, which has not run
        lost.close()
        gc.collect()
    finally:
        gc.enable()
    loop.settle()
    assert out == []
    assert receive.done()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_dropped_loop_gives_its_slot_back(make_layer: MakeLayer) -> None:
    """A loop that is collected in the middle of a transaction leaves no slot behind."""
    layer = make_layer()

    def use() -> weakref.ref[Any]:
        loop = SteppingLoop()
        task = loop.create_task(layer.receive("c"))
        loop.settle()
        task.cancel()
        loop.settle()
        loop.close()
        return weakref.ref(loop)

    gc.collect()
    gc.disable()
    try:
        use()
        loop = use()
        layer._site.messages.segment.transact(gc.collect)
    finally:
        gc.enable()
    assert loop() is None
    assert _slots(layer) == 0


def test_a_private_loop_may_be_collected_in_a_transaction(make_layer: MakeLayer) -> None:
    """What its thread left in a cycle is closed afterwards, and its slot given back."""
    layer = make_layer()
    gc.collect()
    gc.disable()
    try:
        assert layer.sync.receive("c", timeout=0.001) is None
        loop = layer.sync._loops._threads.loop
        assert isinstance(loop, PollLoop)
        loop.itself = loop  # type: ignore[attr-defined]
        del loop
        layer.sync.close()
        assert _slots(layer) == 1
        layer._site.messages.segment.transact(gc.collect)
    finally:
        gc.enable()
    assert _slots(layer) == 0
    assert layer.sync.receive("c", timeout=0.001) is None
    layer.sync.close()


def test_a_receive_that_is_dropped_in_a_transaction_unparks_later(make_layer: MakeLayer) -> None:
    """A coroutine stepped by hand on a living loop goes without a word, and leaves no bit."""
    layer = make_layer(spin_rounds=0)
    loop = SteppingLoop()
    asyncio._set_running_loop(loop)
    try:
        receive: Any = layer.receive("c")
        receive.send(None)
        layer._site.messages.segment.transact(receive.close)
    finally:
        asyncio._set_running_loop(None)
    loop.settle()
    records = layer._site.messages.records
    assert not any(records.is_parked(record) for record, _ in records.known.values())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize("what", ["loop", "layer"])
def test_a_process_ends_whatever_its_daemon_threads_are_doing(start: Start, what: str) -> None:
    """What is dropped while the interpreter is taken down waits for no thread that has ended."""
    child = start(
        """
class Last:  # goes after the threads, as what belongs to them does
    def __del__(self, close=lambda: layer.close_now()):
        close()
def block():
    layer.sync.receive("c", timeout=0.01)
    if sys.argv[2:] == ["layer"]:
        own.last = Last()
    has_blocked.set()
    forever.wait()
def hold():
    layer._site.messages.segment.alone(lambda: (holds.set(), forever.wait()))
own = threading.local()
has_blocked, holds, forever = threading.Event(), threading.Event(), threading.Event()
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
for body, begun in (block, has_blocked), (hold, holds):
    threading.Thread(target=body, daemon=True).start()
    begun.wait()
""",
        *([what] if what == "layer" else []),
    )
    child.end()


def test_a_layer_that_is_closed_leaves_its_loop_nothing_to_end(make_layer: MakeLayer) -> None:
    """No task for the generator of its port: from 3.13 on a loop that ends before that warns."""
    layer = make_layer(spin_rounds=0)
    made: list[object] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await layer.receive("c")
        asyncio.get_running_loop().set_task_factory(factory)
        layer.close_now()
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not made

    asyncio.run(main())
