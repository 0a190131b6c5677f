"""A layer of a site that exists: commands that change something never create a site."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import AsyncIPCChannelLayer
from .._operator.inspect import Inspector

__all__ = ["layer_of"]


@contextmanager
def layer_of(prefix: str, *, patience: float, **options: Any) -> Iterator[AsyncIPCChannelLayer]:
    """Attach to the segments of ``prefix`` as they are, with their own sizes and mode.

    Args:
        patience: seconds to wait for a lock whose holder is not stopped.
        options: further ones of the layer.

    Raises:
        NoSite: there are no segments.
        LockHeld: a lock could not be had; a stopped holder is not waited for.
        SegmentError: they cannot be used.
    """
    with Inspector(prefix, patience=patience) as inspector:
        images = (inspector.messages, inspector.groups)
        for image in images:
            image.transact(lambda: None)
        mode = 0
        for image in images:
            mode |= stat.S_IMODE(os.fstat(image.lock_fd).st_mode)
        layer = AsyncIPCChannelLayer(
            prefix,
            message_memory=images[0].size_bytes,
            group_memory=images[1].size_bytes,
            mode=mode,
            lock_timeout=max(patience, 0.01),
            **options,
        )
    try:
        yield layer
    finally:
        layer.close_now()
