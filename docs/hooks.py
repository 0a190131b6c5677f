"""mkdocs: the version in the title, and links that lead out of ``docs/``.

Links to files of the repository are right where the sources are read, and the site has no such
page: there they lead to the repository, ``extra.files`` in mkdocs.yml (``repo_url`` would make
each page ask GitHub for its stars). A file that does not exist is a warning, which a strict
build takes for an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import asgi_ipc

logger = logging.getLogger("mkdocs.hooks.links")

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Say of which version the site is."""
    config.site_name = f"{config.site_name} {asgi_ipc.__version__}"
    return config


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
        return f"[{text}]({config.extra['files']}/{path}{anchor or ''})"

    return LINK.sub(replace, markdown)
