"""The pictures of running programs in docs/images: `python -m docs.screenshots` takes them anew.

It runs the examples, opens their pages in Chromium, and draws a terminal with `asgi-ipc top` in it.
With `pngquant` on the path the files are a third as large.
"""

from __future__ import annotations

import base64
import html
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.channels1.running_site import unused_port
from tests.channels4.browser import chromium, find_chromium
from tests.cli.screens import Screen
from tests.interface_examples.processes import EXAMPLES, Process

IMAGES = Path(__file__).parent / "images"
PREFIX = f"pictures-{os.getpid()}"
COLUMNS = 160
COLORS = {
    "default": "#d6deeb",
    "black": "#575656",
    "red": "#ef5350",
    "green": "#7fdb8a",
    "brown": "#e2b93d",
    "blue": "#82aaff",
    "magenta": "#c792ea",
    "cyan": "#7fdbca",
    "white": "#ffffff",
}
TERMINAL = """<!doctype html>
<body style="margin: 0; padding: 14px 16px; background: #1b2430; width: max-content">
<pre style="margin: 0; font: 13px/1.35 'DejaVu Sans Mono', monospace; color: #d6deeb">{}</pre>
"""
SIDE_BY_SIDE = """<!doctype html>
<body style="margin: 0; padding: 12px; background: #e5e7eb; width: max-content">
<div style="display: flex; gap: 12px">{}</div>
"""
TAB = """
<figure style="margin: 0; background: white; border-radius: 8px; overflow: hidden">
<figcaption style="font: 14px sans-serif; padding: 8px 12px; background: #cbd5e1">{}</figcaption>
<img style="display: block" src="data:image/png;base64,{}">
</figure>
"""


def save(picture: bytes, name: str) -> None:
    """Write a picture, as small as it can be had."""
    path = IMAGES / f"{name}.png"
    path.write_bytes(picture)
    if program := shutil.which("pngquant"):
        subprocess.run([program, "--force", "--output", path, "64", path], check=True)
    print(f"{path.name}: {path.stat().st_size // 1024} KiB")


def drawn(browser: Browser, body: str) -> bytes:
    """A picture of some HTML, as large as it is."""
    page = browser.new_page(viewport={"width": 400, "height": 200})
    page.set_content(body)
    size = page.locator("body").bounding_box()
    assert size is not None
    page.set_viewport_size({"width": round(size["width"]), "height": round(size["height"])})
    return page.screenshot()


def chat(browser: Browser) -> None:
    """Two people in one room, each on a process of its own."""
    ports = [unused_port(), unused_port()]
    script = str(EXAMPLES / "channels4_chat" / "run.py")
    site = Process(script, "--prefix", PREFIX, "--ports", *map(str, ports))
    try:
        site.expect("open both")
        tabs = {
            name: _chat_tab(browser, name, port)
            for name, port in zip(("Ada", "Bob"), ports, strict=True)
        }
        for tab in tabs.values():
            expect(tab.locator("#people .who")).to_have_count(2)
        said = [
            ("Ada", "Hello from the first process!"),
            ("Bob", "Hello from the second!"),
        ]
        for name, text in said:
            tabs[name].get_by_label("Message", exact=True).fill(text)
            tabs[name].get_by_role("button", name="Send").click()
            for tab in tabs.values():
                expect(tab.locator(".message .bubble").last).to_have_text(text)
        shots = [
            TAB.format(f"http://127.0.0.1:{8000 + number}/lobby/", _base64(tab))
            for number, tab in enumerate(tabs.values(), 1)
        ]
        save(drawn(browser, SIDE_BY_SIDE.format("".join(shots))), "chat")
    finally:
        site.stop()


def _chat_tab(browser: Browser, name: str, port: int) -> Page:
    page = browser.new_context(viewport={"width": 560, "height": 545}).new_page()
    page.add_init_script(f"sessionStorage.name ||= {name!r}")
    page.goto(f"http://127.0.0.1:{port}/lobby/")
    return page


def _base64(page: Page) -> str:
    return base64.b64encode(page.screenshot()).decode()


def echo_and_top(browser: Browser) -> None:
    """The interface server's example after a worker was killed, and its site in `top`."""
    port = unused_port()
    script = str(EXAMPLES / "http_echo" / "run.py")
    site = Process(script, "--port", str(port), "--prefix", PREFIX)
    try:
        worker = int(site.expect(r"^worker 1: pid (\d+)"))
        site.expect("^open ")
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#echoes")).to_have_text(re.compile(r"\d{3}"), timeout=60_000)
        os.kill(worker, signal.SIGKILL)
        expect(page.locator("#echoes")).to_have_text(re.compile("[3-9]\\d\\d"), timeout=60_000)
        save(page.screenshot(), "http-echo")
        save(drawn(browser, TERMINAL.format(_top())), "top")
    finally:
        site.stop(signal.SIGTERM)


def _top() -> str:
    """`asgi-ipc top` of a busy site, as HTML."""
    command = [sys.executable, "-m", "asgi_ipc", "top", "--prefix", PREFIX]
    screen = Screen(command, {}, columns=COLUMNS, lines=32)
    try:
        busy = re.compile(r"websocket\.send\S+ +\d+ +[1-9]\d/s")
        screen.until(lambda text: busy.search(text) and "processes 1-3 of 3" in text)
        lines = [_line(cells) for cells in screen.cells()[: screen.text().count("\n") + 1]]
        screen.type("q")
        screen.end()
    finally:
        screen.close()
    return "\n".join(lines)


def _line(cells: list[Any]) -> str:
    """A line of the terminal, with nothing in it that is another one elsewhere."""
    parts = []
    for style, run in itertools.groupby(cells, _style):
        text = "".join(cell.data for cell in run).replace(PREFIX, "mysite")
        text = re.sub(r"\S+/(python|examples/)[\d.]*", r"\1", text)
        parts.append(f'<span style="{style}">{html.escape(text)}</span>')
    return "".join(parts).rstrip()


def _style(cell: Any) -> str:
    weight = "bold" if cell.bold else "normal"
    return f"color: {_color(cell.fg)}; font-weight: {weight}"


def _color(name: str) -> str:
    return COLORS.get(name.removeprefix("bright"), f"#{name}")


def main() -> None:
    """Take all of them."""
    with (
        tempfile.TemporaryDirectory() as home,
        chromium(find_chromium(), Path(home)) as browser,
    ):
        chat(browser)
        echo_and_top(browser)


if __name__ == "__main__":
    main()
