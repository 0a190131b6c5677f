"""What docs/asgi.md finds there: Starlette's test client, imported without its advice.

It asks for httpx2, of which older releases of Starlette know nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import starlette.testclient  # noqa: F401 - so that the page's own import is silent


def names(_prefix: str) -> dict[str, Any]:
    """Return nothing."""
    return {}
