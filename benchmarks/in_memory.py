"""The yardstick within one process: Channels' in-memory layer."""

from __future__ import annotations

import importlib
from typing import Any


def in_memory_layer(**options: Any) -> Any:
    """A new `InMemoryChannelLayer`.

    Raises:
        ModuleNotFoundError: Channels is not installed.
    """
    return importlib.import_module("channels.layers").InMemoryChannelLayer(**options)
