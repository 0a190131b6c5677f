"""What the documentation says to type is typed here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Child

from .blocks import DOCS, PAGES, ROOT, Block, blocks_of, compiled, every_block

Start = Callable[..., Child]
PATIENCE_S = 60.0

# How many values each page compares at least, when it is run from its first line to its last.
SESSIONS = {
    DOCS / "guide.md": 15,
    DOCS / "asgi.md": 2,
    DOCS / "channels1.md": 0,
    DOCS / "channels4.md": 0,
    DOCS / "metrics.md": 0,
    ROOT / "README.md": 0,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    """Every block of every page."""
    for block in blocks_of(page, "python"):
        assert compiled(block).body, block


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.stem)
def test_a_page_runs_as_one_session(page: Path, prefix: str) -> None:
    """From its first line to its last, with the values that it says; no warning either."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs.session", prefix, str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    compared = int(done.stdout.splitlines()[-1].split()[-2])
    assert compared >= SESSIONS[page]


def test_the_two_programs_of_the_first_page_talk(prefix: str, tmp_path: Path) -> None:
    """The client is started first: its question waits for the server."""
    for block in blocks_of(DOCS / "index.md", "python"):
        title = re.search(r'title="(.*)"', block.info)
        if title:
            text = block.text.replace('"mysite"', repr(prefix))
            (tmp_path / title.group(1)).write_text(text)
    client = subprocess.Popen(
        [sys.executable, str(tmp_path / "client.py")], stdout=subprocess.PIPE, text=True
    )
    server = subprocess.Popen([sys.executable, str(tmp_path / "server.py")])
    try:
        said, _ = client.communicate(timeout=PATIENCE_S)
        assert (client.returncode, said) == (0, "DINNER?\n")
    finally:
        for process in (client, server):
            process.kill()
            process.wait()


def test_the_extras_that_are_named_exist() -> None:
    """Whatever ``pip install`` says on any page, and the errors of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = [*PAGES, *(ROOT / "asgi_ipc").rglob("*.py")]
    found: set[str] = set()
    for path in sources:
        for extras in re.findall(r"\basgi_ipc\[([a-z, ]+)\]", path.read_text()):
            found.update(extra.strip() for extra in extras.split(","))
    assert found
    assert found <= set(project["optional-dependencies"])


# -- commands ----------------------------------------------------------------------------

OURS = re.compile(r"^(asgi-ipc|python -m asgi_ipc\S*) ")
SERVERS = re.compile(r"^(?:\w+=\S+ )*uvicorn asgi_ipc\.")
EXIT_STATUS = re.compile(r"# exits with (\d+)")


@pytest.fixture
def shell(prefix: str, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a line as the pages have it: their programs, and this test's site for theirs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("python", ""), ("asgi-ipc", "-m asgi_ipc"), ("uvicorn", "-m uvicorn")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        program.chmod(0o755)

    def run(line: str) -> subprocess.CompletedProcess[str]:
        line = re.sub(r"\bmysite\b(?!\.prom)|(?<=--prefix )asgi\b", prefix, line)
        line = line.replace("/var/lib/node_exporter", str(tmp_path))
        return subprocess.run(
            ["bash", "-c", line],
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "ASGI_IPC_PREFIX": prefix,
                "PYTHONPATH": str(ROOT),
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    return run


SITE = """
async def main():
    layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
    await layer.group_add("chat", await layer.new_channel())
    for channel in ("http.request", "tasks", "orders"):
        for number in range(3):
            await layer.send(channel, {"n": number})
    waiting = asyncio.create_task(layer.receive("quiet"))
    await asyncio.sleep(0)
    say("up")
    await waiting

asyncio.run(main())
"""
# tests/cli runs what docs/operations.md has, and compares what is printed.
ELSEWHERE = {DOCS / "operations.md"}
# They go on until they are told to stop, or for long.
ENDLESS = {"top", "serve", "bench"}
# What is found on this machine is not the page's fault, nor that this test's site is in use.
FINDINGS = {"doctor": {0, 1, 2}, "unlink": {0, 8}}


@pytest.mark.parametrize(
    "block",
    [
        block
        for block in every_block("console")
        if block.page not in ELSEWHERE and any(map(OURS.match, block.commands()))
    ],
    ids=str,
)
def test_the_commands_of_a_block_work_beside_a_live_site(
    block: Block, shell: Callable[[str], subprocess.CompletedProcess[str]], start: Start
) -> None:
    """One after the other as they stand there, with this site's prefix, to the status it says."""
    start(SITE).expect("up")
    for line in filter(OURS.match, block.commands()):
        words = shlex.split(line, comments=True)
        said = EXIT_STATUS.search(line)
        if ENDLESS & set(words):
            line = f"{shlex.join(words)} --help"
        done = shell(line)
        allowed = next((FINDINGS[word] for word in words if word in FINDINGS), {0})
        if said:
            allowed = {int(said.group(1))}
        assert done.returncode in allowed, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [line for block in every_block("console") for line in filter(SERVERS.match, block.commands())],
)
def test_a_server_of_the_pages_starts(
    line: str, shell: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """On a socket of this test's own, and ends when it is told to."""
    line = re.sub(r"--port \d+", "", line)
    watch = f"{line} --uds {tmp_path}/door 2>&1 & server=$!"
    wait = "while ! [ -S door ]; do kill -0 $server || exit 9; done"
    done = shell(f"{watch}; {wait}; kill -TERM $server; wait $server")
    assert "Application startup complete" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
