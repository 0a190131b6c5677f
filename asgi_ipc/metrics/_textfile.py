"""The metrics as text: for the textfile collector of the node exporter, and for scripts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile

from ._collector import IPCCollector, Prefixed

__all__ = ["exposition", "main", "write_textfile"]


def exposition(*sites: str | Prefixed, top_channels: int = 20) -> bytes:
    """Return the metrics of sites in Prometheus' text format; see ``IPCCollector``."""
    return generate_latest(_registry(sites, top_channels))


def write_textfile(
    path: str | os.PathLike[str], *sites: str | Prefixed, top_channels: int = 20
) -> None:
    """Write the metrics of sites to a file, whole or not at all; see ``IPCCollector``.

    The file is written beside ``path`` and renamed, so a reader never finds a part of it. The
    node exporter reads files whose name ends in ``.prom``.

    Raises:
        OSError: it cannot be written; what stood there before stays.
    """
    write_to_textfile(os.fspath(path), _registry(sites, top_channels))


def _registry(sites: Sequence[str | Prefixed], top_channels: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(IPCCollector(*sites, top_channels=top_channels))
    return registry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m asgi_ipc.metrics`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m asgi_ipc.metrics",
        description="Write the metrics of sites to a file for Prometheus' node exporter.",
    )
    parser.add_argument("prefix", nargs="+", help="prefix of a site")
    parser.add_argument("file", help="a name that ends in .prom, or - for standard output")
    parser.add_argument(
        "--top-channels",
        type=int,
        default=20,
        metavar="N",
        help="channels shown by name, the deepest first; the rest is summed up (default: 20)",
    )
    options = parser.parse_args(arguments)
    try:
        if options.file == "-":
            sys.stdout.buffer.write(exposition(*options.prefix, top_channels=options.top_channels))
        else:
            write_textfile(options.file, *options.prefix, top_channels=options.top_channels)
    except (TypeError, ValueError) as exc:
        parser.error(str(exc))
    except OSError as exc:
        print(f"{parser.prog}: {options.file}: {exc.strerror}", file=sys.stderr)
        return 1
    return 0
