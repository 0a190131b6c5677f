"""A signal handler that raises in the middle of a blocking receive leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from asgi_ipc import AsyncIPCChannelLayer, aio
from asgi_ipc._drive import poll_loop, twin
from asgi_ipc._receive import reception
from asgi_ipc._wake import blocking, port
from asgi_ipc._wake.blocking import driving

from .conftest import problems_of
from .interrupting import Interrupt, interrupted, only_what_is_new

MakeLayer = Callable[..., AsyncIPCChannelLayer]
BLOCKING_FACE = [aio, blocking, poll_loop, port, reception, twin]


def _state() -> tuple[object, ...]:
    gc.collect()
    return (
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        driving.is_driving,
        driving.sleep,
        driving.call_out,
        descriptors(),
    )


def descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        except FileNotFoundError:
            pass  # of this very listing
    return sorted(found)


def first_wait(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.receive("c", timeout=0.005)


def receive_what_is_there(layer: AsyncIPCChannelLayer) -> None:
    layer.sync.send("x!a", {})
    layer.sync.receive("x!a", timeout=20)


WORKS = [first_wait, receive_what_is_there]


@pytest.fixture
def layer(make_layer: MakeLayer, only_rings: None) -> Iterator[AsyncIPCChannelLayer]:
    """Make a layer that has waited once."""
    layer = make_layer(spin_rounds=0)
    layer.sync.receive("c", timeout=0.005)
    layer.sync.close()
    yield layer
    layer.sync.close()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", WORKS)
def test_an_interrupt_leaves_nothing_of_a_wait_behind(
    layer: AsyncIPCChannelLayer, work: Callable[[AsyncIPCChannelLayer], None]
) -> None:
    """At whichever line, call or return: descriptors, mask and loop are as they were."""
    with only_what_is_new():
        before = _state()
        for place in range(10_000):
            with interrupted(place, BLOCKING_FACE) as interrupt:
                try:
                    work(layer)
                except Interrupt:
                    pass
            assert _state()[:4] == before[:4], f"interrupted at {interrupt.where}"
            layer.sync.send("d", {"n": place})
            assert layer.sync.receive("d", timeout=20) == {"n": place}, interrupt.where
            assert layer.sync.receive("c", timeout=0.005) is None, interrupt.where
            assert signal.set_wakeup_fd(-1) == -1, interrupt.where
            layer.sync.close()
            layer.sync.receive("x!a", timeout=0)
            layer._site._close_orphans()
            assert _state() == before, f"interrupted at {interrupt.where}"
            if not interrupt.where:
                break
    assert place > 30
    assert problems_of(layer) == []
