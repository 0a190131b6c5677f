"""``python -m benchmarks``: run the questions, show progress, print a Markdown table.

Exit status: 0 when all ran and no message was lost, doubled or reordered, whatever the figures;
1 otherwise; 130 after Ctrl-C or SIGTERM, with what was finished until then. Workers end with the
runner, however it ends; segments are removed unless it is killed outright.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.harness import Bench, Faults

_QUESTIONS: Final = (
    "round_trip",
    "in_process",
    "one_way",
    "large_messages",
    "backlog",
    "startup",
    "groups",
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
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="of each (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.question) - set(_QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    if arguments.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return arguments


async def _run(bench: Bench, questions: list[str], progress: Progress) -> list[str]:
    """Run the questions; returns what went wrong with whole questions."""
    task = asyncio.current_task()
    assert task is not None
    # On either of them the workers end and the segments go before the runner does.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, task.cancel)
    failures = []
    for number, name in enumerate(questions, 1):
        progress.position = f"{number}/{len(questions)}"
        bench.question = name
        try:
            await importlib.import_module(f"benchmarks.{name}").run(bench)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    return failures


def main() -> int:
    arguments = _arguments()
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
    print(table, *(f"\n**failed** {failure}" for failure in failures), sep="\n")
    if arguments.markdown:
        arguments.markdown.write_text(table + "\n")
    if arguments.json:
        figures = report.as_json(machine, command, bench.cases)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    rows = [contender for case in bench.cases for contender in case.contenders]
    if failures or any(row.trouble or row.faults != Faults() for row in rows):
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
