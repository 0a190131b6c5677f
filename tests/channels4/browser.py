"""A real browser: the system's Chromium, installed when it is missing and this is root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_MS = 120_000  # a busy machine takes its time, above all with the first one


def find_chromium() -> str:
    """Return the path of a Chromium; a machine without one fails the test, loudly."""
    found = _look()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run(
                ["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=True
            )
        found = _look()
    if found is None:
        pytest.fail(
            "the browser tests need Chromium: install it ('apt-get install chromium' on Debian) "
            f"so that one of {', '.join(NAMES)} is on the path",
            pytrace=False,
        )
    return found


def _look() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(executable: str, home: Path) -> Iterator[Browser]:
    """Start it, headless; it ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            headless=True,
            args=FLAGS,
            timeout=START_MS,
            env={**os.environ, "HOME": str(home)},
        )
        try:
            yield browser
        finally:
            browser.close()
