"""Fenced code blocks of the documentation."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("examples/**/*.md"))]

FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code; ``line`` is that of its first line, ``info`` what follows the language."""

    page: Path
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        """Say where it is, as editors understand it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands after the prompts of a console, each on one line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line[2:].strip() for line in lines if line.startswith("$ ")]


def blocks_of(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in some languages."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        if match.group(2) in languages:
            line = text.count("\n", 0, match.start(4)) + 1
            code = textwrap.dedent(match.group(4))
            found.append(Block(page, line, match.group(3), code))
    return found


def every_block(*languages: str) -> list[Block]:
    """Return the blocks of all pages in some languages."""
    return [block for page in PAGES for block in blocks_of(page, *languages)]


def compiled(block: Block) -> ast.Module:
    """Return a block's code parsed, ``await`` outside of functions allowed.

    Raises:
        SyntaxError: it is none, at its line of the page.
    """
    padded = "\n" * (block.line - 1) + block.text
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree: ast.Module = compile(padded, str(block.page), "exec", flags)
    return tree
