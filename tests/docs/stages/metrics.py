"""What docs/metrics.md takes for granted."""

from __future__ import annotations

from typing import Any


async def handle(message: dict[str, Any]) -> None:
    """Whatever a reader does."""


def names(prefix: str) -> dict[str, Any]:
    """Return the names."""
    from django.conf import settings

    settings.configure(SECRET_KEY="tests", CHANNEL_LAYERS={})
    return {"handle": handle, "prefix": prefix}
