"""The blocking twin of an async layer."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

from asgi_ipc import AsyncIPCChannelLayer

MakeLayer = Callable[..., AsyncIPCChannelLayer]


def wakers() -> int:
    """Count the eventfds and pipes of this process: what bells and alarms are made of."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
        found += target.startswith("pipe:") or "eventfd" in target
    return found


def test_closing_lets_go_of_the_private_loop(make_layer: MakeLayer) -> None:
    """What a blocking receive needed is given back by ``close``, while the layer object lives."""
    layer = make_layer()
    before = wakers()
    assert layer.sync.receive("c", timeout=0.001) is None
    assert wakers() > before
    layer.close_now()
    gc.collect()  # a receive that ends by its time leaves its frames to the collector
    assert wakers() == before


def test_a_receive_returns_what_came_or_nothing_in_time(make_layer: MakeLayer) -> None:
    """With and without a message, and the twin is the same object every time."""
    layer = make_layer()
    layer.sync.send("c", {"n": 1})
    began = time.monotonic()
    assert layer.sync.receive("c", timeout=3600) == {"n": 1}
    assert layer.sync.receive("c", timeout=0.01) is None
    assert time.monotonic() - began >= 0.01
    assert layer.sync is layer.sync
