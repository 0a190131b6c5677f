"""A signal handler that raises in the middle of ``close`` leaves nothing that cannot be closed.

A closed layer has no descriptor, and its process is no member of anything below its homes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from asgi_ipc import AsyncIPCChannelLayer, aio
from asgi_ipc._drive import poll_loop, twin
from asgi_ipc._process import own, witness
from asgi_ipc._receive import inbox, reception
from asgi_ipc._shm import segment
from asgi_ipc._wake import bell, inotify, port, site

from .conftest import problems_of
from .interrupting import interrupted, only_what_is_new
from .test_interrupted_waits import descriptors

MakeLayer = Callable[..., AsyncIPCChannelLayer]
CLOSING = [aio, bell, inbox, inotify, own, poll_loop, port, reception, segment, site, twin, witness]


@pytest.fixture
def observer(make_layer: MakeLayer) -> Iterator[AsyncIPCChannelLayer]:
    """Make a layer that sees what the other one leaves."""
    layer = make_layer()
    layer.sync.send("x", {})
    yield layer
    layer.sync.close()


def use(layer: AsyncIPCChannelLayer) -> None:
    """Have everything that a layer can have: a loop that waited, memberships, a connection."""
    layer.sync.group_add("g", "h!a")
    assert layer.sync.receive("h!a", timeout=0.001) is None
    assert layer.sync.receive("c", timeout=0) is None
    layer.sync.send("h!b", {})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_leaves_nothing_that_cannot_be_closed(
    make_layer: MakeLayer, observer: AsyncIPCChannelLayer, only_rings: None
) -> None:
    """At whichever line, call or return; what it waits for is closed, and it can be used again."""
    layer = make_layer(spin_rounds=0)
    for _ in range(2):  # to look at the dead the observer opens the witness, and keeps it open
        use(layer)
        layer.close_now()
        assert observer.sync.group_channels("g") == []
    with only_what_is_new():
        before = descriptors()
        for place in range(10_000):
            use(layer)
            with interrupted(place, CLOSING) as interrupt:
                layer.close_now()
            layer.close_now()
            gc.collect()
            assert descriptors() == before, f"interrupted at {interrupt.where}"
            assert observer.sync.group_channels("g") == [], f"interrupted at {interrupt.where}"
            if not interrupt.where:
                break
    assert place > 100
    assert problems_of(observer) == []
