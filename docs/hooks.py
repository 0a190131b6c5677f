"""mkdocs: links that lead out of ``docs/`` to files of the repository.

They are right where the sources are read, and the site has no such page. Their text stays;
with ``repo_url`` set in mkdocs.yml they would lead there. A file that does not exist is a
warning, which a strict build takes for an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger("mkdocs.hooks.links")

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace the links of one page that lead out of ``docs/``."""
    folder = posixpath.dirname(page.file.src_uri)
    root = Path(config.docs_dir).parent
    docs = Path(config.docs_dir).name

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(docs, folder, target))
        if path.startswith(f"{docs}/"):
            return match.group()
        if path.startswith("..") or not (root / path).exists():
            logger.warning("%s links to %r, which does not exist", page.file.src_uri, target)
        if not config.repo_url:
            return text
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{anchor or ''})"

    return LINK.sub(replace, markdown)
