"""Channel layers for Django's tests: each test has its own, which is removed afterwards."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from channels.layers import channel_layers
from django.conf import settings
from django.test import override_settings

from .._wake.removing import remove_site
from .checks import layers_of_settings

if TYPE_CHECKING:
    from unittest import TestCase as _Case
else:
    _Case = object

__all__ = ["OwnChannelLayers", "own_channel_layers"]


@contextmanager
def own_channel_layers() -> Iterator[None]:
    """Give the layers of ``CHANNEL_LAYERS`` that are this package's a prefix of their own.

    Nobody else hears what is sent there: no other test, in this process or another, and no running
    site. The options are those of ``CONFIG`` and, before them, ``TEST_CONFIG``. A process that is
    forked meanwhile, a live server say, has the same ones. What they made is removed in the end.

    Raises:
        ImportError: one of the backends cannot be imported.
    """
    layers: dict[str, Any] = dict(settings.CHANNEL_LAYERS)
    prefixes = []
    for alias, _backend, options in layers_of_settings():
        prefix = f"test-{os.getpid()}-{secrets.token_hex(6)}"
        prefixes.append(prefix)
        config = {**options, **layers[alias].get("TEST_CONFIG", {}), "prefix": prefix}
        layers[alias] = {**layers[alias], "CONFIG": config}
    with override_settings(CHANNEL_LAYERS=layers):
        try:
            yield
        finally:
            _remove(prefixes)


def _remove(prefixes: list[str]) -> None:
    for layer in channel_layers.backends.values():
        if getattr(layer, "prefix", None) in prefixes:
            layer.close_now()
    for prefix in prefixes:
        remove_site(prefix)


class OwnChannelLayers(_Case):
    """To be mixed in first: ``class ChatTests(OwnChannelLayers, TransactionTestCase)``."""

    def setUp(self) -> None:
        """Begin with channel layers that nothing was sent to."""
        super().setUp()
        self.enterContext(own_channel_layers())
