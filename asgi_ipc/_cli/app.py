"""The command line as a whole: its commands, and what may be given before them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from . import bench, clearing, examining, listening, looking, mending, sending, serving, top
from .options import AsJson, checked_prefix

__all__ = ["app"]

app = typer.Typer(
    name="asgi-ipc",
    help="Look into, and look after, the channel layers of asgi_ipc on this machine.",
    epilog="Exit codes: 0 well, 1 a problem was found, 2 wrong usage, 3 no such site, 4 locked by "
    "a stopped or busy process, 5 unusable segments, 6 no message in time, 7 full, 8 processes "
    "are attached, 9 something is not installed.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "top": top.top,
    "stats": looking.stats,
    "channels": looking.channels,
    "groups": looking.groups,
    "processes": looking.processes,
    "sites": examining.sites,
    "peek": looking.peek,
    "listen": listening.listen,
    "send": sending.send,
    "receive": sending.receive,
    "group-send": sending.group_send,
    "flush": clearing.flush,
    "unlink": clearing.unlink,
    "doctor": examining.doctor,
    "check": mending.check,
    "repair": mending.repair,
    "bench": bench.bench,
    "serve": serving.serve,
}


def _unwrapped(docstring: str) -> str:
    """Return a docstring with each paragraph on one line: the window is what it is wrapped for."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for name, command in COMMANDS.items():
    app.command(name, help=_unwrapped(command.__doc__ or ""))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"asgi-ipc {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    prefix: Annotated[
        str,
        typer.Option(
            "--prefix",
            "-p",
            envvar="ASGI_IPC_PREFIX",
            help="The site's prefix; may also follow the command.",
            callback=checked_prefix,
        ),
    ] = "asgi",
    as_json: AsJson = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Look into, and look after, the channel layers of asgi_ipc on this machine."""
    # What stands before the command is the default of what may stand after it.
    context.default_map = {name: {"prefix": prefix, "as_json": as_json} for name in COMMANDS}
