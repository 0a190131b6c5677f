"""The application's configuration."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from .checks import check_options, check_site

__all__ = ["IPCConfig"]


class IPCConfig(AppConfig):
    """Registers the system checks."""

    name = "asgi_ipc.django"
    label = "asgi_ipc"
    verbose_name = "Channel layers of asgi_ipc"

    def ready(self) -> None:
        """Have the options checked always, and the site and its machine with ``--deploy``."""
        checks.register(check_options, "channels")
        checks.register(check_site, "channels", deploy=True)
