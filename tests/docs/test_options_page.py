"""docs/options.md has every option of every layer, once, with its default."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer

from .blocks import DOCS

PAGE = (DOCS / "options.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| [^|]*\| `?([^|`]+?)`? \|", PAGE, re.MULTILINE))
OPTIONS = inspect.signature(AsyncIPCChannelLayer.__init__).parameters
BLOCKING = inspect.signature(IPCChannelLayer.__init__).parameters
MIB = 1024 * 1024


def test_the_options_of_the_page_are_those_of_the_layers() -> None:
    """In the order in which they may be given by position."""
    assert ["self", *ROWS] == [*OPTIONS]
    assert set(BLOCKING) <= set(OPTIONS)
    positional = [
        name for name, one in OPTIONS.items() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert [*ROWS][:7] == positional[1:] == [*BLOCKING][1:8]


@pytest.mark.parametrize("name", ROWS)
def test_the_default_of_an_option_is_that_of_the_page(name: str) -> None:
    """In both layers, but for the one of which the page says so."""
    shown = ROWS[name]
    if shown in ("none", "what fits"):
        default = None
    elif shown.endswith(" MiB"):
        default = int(shown.removesuffix(" MiB")) * MIB
    else:
        default = ast.literal_eval(shown)
    assert OPTIONS[name].default == default
    if name in BLOCKING and name != "block_timeout":
        assert BLOCKING[name].default == default
    if name == "block_timeout":
        assert f"`{BLOCKING[name].default}` in the blocking layer" in PAGE
