"""The ``asgi-ipc`` command (extra ``asgi_ipc[cli]``)."""

from __future__ import annotations
