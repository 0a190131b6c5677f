"""The chat example: two processes, two tabs of a real browser."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.channels1.running_site import unused_port

from .browser import chromium, find_chromium

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
pytestmark = pytest.mark.timeout(400)  # the first run of a machine installs a browser


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on, and none that a client may be given meanwhile."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(unused_port())
    return [*ports]


class Chat:
    """``run.py``, told by its lines what goes on."""

    def __init__(self, prefix: str) -> None:
        self.ports = free_ports(2)
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "examples" / "channels4_chat" / "run.py"),
                *("--prefix", prefix, "--ports", *map(str, self.ports)),
            ],
            stdout=subprocess.PIPE,
        )
        self._rest = b""
        self.pids = [int(self.expect(rf"process {n}: .*pid (\d+)")) for n in (1, 2)]
        self.expect("(open both)")

    def expect(self, pattern: str) -> str:
        """Wait for a line, and return the group in it."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE_S
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                if match := re.match(pattern, line.decode()):
                    return match.group(1)
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            more = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert more, f"the chat never said {pattern!r}"
            self._rest += more

    def url(self, number: int) -> str:
        """Return the address of a room on one of the processes."""
        return f"http://127.0.0.1:{self.ports[number - 1]}/workshop/"

    def stop(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0


@pytest.fixture
def chat(prefix: str) -> Iterator[Chat]:
    """A running chat, which must leave nothing behind."""
    running = Chat(prefix)
    try:
        yield running
    finally:
        running.stop()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where the browser is; installed if it is missing."""
    return find_chromium()


@pytest.fixture
def browser(chromium_path: str, tmp_path: Path) -> Iterator[Browser]:
    """A headless browser."""
    with chromium(chromium_path, tmp_path) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str, str], Page]]:
    """Open pages as people of given names; none may log an error but for lost connections."""
    complaints: list[str] = []

    def complain(message: ConsoleMessage) -> None:
        if message.type == "error" and "WebSocket" not in message.text:
            complaints.append(message.text)

    def open_one(url: str, name: str) -> Page:
        page = browser.new_context(viewport={"width": 1100, "height": 720}).new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.add_init_script(f"sessionStorage.name ||= {name!r}")
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    expect.set_options(timeout=PATIENCE_S * 1000)
    yield open_one
    assert complaints == []


REMEMBER_TYPING = """
() => {
  const line = document.getElementById("typing");
  window.typing = [];
  new MutationObserver(() => typing.push(line.textContent)).observe(line, {childList: true});
}
"""


def _say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def _people(page: Page, *names: str) -> None:
    expect(page.locator("#people .who")).to_have_text(
        [re.compile(rf"^{name}( \(you\))?$") for name in names]
    )


def test_two_tabs_on_two_processes_talk(
    chat: Chat, open_page: Callable[[str, str], Page], tmp_path: Path
) -> None:
    """They see each other come, type, speak, take another name, and go."""
    ada = open_page(chat.url(1), "Ada")
    expect(ada.locator("#badge")).to_have_text("connected to process 1")
    _people(ada, "Ada")
    bob = open_page(chat.url(2), "Bob")
    expect(bob.locator("#badge")).to_have_text("connected to process 2")
    _people(ada, "Ada", "Bob")
    _people(bob, "Bob", "Ada")
    expect(ada.locator("#messages")).to_contain_text("Bob joined on process 2")

    _say(ada, "Hello from the first process!")
    expect(bob.locator(".message .bubble")).to_have_text("Hello from the first process!")
    expect(bob.locator(".message .meta")).to_contain_text("Ada")
    expect(bob.locator(".message .meta")).to_contain_text("process 1")
    expect(ada.locator("#latency")).to_have_text(re.compile(r"[\d.]+ ms"))

    ada.evaluate(REMEMBER_TYPING)  # it is shown for two seconds and a half
    bob.get_by_label("Message", exact=True).press_sequentially("Hi")
    ada.wait_for_function("typing.includes('Bob is typing…')")
    expect(bob.locator("#typing")).to_have_text("")
    _say(bob, "<b>Hi</b> Ada 👋")
    expect(ada.locator(".message .bubble").last).to_have_text("<b>Hi</b> Ada 👋")
    expect(ada.locator("#typing")).to_have_text("")

    bob.get_by_label("Your name").fill("Bobby")
    bob.get_by_label("Your name").press("Enter")
    _people(ada, "Ada", "Bobby")
    expect(ada.locator("#messages")).to_contain_text("Bob is now Bobby")

    other = open_page(chat.url(2).replace("workshop", "kitchen"), "Eve")
    _people(other, "Eve")
    for number in range(20):
        _say(ada, f"number {number}")
    expect(bob.locator(".message .bubble").last).to_have_text("number 19")
    heard = bob.locator(".message:not(.mine) .bubble").all_inner_texts()
    assert heard == ["Hello from the first process!", *(f"number {n}" for n in range(20))]
    assert other.locator(".message").count() == 0

    bob.close()
    _people(ada, "Ada")
    expect(ada.locator("#messages")).to_contain_text("Bobby left")
    ada.screenshot(path=tmp_path / "chat.png")


def test_a_killed_process_comes_back(chat: Chat, open_page: Callable[[str, str], Page]) -> None:
    """Its pages reconnect, and nobody is left in the list who is not there."""
    ada = open_page(chat.url(1), "Ada")
    _people(ada, "Ada")
    bob = open_page(chat.url(2), "Bob")
    _people(ada, "Ada", "Bob")
    os.kill(chat.pids[1], signal.SIGKILL)
    chat.expect(r"process (2): .*pid")
    expect(bob.locator("#badge")).to_have_text("connected to process 2")
    _people(bob, "Bob", "Ada")
    _people(ada, "Ada", "Bob")
    _say(bob, "Back again")
    expect(ada.locator(".message .bubble").last).to_have_text("Back again")
    expect(ada.locator("#count")).to_have_text("2")


def test_the_page_needs_nothing_from_elsewhere(
    chat: Chat, open_page: Callable[[str, str], Page], browser: Browser
) -> None:
    """It fetches itself and opens a socket to where it came from; the front page leads to it."""
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(chat.url(1).replace("workshop/", ""))
    expect(page).to_have_url(re.compile("/lobby/$"))
    expect(page.locator("#badge")).to_have_text("connected to process 1")
    assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{chat.ports[0]}"}
    link = page.get_by_role("link", name="process 2")
    expect(link).to_have_attribute("href", f"http://127.0.0.1:{chat.ports[1]}/lobby/")
    page.close()
