"""What Channels 1 applications know the layer and its errors by, where they have it.

They catch ``BaseChannelLayer.ChannelFull`` of asgiref 1.x and may ask for
``isinstance(layer, BaseChannelLayer)``. asgiref 1 is looked for without importing any: later
ones have no such class, and a site without Channels 1 loads nothing for it.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

__all__ = ["ChannelFull", "Layer", "MessageTooLarge"]


def _base_layer() -> Any:
    """Return ``asgiref.base_layer.BaseChannelLayer``; ``None`` where there is none."""
    package = importlib.util.find_spec("asgiref")
    places = package and package.submodule_search_locations
    if not places or PathFinder.find_spec("asgiref.base_layer", places) is None:
        return None
    try:
        from asgiref.base_layer import BaseChannelLayer  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None  # it cannot be used at all: no six, say
    return BaseChannelLayer


if TYPE_CHECKING:

    class Layer:
        """Base of the blocking layer."""

    class ChannelFull(Exception):
        """Base of the error."""

    class MessageTooLarge(Exception):
        """Base of the error."""
else:
    _found = _base_layer()
    Layer = _found or object
    ChannelFull = getattr(_found, "ChannelFull", Exception)
    MessageTooLarge = getattr(_found, "MessageTooLarge", Exception)
