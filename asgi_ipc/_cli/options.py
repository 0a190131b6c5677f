"""What all commands share: their common options, and how they end when something is wrong."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, ParamSpec, TextIO, TypeVar

import typer
from rich.console import Console

from .._operator.doctor import sites
from .._operator.image import LockHeld, NoSite
from ..exceptions import InvalidName, IPCError
from ..names import check_prefix
from . import words
from .codes import Code, code_of
from .messages import dumps

__all__ = [
    "AsJson",
    "Limit",
    "Patience",
    "Prefix",
    "checked_prefix",
    "console",
    "ending",
    "fail",
    "is_terminal",
    "print_json",
    "size_in_bytes",
]

P = ParamSpec("P")
R = TypeVar("R")

_LISTED = 8
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg](?:i?b)?|b?)", re.IGNORECASE)
_WIDE = 500  # columns of a table that is not printed on a terminal


def checked_prefix(prefix: str) -> str:
    """Return a prefix if it is valid, or end with a usage error."""
    try:
        return check_prefix(prefix)
    except InvalidName as exc:
        raise typer.BadParameter(str(exc)) from None


Prefix = Annotated[
    str,
    typer.Option(
        "--prefix",
        "-p",
        help="The site's prefix, as its layers have it. Also $ASGI_IPC_PREFIX.",
        callback=checked_prefix,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as cli/schema.json describes.")]
Patience = Annotated[
    float,
    typer.Option(
        "--patience",
        min=0,
        metavar="SECONDS",
        help="How long to wait for a lock whose holder is busy. A stopped one is never waited for.",
    ),
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=0, help="Show this many; 0: all.")]


def size_in_bytes(text: str | int) -> int:
    """Return a number of bytes that may have a unit: ``4194304``, ``4MiB``, ``1.5 g``, ``64 MB``.

    A letter alone is a power of 1,024, as in Docker's ``--shm-size``; KB, MB and GB are of 1,000.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size like 4194304, 4MiB or 64m")
    number, unit = match[1], match[2].lower()
    base = 1000 if re.fullmatch("[kmg]b", unit) else 1024
    power = "bkmg".index(unit[0]) if unit else 0
    size_bytes = int(float(number) * base**power)
    if not size_bytes:
        raise typer.BadParameter("it must be at least one byte")
    return size_bytes


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; one that was closed at the start is none."""
    return stream is not None and stream.isatty()


def console() -> Console:
    """Return where tables go: coloured and fitted on a terminal, plain and wide elsewhere."""
    if is_terminal(sys.stdout):
        return Console(highlight=False)
    return Console(highlight=False, width=_WIDE, force_terminal=False, color_system=None)


def print_json(document: dict[str, Any]) -> None:
    """Print one document, on one line unless it is a terminal."""
    indent = 2 if is_terminal(sys.stdout) else None
    print(dumps(document, indent=indent, allow_nan=False), flush=True)


def fail(code: Code, text: str, *, as_json: bool, **details: Any) -> NoReturn:
    """Say what is wrong and end with an exit code.

    In JSON it is a document on standard output: ``{"error": {"code": ..., ...}}``.
    """
    if as_json:
        error = {"code": code.name.lower(), "exit_code": int(code), "message": text, **details}
        print_json({"error": error})
    else:
        print(f"asgi-ipc: {words.printable(text)}", file=sys.stderr)
    raise typer.Exit(int(code))


def _there_are(prefixes: list[str]) -> str:
    if not prefixes:
        return "there is no site on this machine"
    more = f" and {len(prefixes) - _LISTED} more" if len(prefixes) > _LISTED else ""
    listed = ", ".join(prefixes[:_LISTED])
    return f"the sites on this machine are {listed}{more} (asgi-ipc sites tells more)"


def ending(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command: errors of the package become a message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (IPCError, OSError) as exc:
            if isinstance(exc, BrokenPipeError):
                raise  # whoever read our output has gone: not an error of ours
            details: dict[str, Any] = {}
            text = str(exc)
            if isinstance(exc, LockHeld):
                details["holder"] = exc.holder._asdict() | {"is_stopped": exc.holder.is_stopped}
            if isinstance(exc, NoSite):
                details["sites"] = [one.prefix for one in sites()]
                text += f"; {_there_are(details['sites'])}"
            fail(code_of(exc), text, as_json=bool(kwargs.get("as_json")), **details)

    return run
