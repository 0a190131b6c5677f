"""A Django application: put ``"asgi_ipc.django"`` into ``INSTALLED_APPS``.

It brings system checks of ``CHANNEL_LAYERS``, and ``manage.py asgi_ipc``, which is the command
``asgi-ipc`` with the prefix of the settings. Channels 4 and the extra ``asgi_ipc[cli]`` are needed.
"""

from __future__ import annotations

__all__: list[str] = []
