"""The documentation site: it builds without a warning, its links hold, it needs no network."""

from __future__ import annotations

import functools
import http.server
import importlib
import json
import pkgutil
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import expect

import asgi_ipc
from tests.channels4.browser import chromium, find_chromium

from .blocks import DOCS, PAGES, ROOT
from .pages import is_external, page_at, problem_of

OWN_TOOLS = {"_cli"}  # what a command prints is its documentation
PATIENCE_MS = 60_000
SHOWN = ["reference/layers/", "reference/interface/"] + [
    "" if page.stem == "index" else f"{page.stem}/" for page in sorted(DOCS.glob("*.md"))
]
MARKDOWN_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def built(site: Path) -> list[Path]:
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    """None is left out, and the navigation names none that is not there."""
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert (site / folder / "index.html").exists(), page
    settings = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/]+\.md$", settings, re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    """Pages, anchors, images, styles and scripts."""
    problems = []
    for path in built(site):
        page = page_at(path)
        for address in (*page.links, *page.loads):
            if not is_external(address):
                problems.append(problem_of(page, address, site))
    assert len(problems) > 500
    assert not [problem for problem in problems if problem]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No font, script, style or image; links may lead out, to be followed or not."""
    for path in built(site):
        assert not [address for address in page_at(path).loads if is_external(address)], path
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text()), style


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_of_the_repository_hold(page: Path) -> None:
    """As they are read without the site: README, docs, examples."""
    for address in MARKDOWN_LINK.findall(page.read_text()):
        if not is_external(address):
            path = address.partition("#")[0]
            assert not path or (page.parent / path).exists(), address


def test_every_public_module_is_in_the_reference() -> None:
    """With everything it offers, from its docstrings."""
    modules = {
        f"asgi_ipc.{module.name}"
        for module in pkgutil.iter_modules(asgi_ipc.__path__)
        if not module.name.startswith("_") and module.name not in OWN_TOOLS
    }
    named = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)
    }
    assert modules <= named


@pytest.mark.parametrize("module", ["aio", "sync", "exceptions", "channels", "metrics", "tracing"])
def test_the_reference_has_every_public_name(site: Path, module: str) -> None:
    """Each is an anchor, to be linked to; of a layer, its methods too."""
    anchors: set[str] = set()
    for path in (site / "reference").rglob("index.html"):
        anchors |= page_at(path).anchors
    loaded = importlib.import_module(f"asgi_ipc.{module}")
    for name in loaded.__all__:
        assert f"asgi_ipc.{module}.{name}" in anchors
    for layer in {"AsyncIPCChannelLayer", "IPCChannelLayer", "TracingLayer"} & set(loaded.__all__):
        assert f"asgi_ipc.{module}.{layer}.send" in anchors


def test_the_reference_has_nothing_that_is_for_the_package_alone(site: Path) -> None:
    """What its parts call on each other may change at any time."""
    anchors: set[str] = set()
    for path in (site / "reference").rglob("index.html"):
        anchors |= page_at(path).anchors
    inner = {"pause", "close_now", "known_capacity", "receive_within"}
    assert not {anchor for anchor in anchors if anchor.rpartition(".")[2] in inner}


def test_every_page_says_the_version_and_examples_are_linked(site: Path) -> None:
    """In the title; files outside of the site are in the repository, and exist."""
    files = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["extra"]["files"]
    linked = set()
    for path in built(site):
        assert f"asgi_ipc {asgi_ipc.__version__}" in path.read_text(), path
        linked |= {link.partition("#")[0] for link in page_at(path).links}
    found = {link.removeprefix(f"{files}/") for link in linked if link.startswith(files)}
    assert {"deploy/grafana/asgi_ipc.json", "examples/channels4_chat", "deploy"} <= found
    assert all((ROOT / name).exists() for name in found)


def test_no_page_shows_marks_that_were_meant_to_be_rendered(site: Path) -> None:
    """Neither a literal block's colons, nor a directive, nor a section as plain text."""
    for path in built(site):
        html = path.read_text()
        assert not re.findall(r"<p>(?:Args|Raises|Returns|Yields|Attributes):", html), path
        prose = re.sub(r"<(pre|code|script)\b.*?</\1>|<[^>]+>", "", html, flags=re.DOTALL)
        assert not re.findall(r"``|:::|::\s*$|^\s*={3,}|--8<--", prose, re.MULTILINE), path


def test_the_settings_fetch_nothing() -> None:
    """Neither fonts nor plugins that would look for something on the way."""
    text = (ROOT / "mkdocs.yml").read_text()
    settings = yaml.safe_load(text)
    assert settings["theme"]["font"] is False
    assert settings["strict"] is True
    assert "mermaid" not in text


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site under a web server."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.timeout(400)  # the first run of a machine installs a browser
def test_a_browser_shows_and_searches_it(address: str, site: Path, tmp_path: Path) -> None:
    """No error, no request to anywhere else, every picture drawn, and the search finds."""
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert any("ChannelFull" in entry["text"] for entry in index["docs"])
    with chromium(find_chromium(), tmp_path) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors: list[str] = []
        elsewhere: list[str] = []
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: (
                elsewhere.append(request.url)
                if request.url.startswith("http") and not request.url.startswith(address)
                else None
            ),
        )
        for name in SHOWN:
            page.goto(address + name)
            widths = page.locator("article img").evaluate_all(
                "images => images.map(image => image.naturalWidth)"
            )
            assert all(widths), name
            wide = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide == 0, f"{name} is {wide} pixels too wide"
        page.get_by_placeholder("Search").click()
        page.keyboard.type("cancelled receive")
        found = page.locator(".md-search-result__item").first
        expect(found).to_be_visible(timeout=PATIENCE_MS)
        assert not errors
        assert not elsewhere
