"""``manage.py asgi_ipc``: the command ``asgi-ipc``, for a layer of the settings."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ....__main__ import main
from ...checks import layers_of_settings

__all__ = ["Command"]


class Command(BaseCommand):
    """See the module docstring."""

    help = (
        "Run the command asgi-ipc for a channel layer of the settings: manage.py asgi_ipc doctor, "
        "manage.py asgi_ipc stats --json. What there is: manage.py asgi_ipc."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django has it

    def add_arguments(self, parser: CommandParser) -> None:
        """Take which layer, and all that follows as it is."""
        parser.add_argument("--layer", default="default", help="Its name in CHANNEL_LAYERS.")
        parser.add_argument("command", nargs=argparse.REMAINDER, help="What asgi-ipc takes.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Run it; its exit code is this one's."""
        alias, command = options["layer"], options["command"]
        configured = {name: found for name, _backend, found in layers_of_settings()}
        if alias not in configured:
            raise CommandError(
                f"CHANNEL_LAYERS has no layer {alias!r} of asgi_ipc; it has "
                f"{', '.join(map(repr, configured)) or 'none'}"
            )
        config = configured[alias]
        if command[:1] == ["doctor"]:
            command = ["doctor", *_as_configured(config), *command[1:]]
        prefix = config.get("prefix", "asgi")
        main(["--prefix", prefix, *(command or ["--help"])], "manage.py asgi_ipc")


def _as_configured(config: dict[str, Any]) -> list[str]:
    """Return the doctor's options to compare a site with its settings."""
    names = ("message_memory", "group_memory")
    given = [f"--{name.replace('_', '-')}={config[name]}" for name in names if name in config]
    return [*given, *([f"--mode={config['mode']:o}"] if "mode" in config else [])]
