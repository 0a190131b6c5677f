"""The ``asgi-ipc`` command (extra ``asgi_ipc[cli]``).

``app`` has the commands together; each file beside it is one kind of them. Nothing but
``__main__`` imports this package, so that a program pays for it only when it is the command.
"""

from __future__ import annotations
