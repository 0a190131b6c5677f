"""docs/operations.md says what is true: its commands run, and print what it shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from asgi_ipc._cli.app import COMMANDS
from asgi_ipc._cli.codes import Code
from asgi_ipc._cli.top import HELP

from .conftest import SCHEMA
from .operations_doc import DOCUMENT, example_site, examples, normal

if TYPE_CHECKING:
    from .conftest import Run


def test_every_example_prints_what_is_shown(prefix: str, run: Run) -> None:
    """In order, on one site; numbers may differ, words and columns may not."""

    def run_one(arguments: list[str]) -> tuple[int, str]:
        done = run(*arguments, code=None)
        return done.code, done.out + done.err

    with example_site(prefix):
        for example in examples():
            assert normal(example.written(prefix, run_one)) == normal(example.body)


def test_every_command_has_a_section_and_a_schema() -> None:
    """With an example in it."""
    text = DOCUMENT.read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for command in COMMANDS:
        section = next(part for part in sections if command in part.splitlines()[0].split(", "))
        assert f"$ asgi-ipc {command}" in section
        if command not in ("top", "serve"):
            assert command in SCHEMA["$defs"]


def test_exit_codes_and_keys_are_complete() -> None:
    """The tables have every code, by its number and its name, and every key."""
    text = DOCUMENT.read_text()
    for code in Code:
        name = f"`{code.name.lower()}`" if code else ""
        assert re.search(rf"^\| {int(code)} \| {name} ?\|", text, flags=re.MULTILINE)
    assert HELP in text
