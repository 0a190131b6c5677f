"""``IPCCollector``: sites as a collector of ``prometheus_client``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .._operator.inspect import Inspector, NoSite
from ..exceptions import (
    SegmentCorrupt,
    SegmentError,
    SegmentMismatch,
    SegmentPermission,
    StoreLocked,
)
from ..names import check_prefix
from ._families import Families

__all__ = ["IPCCollector", "Prefixed"]

logger = logging.getLogger("asgi_ipc")

_STATE_OF: dict[type[Exception], str] = {  # the first that fits
    NoSite: "missing",
    StoreLocked: "locked",
    SegmentPermission: "forbidden",
    SegmentMismatch: "mismatch",
    SegmentCorrupt: "damaged",
    SegmentError: "unreadable",
    OSError: "unreadable",
}


class Prefixed(Protocol):
    """A layer, of whichever face."""

    prefix: str


class IPCCollector(Collector):
    """Metrics of one site or several, for a registry of ``prometheus_client``.

    A site is looked at when it is scraped, whether this process uses it or not. One that does
    not exist, is locked by a stopped process or cannot be read is no error of the scrape:
    ``asgi_ipc_up`` is 0 then, ``asgi_ipc_site_state`` says why, and so does the log, once.
    """

    def __init__(
        self, *sites: str | Prefixed, top_channels: int = 20, lock_timeout: float = 1.0
    ) -> None:
        """Attach to nothing yet.

        Args:
            sites: prefixes, or layers whose prefix is meant.
            top_channels: ordinary channels shown by name, the deepest first, and patterns of
                process-specific and single-reader ones (``specific.*!``, ``reply?*``) likewise.
                The rest is summed up as ``(other)``, so this bounds the number of series.
            lock_timeout: seconds to wait for the lock of a site that somebody else holds.

        Raises:
            InvalidName: (``TypeError``) a prefix.
            ValueError: no site, or a negative ``top_channels``.
        """
        if not sites:
            raise ValueError("IPCCollector() takes at least one prefix or layer")
        if top_channels < 0:
            raise ValueError(f"top_channels must be 0 or more, not {top_channels}")
        prefixes = (site if isinstance(site, str) else site.prefix for site in sites)
        self.prefixes: tuple[str, ...] = tuple(dict.fromkeys(map(check_prefix, prefixes)))
        self.top_channels = top_channels
        self.lock_timeout = lock_timeout
        self._states: dict[str, str] = {}

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without samples, so that registering looks at no site."""
        return iter(Families())

    def collect(self) -> Iterator[Metric]:
        """Look at every site and yield what was found. Blocks for milliseconds.

        Of a stopped lock holder it waits ``lock_timeout`` seconds at most, for each site.
        """
        families = Families()
        for prefix in self.prefixes:
            self._collect(families, prefix)
        return iter(families)

    def _collect(self, families: Families, prefix: str) -> None:
        began = time.perf_counter()
        state, problem = "ok", ""
        try:
            with Inspector(prefix, patience=self.lock_timeout) as inspector:
                families.add_site(inspector.read(), self.top_channels)
        except tuple(_STATE_OF) as exc:
            problem = str(exc)
            state = next(state for kind, state in _STATE_OF.items() if isinstance(exc, kind))
        families.add_state(prefix, state, time.perf_counter() - began)
        if problem and self._states.get(prefix) != state:
            logger.warning("no metrics of site %r: %s", prefix, problem)
        self._states[prefix] = state
