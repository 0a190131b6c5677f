"""A channel layer for tests: the pytest fixture ``asgi_ipc_layer``.

pytest finds this module by itself once the package is installed, in every session: so it
imports Channels only when a test asks for the fixture.

Each test gets a prefix that nothing else uses, so tests may run in parallel, and its shared
memory is removed afterwards, whatever the test did. With Channels importable the layer is the
Channels 4 backend, otherwise the async core.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .aio import AsyncIPCChannelLayer

__all__ = ["asgi_ipc_layer"]

# Enough for a test, and several workers of a parallel run still fit a container's 64 MB.
_MESSAGE_MEMORY = 16 * 1024 * 1024
_GROUP_MEMORY = 4 * 1024 * 1024


@pytest.fixture
def asgi_ipc_layer() -> Iterator[AsyncIPCChannelLayer]:
    """A channel layer of this test's own, removed afterwards."""
    layer = _make(f"pytest-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        yield layer
    finally:
        layer.unlink()


def _make(prefix: str) -> AsyncIPCChannelLayer:
    if importlib.util.find_spec("channels") is not None:
        from .channels import IPCChannelLayer

        kind: type[AsyncIPCChannelLayer] = IPCChannelLayer
    else:
        from . import aio

        kind = aio.AsyncIPCChannelLayer
    return kind(prefix, message_memory=_MESSAGE_MEMORY, group_memory=_GROUP_MEMORY)
