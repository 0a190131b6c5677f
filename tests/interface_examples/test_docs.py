"""``docs/interface.md`` says what is so: its code runs, its tables are the code's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.interface import InterfaceOptions, LayerOptions

from .processes import EXAMPLES

if TYPE_CHECKING:
    from tests.conftest import Child

PAGE = (Path(__file__).parents[2] / "docs" / "interface.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("options", [LayerOptions, InterfaceOptions])
def test_every_option_is_in_the_table_with_its_default(options: type[Any]) -> None:
    """No option is missing, and set to what the table says, each is what it was."""
    rows = dict(re.findall(r"^\| `(ASGI_IPC_\w+)` \| *`?([^|`\s]*)`? *\|", PAGE, re.MULTILINE))
    for field in dataclasses.fields(options):
        assert bool(rows[f"ASGI_IPC_{field.name.upper()}"]) == (field.default not in (None, ()))
    shown = {name: default for name, default in rows.items() if default}
    assert options.from_environment(shown) == options()


def test_no_option_is_in_the_table_that_does_not_exist() -> None:
    """Nor anywhere else on the page."""
    known = {
        f"ASGI_IPC_{field.name.upper()}"
        for options in (LayerOptions, InterfaceOptions)
        for field in dataclasses.fields(options)
    }
    assert set(re.findall(r"ASGI_IPC_\w+", PAGE)) <= known


async def test_the_worker_of_the_page_answers(
    start: Callable[..., Child], make_layer: Callable[..., AsyncIPCChannelLayer]
) -> None:
    """Its code, under another prefix, serves a request and an echo."""
    layer = make_layer()
    code = next(block for block in BLOCKS if "worker.run()" in block)
    start(code.replace('prefix="mysite"', "PREFIX, **SIZES"))
    name = await layer.new_channel("test.reply")
    await layer.send("http.request", {"reply_channel": name, "path": "/here"})
    assert (await layer.receive(name))["content"] == b"You asked for /here\n"
    await layer.send("websocket.connect", {"reply_channel": name, "path": "/here"})
    assert await layer.receive(name) == {"accept": True}
    await layer.send("websocket.receive", {"reply_channel": name, "text": "hello"})
    assert await layer.receive(name) == {"text": "hello"}


def test_every_command_of_the_page_limits_how_long_it_takes_to_end() -> None:
    """Of uvicorn and hypercorn, which wait for connections before the application hears of it."""
    page = PAGE.replace("\\\n", " ")
    commands = re.findall(r"(uvicorn|hypercorn) (asgi_ipc.interface:application[^`\n]*)", page)
    assert len(commands) >= 5
    limit = {"uvicorn": "--timeout-graceful-shutdown 30", "hypercorn": "--graceful-timeout 30"}
    assert [c for program, c in commands if limit[program] not in c] == []


def test_the_server_of_the_page_is_that_of_the_example() -> None:
    """Word by word."""
    [code] = [block for block in BLOCKS if "async def pass_on" in block]
    assert code in (EXAMPLES / "tcp_server.py").read_text()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((\.\./[^)#]+)", PAGE))))
def test_what_the_page_links_to_exists(link: str) -> None:
    """Files of the repository."""
    assert (Path(__file__).parents[2] / "docs" / link).resolve().exists()
