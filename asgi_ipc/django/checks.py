"""System checks of ``CHANNEL_LAYERS``. They attach to nothing, and change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core import checks
from django.utils.module_loading import import_string

from .._operator.doctor import examine
from .._options import refuse_unknown
from ..aio import AsyncIPCChannelLayer
from ..capacity import check_capacity, compile_capacities
from ..names import check_prefix
from ..sync import IPCChannelLayer

__all__ = ["check_options", "check_site", "layers_of_settings"]

_IN_MEMORY = "channels.layers.InMemoryChannelLayer"
_LEVELS = {"warning": checks.WARNING, "error": checks.ERROR}

Options = dict[str, Any]


def layers_of_settings() -> Iterator[tuple[str, type, Options]]:
    """Yield the alias, the class and the options of each layer that is this package's.

    Raises:
        ImportError: one of the backends cannot be imported.
    """
    for alias, config in getattr(settings, "CHANNEL_LAYERS", {}).items():
        backend = import_string(config["BACKEND"])
        if isinstance(backend, type) and issubclass(
            backend, (AsyncIPCChannelLayer, IPCChannelLayer)
        ):
            yield alias, backend, config.get("CONFIG", {})


def check_options(*_: object, **__: object) -> list[checks.CheckMessage]:
    """Check what the first message would run into, and the layer that reaches one process only."""
    found: list[checks.CheckMessage] = []
    for alias, config in getattr(settings, "CHANNEL_LAYERS", {}).items():
        if config.get("BACKEND") == _IN_MEMORY and not settings.DEBUG:
            found.append(
                checks.Warning(
                    f"CHANNEL_LAYERS[{alias!r}] is in memory: no other process gets its messages",
                    hint='"BACKEND": "asgi_ipc.channels.IPCChannelLayer" reaches all of a machine.',
                    id="asgi_ipc.W001",
                )
            )
    try:
        for alias, backend, options in layers_of_settings():
            try:
                _check(backend, options)
            except (TypeError, ValueError) as exc:
                where = f"CHANNEL_LAYERS[{alias!r}]"
                found.append(checks.Error(f"{where}: {exc}", id="asgi_ipc.E001"))
    except ImportError as exc:
        found.append(checks.Error(f"CHANNEL_LAYERS: {exc}", id="asgi_ipc.E002"))
    return found


def _check(backend: type, options: Options) -> None:
    own = [parent.__init__ for parent in backend.__mro__ if "__init__" in vars(parent)]  # type: ignore[misc]
    known = {name for init in own[:-1] for name in inspect.signature(init).parameters}
    refuse_unknown(backend, known, options)
    check_prefix(options.get("prefix", "asgi"))
    compile_capacities(options.get("channel_capacity"))
    check_capacity(options.get("capacity", 1), "capacity")


def check_site(*_: object, **__: object) -> list[checks.CheckMessage]:
    """Check the site and the machine, as ``asgi-ipc doctor`` does: ``manage.py check --deploy``."""
    if any(message.is_serious() for message in check_options()):
        return []  # that is said already
    return [
        checks.CheckMessage(
            _LEVELS[finding.severity],
            f"CHANNEL_LAYERS[{alias!r}]: {finding.what}: {finding.detail}",
            hint=finding.remedy or None,
            id=f"asgi_ipc.{finding.code}",
        )
        for alias, _backend, options in layers_of_settings()
        for finding in examine(
            options.get("prefix", "asgi"),
            message_memory=options.get("message_memory"),
            group_memory=options.get("group_memory"),
            mode=options.get("mode"),
        )
        if finding.severity in _LEVELS
    ]
