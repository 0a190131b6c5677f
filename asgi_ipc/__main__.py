"""``python -m asgi_ipc``, which is the command ``asgi-ipc``."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]

_INTERRUPTED = 130
_MISSING = 9


def main(arguments: list[str] | None = None, name: str = "asgi-ipc") -> None:
    """Run the command; end with its exit code.

    Args:
        arguments: what follows its name; ``None``: what this process was given.
        name: what it calls itself.
    """
    try:
        from ._cli.app import app
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            f"asgi-ipc: the command needs {exc.name}, which is not installed: "
            "pip install 'asgi_ipc[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(_MISSING) from None
    # So that a receive that is stopped gives back its slot, and top the terminal.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _end)
    try:
        app(args=arguments, prog_name=name)
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not flush into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
