"""Signals that wait while something is done that must not be cut short.

A handler may raise after any call. A descriptor that the call has just returned is lost then.
"""

from __future__ import annotations

# As `signal`, without 60 enum members made of each result (10 to 80 µs a call).
import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Iterable

__all__ = ["HELD", "SignalMask", "runs_handlers"]

# Not those of a fault of the thread itself: held back, it kills without a word of `faulthandler`.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
HELD = tuple(map(int, signal.valid_signals() - _FAULTS))
_NO_FD = (1 << 31) - 1


def runs_handlers() -> bool:
    """Whether this thread runs Python's signal handlers: the main one of the main interpreter."""
    if threading.get_ident() != threading.main_thread().ident:
        return False
    try:
        signal.set_wakeup_fd(_NO_FD)
    except ValueError:
        return False  # said before it looks at the descriptor, which there is none of
    except OSError:
        pass
    return True


class SignalMask:
    """Holds signals back on the thread that runs handlers.

    Attributes:
        before: what was held back before. Whoever calls ``hold`` sets it again in the end: not by a
            function of Python's, which a handler may keep from beginning, but by the system call.
    """

    def __init__(self) -> None:
        self._is_main = runs_handlers()
        self.before: Iterable[int] = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.is_held = False

    def hold(self) -> None:
        """Hold them back."""
        if self._is_main:
            self.is_held = True
            _signal.pthread_sigmask(signal.SIG_BLOCK, HELD)

    def serve(self) -> None:
        """Let them in; the handlers of those that came meanwhile run in here."""
        self.is_held = False
        _signal.pthread_sigmask(signal.SIG_SETMASK, self.before)
