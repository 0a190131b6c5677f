"""docs/tutorial.md from its first command to its last, under each of its servers, in a browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, expect

from tests.channels1.running_site import unused_port
from tests.channels4.browser import chromium, find_chromium

from .blocks import DOCS, ROOT, blocks_of

PAGE = DOCS / "tutorial.md"
PATIENCE_S = 60.0
MOST_TABS = 60
SERVERS = {"runserver": 1, "uvicorn": 2, "gunicorn": 2}  # and how many processes each has
ADDS_TO = {"mysite/settings.py"}  # the other files are new, or replaced
TITLE = re.compile(r'title="([^"]+)"')
STAYS = re.compile(r"(cd|\.|export) ")  # changes the shell in which it is typed
pytestmark = pytest.mark.timeout(400)  # the first run of a machine installs a browser


class Step(NamedTuple):
    """What the page says to do next: write a file, or type a line."""

    file: str | None
    text: str


def steps() -> list[Step]:
    """Everything to do, in the order of the page."""
    found = []
    for block in blocks_of(PAGE, "console", "python", "html"):
        title = TITLE.search(block.info)
        if title:
            found.append(Step(title.group(1), block.text))
        else:
            found += [Step(None, line) for line in block.commands()]
    return found


def is_server(line: str) -> str | None:
    """The name of the server that a line starts."""
    if line.startswith("pip "):
        return None
    return next((name for name in SERVERS if re.search(rf"\b{name} ", line)), None)


class Reader:
    """Somebody in an empty directory, who does what the page says.

    Installing finds everything here already: what the page names is in this environment, in a
    version that the page allows, and no index is asked.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self.port = unused_port()
        self.typed: list[str] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "HOME": str(folder),
        }

    def as_here(self, text: str) -> str:
        """With this test's prefix and port in the place of the page's."""
        text = re.sub(r'(?<="prefix": )"mysite"', f'"{self.prefix}"', text)
        text = text.replace("--prefix mysite", f"--prefix {self.prefix}")
        return re.sub(r"\b8000\b", str(self.port), text)

    def script(self, line: str) -> list[str]:
        """A line in the shell in which the earlier ones were typed."""
        return ["bash", "-c", "\n".join(["set -e", *self.typed, self.as_here(line)])]

    def type(self, line: str) -> str:
        """Type a line, which has to succeed; what it printed."""
        done = subprocess.run(
            self.script(line),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        if STAYS.match(line):
            self.typed.append(line)
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Write a file of the project, as far as the page has it."""
        path = self.folder / "tutorial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if name in ADDS_TO else ""
        path.write_text(before + self.as_here(text))

    def do(self, step: Step) -> None:
        """Do one step that ends by itself."""
        if step.file is None:
            self.type(step.text)
        else:
            self.write(step.file, step.text)

    @contextmanager
    def serving(self, line: str) -> Iterator[None]:
        """Start a server, and wait until it listens; Ctrl-C in the end."""
        log = self.folder / "server.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                self.script(f"exec {line}"),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(process, log)
            yield
            assert process.poll() is None, log.read_text()
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        assert "Traceback" not in log.read_text(), log.read_text()

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)  # a server tells in no other way


@pytest.fixture
def reader(tmp_path: Path, prefix: str) -> Reader:
    """One who has not begun."""
    return Reader(tmp_path, prefix)


@pytest.fixture
def open_tab(tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """Open tabs of a browser; none may log an error."""
    complaints: list[str] = []
    with chromium(find_chromium(), tmp_path) as browser:
        context = browser.new_context()

        def open_one(address: str) -> Page:
            page = context.new_page()
            page.set_default_timeout(PATIENCE_S * 1000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address)
            return page

        expect.set_options(timeout=PATIENCE_S * 1000)
        yield open_one
    assert complaints == []


def process_of(tab: Page) -> int:
    """The process that holds a tab's websocket, as it says itself."""
    status = tab.locator("#status")
    expect(status).to_have_text(re.compile("connected to process"))
    return int(status.inner_text().rsplit(maxsplit=1)[1])


def tabs_on(count: int, open_one: Callable[[], Page]) -> dict[int, Page]:
    """A tab on each of so many processes; those that came to one that has a tab stay open."""
    tabs: dict[int, Page] = {}
    for _ in range(MOST_TABS):
        tab = open_one()
        tabs.setdefault(process_of(tab), tab)
        if len(tabs) == count:
            return tabs
    raise AssertionError(f"{MOST_TABS} tabs, all on {list(tabs)}")


def talk(reader: Reader, processes: int, open_tab: Callable[[str], Page], shell: str) -> None:
    """What one tab says, or a shell, all tabs of a room hear, and no other room."""
    found = re.search(r"<(http://127.0.0.1:8000/\S+)>", PAGE.read_text())
    assert found
    address = reader.as_here(found.group(1))
    tabs = tabs_on(processes, partial(open_tab, address))
    other = open_tab(address.replace("lobby", "büro 1"))
    process_of(other)
    for pid, tab in tabs.items():
        tab.locator("#text").fill(f"hello from {pid}")
        tab.get_by_role("button", name="Send").click()
        for hearing in tabs.values():
            line = f"hello from {pid} (sent by process {pid})"
            expect(hearing.locator("#log li").last).to_have_text(line)
    reader.type(shell)
    for hearing in tabs.values():
        said = hearing.locator("#log li")
        expect(said.last).to_contain_text("hello from a shell")
        assert said.count() == len(tabs) + 1
    assert other.locator("#log li").count() == 0


def test_the_steps_of_the_tutorial_lead_to_a_chat(
    reader: Reader, open_tab: Callable[[str], Page]
) -> None:
    """Each command succeeds, and there is a chat in as many processes as the page says."""
    (shell,) = [step.text for step in steps() if step.file is None and " shell " in step.text]
    served = []
    for step in steps():
        server = None if step.file else is_server(step.text)
        if server:
            with reader.serving(step.text):
                talk(reader, SERVERS[server], open_tab, shell)
            served.append(server)
        elif step.text != shell:  # which is typed while a server runs
            reader.do(step)
    assert served == list(SERVERS)
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(reader.prefix)]
