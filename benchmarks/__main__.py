"""``python -m benchmarks``: run the questions, show progress, print a Markdown table.

Everything runs in an environment of its own with the peers in it, made when it is missing; a peer
or a server that is not there is reported in its rows. What workers complain of is in
.stack/benchmarks.log. A finished run leaves its figures as JSON, its table and its plots in
benchmarks/results.

Exit status: 0 when all ran and no message of ours was lost, doubled or reordered, whatever the
figures; 1 otherwise; 130 after Ctrl-C or SIGTERM, with what was finished until then. Workers end
with the runner, however it ends; segments are removed unless it is killed outright.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import pages, peers, plots, report
from benchmarks.field import open_field
from benchmarks.harness import Bench, Contender, Faults
from benchmarks.layers import OURS
from benchmarks.processes import LOG, ROOT

RESULTS: Final = ROOT / "benchmarks" / "results"
_QUESTIONS: Final = (
    "round_trip",
    "one_way",
    "shared_channel",
    "in_process",
    "groups",
    "backlog",
    "idle",
    "memory",
    "startup",
)


class Progress:
    """On a terminal one line, rewritten all the time; elsewhere a line per case."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._shown = ""
        self.position = ""

    def __call__(self, what: str, detail: str) -> None:
        """Show what is going on; `detail` is for terminals."""
        line = f"[{self.position} {time.monotonic() - self._began:4.0f} s] {what}"
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns
            line = f"{line} · {detail}"[: columns - 1]
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        elif what != self._shown:
            self._shown = what
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave a terminal's line to others."""
        if self._is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "question",
        nargs="*",
        help=f"only these: {', '.join(_QUESTIONS)}",
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="of each (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here, too")
    parser.add_argument(
        "--write", choices=["docs"], help="rewrite docs/performance.md, its plots and figures"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.question) - set(_QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    if arguments.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    if arguments.write and arguments.question:
        parser.error("--write is for a run of all questions")
    return arguments


async def _run(bench: Bench, questions: list[str], progress: Progress) -> list[str]:
    """Run the questions; returns what went wrong with whole questions."""
    task = asyncio.current_task()
    assert task is not None
    # On either of them the workers end and the segments go before the runner does.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, task.cancel)
    failures = []
    async with open_field() as field:
        for number, name in enumerate(questions, 1):
            progress.position = f"{number}/{len(questions)}"
            bench.question = name
            try:
                await importlib.import_module(f"benchmarks.{name}").run(bench, field)
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {error}")
    return failures


def _write(arguments: argparse.Namespace, table: str, goals: str, figures: dict[str, Any]) -> None:
    """Leave the results, and what was asked for."""
    text = f"{table}\n\n{goals}\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    written = [RESULTS / "table.md", RESULTS / "figures.json"]
    written += plots.draw(copy.deepcopy(figures), RESULTS)
    written[0].write_text(text)
    written[1].write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.write:
        written += pages.write(table, goals, figures)
    for path in written:
        print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def _is_ours(row: Contender) -> bool:
    return row.name.startswith(OURS) and not row.name.startswith(peers.ORIGINAL)


def main() -> int:
    arguments = _arguments()
    if not arguments.here:
        interpreter = str(peers.ensure())
        os.execv(interpreter, [interpreter, "-m", "benchmarks", "--here", *sys.argv[1:]])
    LOG.unlink(missing_ok=True)
    progress = Progress()
    bench = Bench(arguments.repetitions, progress)
    questions = [name for name in _QUESTIONS if name in (arguments.question or _QUESTIONS)]
    machine = report.machine()
    failures, status = [], 0
    try:
        failures = asyncio.run(_run(bench, questions, progress))
    except asyncio.CancelledError:
        status = 130
    progress.clear()

    # Without the files, whose names are this machine's business.
    chosen = ["--repetitions", str(arguments.repetitions), *arguments.question]
    command = " ".join(["python -m benchmarks", *chosen])
    table = report.markdown(machine, command, bench.cases)
    goals = report.goals(bench.cases)
    print(table, "", goals, *(f"\n**failed** {failure}" for failure in failures), sep="\n")
    if status == 0 and not failures:
        _write(arguments, table, goals, report.as_json(machine, command, bench.cases))
    mine = [row for case in bench.cases for row in case.contenders if _is_ours(row)]
    if failures or any(row.trouble or row.faults != Faults() for row in mine):
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
