"""Prometheus metrics of a site. Needs the extra ``asgi_ipc[metrics]``.

Three ways to the same numbers:

* ``IPCCollector``, for a registry of ``prometheus_client`` beside your own metrics:
  ``REGISTRY.register(IPCCollector("mysite"))``;
* ``application``, an ASGI app to be served or mounted: ``uvicorn asgi_ipc.metrics:application``;
* ``write_textfile``, and ``python -m asgi_ipc.metrics PREFIX FILE``, for the textfile
  collector of the node exporter.

Each looks at the site anew and lets go of it again: nothing is created, no process of the
site is woken, and its lock is held for about a millisecond at a time. One process
that is scraped shows the whole site; more of them show the same.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("prometheus_client") is None:
    raise ImportError("asgi_ipc.metrics needs prometheus_client: pip install 'asgi_ipc[metrics]'")

from ._collector import IPCCollector
from ._endpoint import PREFIX_VARIABLE, TOP_CHANNELS_VARIABLE, application
from ._families import STATES
from ._textfile import exposition, main, write_textfile

__all__ = [
    "PREFIX_VARIABLE",
    "STATES",
    "TOP_CHANNELS_VARIABLE",
    "IPCCollector",
    "application",
    "exposition",
    "main",
    "write_textfile",
]
