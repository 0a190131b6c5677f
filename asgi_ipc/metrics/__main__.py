"""``python -m asgi_ipc.metrics PREFIX [PREFIX ...] FILE``: the textfile mode."""

from __future__ import annotations

import sys

from ._textfile import main

sys.exit(main())
