"""Built pages as a browser resolves them."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what counts of an element."""
        values = {name: value for name, value in attrs if value is not None}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") != "canonical":
            self.loads.append(values[LOADED[tag]])


@cache
def page_at(path: Path) -> Page:
    """Return a page, read once."""
    return Page(path)


def is_external(address: str) -> bool:
    """Whether an address leaves the site."""
    parts = urlsplit(address)
    return bool(parts.scheme or parts.netloc)


def problem_of(page: Page, address: str, site: Path) -> str | None:
    """Say what is wrong with an address inside the site."""
    parts = urlsplit(address)
    target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if target.is_dir():
        target = target / "index.html"
    where = f"{page.path.relative_to(site)}: {address}"
    if not target.is_relative_to(site.resolve()) or not target.exists():
        return f"{where} leads nowhere"
    fragment = unquote(parts.fragment)
    if fragment and fragment != "__skip" and fragment not in page_at(target).anchors:
        return f"{where} names an anchor that is not there"
    return None
