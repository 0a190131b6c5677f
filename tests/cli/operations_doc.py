"""The examples of docs/operations.md, run on a site made for them.

``python -m tests.cli.operations_doc`` writes what the commands print into the document;
``test_operations_doc`` checks that it is still what they print, but for numbers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asgi_ipc._cli.top import HELP

from .screens import Screen

__all__ = ["DOCUMENT", "Example", "example_site", "examples", "normal", "output_of"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
PREFIX = "mysite"  # in the document
COMMAND = (sys.executable, "-m", "asgi_ipc")
Runner = Callable[[list[str]], tuple[int, str]]
"""Runs the command with arguments; returns its exit code and what it printed."""
RATES = 6  # in the picture of top: of four channels, and of all together

WORKER = """
import asyncio, sys
from asgi_ipc import AsyncIPCChannelLayer

async def main():
    layer = AsyncIPCChannelLayer(sys.argv[1], message_memory=16 << 20, group_memory=4 << 20)
    if sys.argv[2:] == ["web"]:
        for path in ("/", "/login", "/chat"):
            message = {"path": path, "body": b"", "reply_channel": "web.1!Xk"}
            await layer.send("http.request", message)
        for member in ("web.1!Aq", "web.1!Bz"):
            await layer.group_add("chat", member)
        await layer.group_add("staff", "web.1!Aq")
        waiting = ["web.1!Aq"]
    else:
        waiting = ["mail.resize", "thumbnails"]
    async def work(name):
        while True:
            await layer.receive(name)

    tasks = [asyncio.create_task(work(name)) for name in waiting]
    for _ in range(3):
        await asyncio.sleep(0)
    print("ready", flush=True)
    await asyncio.wait(tasks)

asyncio.run(main())
"""


class Example:
    """One fenced block of commands; ``body`` is what stands between its fences."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]

    def written(self, prefix: str, run: Runner) -> str:
        """Return the block as it should be: each command with what it prints."""
        parts = []
        for command in self.commands:
            parts.append(f"$ {command}\n")
            output = output_of(command, prefix, run).replace(prefix, PREFIX)
            parts.append(re.sub(r"\S+/python[\d.]*", "python", output))
        return "".join(parts)


_BLOCK = re.compile(r"(?<=<!-- example -->\n```console\n)(.*?)(?=```)", re.DOTALL)
_KEYS = re.compile(r"(?<=Its keys:\n\n```text\n)(.*?)(?=```)", re.DOTALL)


def examples() -> list[Example]:
    """Return the blocks that are to be what the commands print."""
    return [Example(found) for found in _BLOCK.findall(DOCUMENT.read_text())]


def _run(arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def output_of(command: str, prefix: str, run: Runner) -> str:
    """Run a line of the document; fail unless it ends with the code it says, or 0."""
    line, _, remark = command.partition("  # exits with ")
    arguments = [prefix if word == PREFIX else word for word in shlex.split(line)[1:]]
    if "top" in arguments:
        return _top([*COMMAND, *arguments])
    code, output = run(arguments)
    assert code == int(remark or 0), (command, code, output)
    return "".join(line.rstrip() + "\n" for line in output.splitlines())


def _top(arguments: list[str]) -> str:
    screen = Screen([*arguments, "--interval", "0.2"], {}, columns=130, lines=34)
    try:
        text = screen.until(lambda text: text.count(" 0/s ") == RATES and " jobs" in text)
        screen.type("q")
        assert screen.end() == 0
    finally:
        screen.close()
    return text.replace("every 0.2 s", "every 1 s").rstrip() + "\n"


def normal(text: str) -> list[str]:
    """Return the lines of an output without what is another one each time."""
    text = re.sub(r"\S*/?python[\d.]*(?= )", "python", text)
    text = re.sub(r"\d[\d.,]*( (ms|s|m|h|d|B|KiB|MiB)( \d+ [smh])?)?", "0", text)
    text = re.sub(r"─+|[#.]{3,}", "-", text)
    text = re.sub(r" +nobody *$", "", text, flags=re.MULTILINE)  # when it took ten seconds
    lines = [re.sub(r" +", " ", line).strip() for line in text.splitlines()]
    return [line for line in lines if line]


@contextmanager
def example_site(prefix: str) -> Iterator[None]:
    """Run two workers of a small site."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "worker.py"
        script.write_text(WORKER)
        workers = []
        try:
            for kind in ("web", "jobs"):
                command = [sys.executable, "worker.py", prefix, kind]
                worker = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)
                workers.append(worker)
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
            yield
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def main() -> None:
    """Write the document anew."""
    prefix = f"doc-{os.getpid()}"
    text = DOCUMENT.read_text()
    with example_site(prefix):
        text = _BLOCK.sub(lambda found: Example(found[0]).written(prefix, _run), text)
    text = _KEYS.sub(lambda _: HELP + "\n", text, count=1)
    DOCUMENT.write_text(text)
    subprocess.run([*COMMAND, "unlink", "-p", prefix], check=True)


if __name__ == "__main__":
    main()
