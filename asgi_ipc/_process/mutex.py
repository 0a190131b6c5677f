"""A reentrant lock that a signal handler which raises cannot leave taken.

From Python 3.12 on, where a loop or a comprehension jumps back from an ``if``, what a handler
raises passes by the ``finally`` or the ``with`` around it in the same function: the jump is missing
from the table of exceptions. So what is held there is held around a call, and the loop is in a
function of its own (``tests/test_mutex.py`` looks for others).
"""

from __future__ import annotations

import sys
import threading
from typing import Any

__all__ = ["new_mutex"]

# Python 3.14 looks for signals between a C `__enter__` and the block, where nothing gives the lock
# back. Before, both were one instruction; 3.15 does not look there.
_IS_LEFT_TAKEN = (3, 14) <= sys.version_info < (3, 15)


def new_mutex() -> Any:
    """Return a ``threading.RLock``, or what is as good in a ``with``."""
    lock = threading.RLock()
    if not _IS_LEFT_TAKEN:
        return lock

    class Mutex:
        """Python looks for signals where one of its functions begins, not where it returns."""

        acquire, release = lock.acquire, lock.release
        _is_owned = lock._is_owned  # type: ignore[attr-defined]
        __exit__ = lock.__exit__  # of C, so nothing comes before it

        def __enter__(self) -> None:
            try:
                lock.acquire()
            except BaseException:
                try:
                    lock.release()  # it was had: the handler ran right after
                except RuntimeError:
                    pass  # the handler ran while it was waited for
                raise

    return Mutex()
