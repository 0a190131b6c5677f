"""``http_echo``: uvicorn, two workers that come and go, and a real browser that stays."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect

from tests.channels1.running_site import unused_port
from tests.channels4.browser import chromium, find_chromium

from .processes import EXAMPLES, PATIENCE_S, Process

pytestmark = pytest.mark.timeout(400)  # the first run of a machine installs a browser


class Echo:
    """``run.py`` and the processes that it says it has started."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}/"
        self.pids = {
            name: int(process.expect(rf"^{name}: pid (\d+)"))
            for name in ("server", "worker 1", "worker 2")
        }
        process.expect("^open ")

    def kill(self, name: str) -> int:
        """SIGKILL a process and wait until another one was started; return that one's pid."""
        os.kill(self.pids[name], signal.SIGKILL)
        return self.wait_for(name, "SIGKILL")

    def wait_for(self, name: str, end: str) -> int:
        """Wait until a process ended as told, and another one was started."""
        self.process.expect(f"^{name}: ended by {end}")
        self.pids[name] = int(self.process.expect(rf"^{name}: pid (\d+)"))
        return self.pids[name]


@pytest.fixture
def echo(run: Callable[..., Process], prefix: str) -> Iterator[Echo]:
    """The running example, which must stop cleanly and leave nothing behind."""
    port = unused_port()
    script = str(EXAMPLES / "http_echo" / "run.py")
    process = run(script, "--port", str(port), "--prefix", prefix)
    yield Echo(process, port)
    process.stop(signal.SIGTERM)
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where the browser is; installed if it is missing."""
    return find_chromium()


@pytest.fixture
def page(chromium_path: str, tmp_path: Path, echo: Echo) -> Iterator[Page]:
    """The page, open; it may log no error but for lost connections, and asks nobody else."""
    complaints: list[str] = []
    asked: set[str] = set()

    def complain(message: ConsoleMessage) -> None:
        if message.type == "error" and "WebSocket" not in message.text:
            complaints.append(message.text)

    expect.set_options(timeout=PATIENCE_S * 1000)
    with chromium(chromium_path, tmp_path) as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.split("/")[2]))
        page.goto(echo.url)
        yield page
        page.screenshot(path=tmp_path / "echo.png")
    assert complaints == []
    assert asked == {echo.url.split("/")[2]}


def _expect_worker(page: Page, number: int, pid: int) -> None:
    """Wait until echoes have come from a certain process."""
    expect(page.locator(f"[data-worker='{number}'] .facts")).to_contain_text(f"pid {pid} ")


def _expect_more_echoes(page: Page, count: int = 10) -> None:
    before = page.evaluate("echoes")
    page.wait_for_function(f"echoes >= {before + count}")


def _expect_same_socket(page: Page) -> None:
    assert page.evaluate("socket === window.firstSocket && socket.readyState === WebSocket.OPEN")
    expect(page.locator("#badge")).to_have_text(re.compile(r"socket open for \d+:\d\d, never re"))


def test_the_socket_stays_open_while_workers_are_killed_and_restarted(
    echo: Echo, page: Page
) -> None:
    """The echo goes on; what is lost was in the hands of a killed worker."""
    expect(page.locator("#badge")).to_contain_text("never reconnected")
    page.evaluate("window.firstSocket = socket")
    for number in (1, 2):
        _expect_worker(page, number, echo.pids[f"worker {number}"])
    expect(page.locator("#last")).to_have_text(re.compile(r"[\d.]+ ms"))
    page.get_by_label("Text", exact=True).fill("<b>Is anybody there?</b>")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#said li")).to_have_text(
        re.compile(r"^<b>Is anybody there\?</b>[\d.]+ ms · worker [12]$")
    )

    for number in (1, 2, 1):
        pid = echo.kill(f"worker {number}")
        _expect_worker(page, number, pid)
        _expect_more_echoes(page)
    for button, end in (("Kill", "SIGKILL"), ("Restart", "status 0")):
        page.locator("[data-worker='2']").get_by_role("button", name=button).click()
        _expect_worker(page, 2, echo.wait_for("worker 2", end))
        _expect_more_echoes(page)
    _expect_same_socket(page)
    expect(page.locator("[data-worker='2'] .facts")).to_contain_text("3 restarts")

    page.get_by_role("slider").fill("0")
    # Four were killed; each may have taken one frame with it. The rest is answered.
    page.wait_for_function("waiting.size + lost <= 4")
    _expect_same_socket(page)


def test_frames_wait_for_workers_and_pages_for_the_server(echo: Echo, page: Page) -> None:
    """With no worker left, frames wait for the next; only the server's end closes a socket."""
    expect(page.locator("#badge")).to_contain_text("never reconnected")
    page.evaluate("window.firstSocket = socket")
    for name in ("worker 1", "worker 2"):
        os.kill(echo.pids[name], signal.SIGKILL)
    started = {echo.process.expect(r"^(worker \d): pid \d+") for _ in range(2)}
    assert started == {"worker 1", "worker 2"}
    _expect_more_echoes(page)
    _expect_same_socket(page)

    echo.kill("server")
    expect(page.locator("#badge")).to_contain_text("1 reconnect")
    _expect_more_echoes(page)


def test_requests_are_answered_by_the_workers(echo: Echo) -> None:
    """The page and its two files; anything else is not there."""
    with httpx.Client(base_url=echo.url, timeout=PATIENCE_S) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for name in re.findall(r'(?:href|src)="(/[^"]+)"', page.text):
            assert client.get(name).status_code == 200
        assert client.get("/nothing").status_code == 404
