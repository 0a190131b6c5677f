"""The command ``doctor``: what is wrong with a site and its surroundings, and the remedy."""

from __future__ import annotations

import pwd
from collections import Counter
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from .._operator.doctor import Finding, examine, worst
from .._operator.doctor import sites as find_sites
from . import documents, tables, words
from .codes import Code
from .options import AsJson, Prefix, console, ending, fail, print_json, size_in_bytes

__all__ = ["doctor", "sites"]

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("error", "bold red")}


def _mode(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an octal number like 600") from None


@ending
def doctor(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    message_memory: Annotated[
        int | None,
        typer.Option(parser=size_in_bytes, metavar="SIZE", help="As the site is configured."),
    ] = None,
    group_memory: Annotated[
        int | None,
        typer.Option(parser=size_in_bytes, metavar="SIZE", help="As the site is configured."),
    ] = None,
    mode: Annotated[str, typer.Option(metavar="OCTAL", help="As the site is configured.")] = "",
    user: Annotated[
        str, typer.Option(help="Name or number of the user that the site runs as.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Leave out what is well.")] = False,
) -> None:
    """Examine a site and the machine around it; say what is wrong and what to do.

    The gravest first. Ends with 0 when all is well, and 1 with a warning or an error. Looks only,
    and also at what no process can attach to. With the options that the site's layers have it
    says as well what differs from them. A SIZE is in bytes, or like 64MiB.
    """
    findings = examine(
        prefix,
        message_memory=message_memory,
        group_memory=group_memory,
        mode=_mode(mode) if mode else None,
        user=_user_id(user, as_json=as_json),
    )
    gravest = worst(findings)
    shown = [one for one in findings if not quiet or one.severity != "ok"]
    if as_json:
        documents = [one.as_dict() for one in shown]
        print_json({"prefix": prefix, "worst": gravest, "findings": documents})
    else:
        for one in shown:
            _print(one)
        _print_sum(findings)
    if gravest != "ok":
        raise typer.Exit(int(Code.PROBLEM))


def _print_sum(findings: list[Finding]) -> None:
    """Say how many there are of each: the first lines may have left the window."""
    found = Counter(one.severity for one in findings)
    parts = [words.many(found[one], one) for one in ("error", "warning") if found[one]]
    print(f"{' and '.join(parts)}: the gravest first, above" if parts else "all is well")


def _user_id(user: str, *, as_json: bool) -> int | None:
    if not user:
        return None
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        fail(Code.USAGE, f"there is no user {user!r} on this machine", as_json=as_json)


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.severity]
    out = console()
    # On a terminal lines are folded behind the mark; elsewhere each finding keeps its lines.
    out.print(Text.assemble((f"{mark:8}", style), (finding.what, "" if mark == "ok" else "bold")))
    if mark == "ok" and not finding.detail:
        return
    for text, look in ((finding.detail, "dim" if mark == "ok" else ""), (finding.remedy, "cyan")):
        for line in text.splitlines():
            out.print(Padding(Text(line, style=look), (0, 0, 0, 8), expand=False))


@ending
def sites(as_json: AsJson = False) -> None:
    """Print the sites of this machine: prefix, owner, processes, memory, age, alive or stale.

    A stale one has segments that no process is attached to: it waits for its next start, or for
    "asgi-ipc unlink".
    """
    found = find_sites()
    if as_json:
        print_json({"sites": [documents.site_document(one) for one in found]})
    elif found:
        console().print(tables.sites_table(found))
    else:
        fail(Code.OK, "there is no site on this machine", as_json=False)
