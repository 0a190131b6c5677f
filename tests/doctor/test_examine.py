"""The examination as a whole: green when all is well, read-only, bounded, documented."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._operator.doctor import CODES, Finding, examine, worst
from asgi_ipc.exceptions import InvalidName

from ..stepping import drive
from .grounds import EXAMINE, ground, heard, look, needs_mount, shm, trouble

if TYPE_CHECKING:
    from ..conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

ROOT = Path(__file__).parent.parent.parent


@needs_mount
def test_a_healthy_site_is_all_green(start: Start) -> None:
    """Two processes that wait, one that sends, groups: nothing but ok, every check made."""
    child = start(
        EXAMINE
        + """
import subprocess
code = '''
import asyncio, sys
from asgi_ipc import AsyncIPCChannelLayer
layer = AsyncIPCChannelLayer(sys.argv[1], message_memory=8 << 20, group_memory=4 << 20)
async def member():
    mine = await layer.new_channel()
    await layer.group_add("g", mine)
    wait = asyncio.ensure_future(layer.receive(mine))
    await asyncio.sleep(0)
    print("waits", flush=True)
    while (message := await wait).get("text") != "end":
        wait = asyncio.ensure_future(layer.receive(mine))
asyncio.run(member())
'''
members = [
    subprocess.Popen([sys.executable, "-c", code, PREFIX], stdout=subprocess.PIPE)
    for _ in range(2)
]
for member in members:
    assert member.stdout.readline() == b"waits\\n"
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
for number in range(100):
    asyncio.run(layer.group_send("g", {"n": number}))
asyncio.run(layer.send("tasks", {"n": 1}))
show()
asyncio.run(layer.group_send("g", {"text": "end"}))
for member in members:
    assert member.wait() == 0
    member.stdout.close()
""",
        wrapper=ground(shm("size=64m,mode=1777")),
    )
    findings = heard(child)
    child.end()
    assert trouble(findings) == []
    expected = {
        "shm-filesystem", "shm-space", "memory-available", "segment", "processes", "bells",
        "slots", "lock", "memory", "channels", "clock", "descriptors", "inotify", "stale-segments",
        "remove-ipc", "protected-regular", "versions",
    }  # fmt: skip
    assert {one.code for one in findings} == expected
    assert all(one.remedy == "" for one in findings if one.severity == "ok")


def test_it_creates_nothing(prefix: str) -> None:
    """Neither a segment nor a directory, for a site that was never there."""
    before = sorted(os.listdir("/dev/shm"))
    examine(prefix)
    assert [name for name in os.listdir("/dev/shm") if prefix in name] == []
    assert [name for name in before if name not in os.listdir("/dev/shm") and prefix in name] == []


def test_it_changes_nothing(prefix: str, make_layer: MakeLayer) -> None:
    """Not a byte of either segment."""
    layer = make_layer()
    for number in range(300):
        drive(layer.send(f"c{number}", {}))
        drive(layer.group_add("g", f"c{number}"))

    def content() -> list[bytes]:
        return [Path(f"/dev/shm/{prefix}-{kind}").read_bytes() for kind in ("messages", "groups")]

    before = content()
    look(prefix)
    assert content() == before


def test_findings_are_json(prefix: str, make_layer: MakeLayer) -> None:
    """Every finding, with its numbers."""
    make_layer()
    for one in look(prefix):
        assert Finding(**json.loads(json.dumps(one.as_dict()))) == one


def test_the_order_is_the_same_each_time(prefix: str, make_layer: MakeLayer) -> None:
    """So that two examinations can be compared."""
    make_layer()
    first = [one.code for one in look(prefix)]
    assert [one.code for one in look(prefix)] == first


def test_the_worst_of_findings() -> None:
    """An error is worse than a warning, and none at all is well."""
    findings = [Finding("lock", "ok", ""), Finding("lock-busy", "warning", "")]
    assert worst([]) == "ok"
    assert worst(findings) == "warning"
    assert worst([*findings, Finding("lock-stopped", "error", "")]) == "error"


@pytest.mark.parametrize("prefix", ["", "a/b", "a b", "../x"])
def test_an_invalid_prefix_is_refused(prefix: str) -> None:
    """It could be no site's, and would be part of a path."""
    with pytest.raises(InvalidName):
        examine(prefix)


def test_every_code_is_used_and_in_the_troubleshooting_table() -> None:
    """Nothing that can be found is without a line in the documentation, and the reverse."""
    source = "".join(path.read_text() for path in (ROOT / "asgi_ipc/_operator/doctor").glob("*.py"))
    page = (ROOT / "docs/troubleshooting.md").read_text()
    assert [code for code in CODES if source.count(f'"{code}"') < 2] == []
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))
    assert documented == set(CODES)


def test_every_command_of_a_remedy_exists() -> None:
    """What remedies tell the operator to run is there to be run."""
    from asgi_ipc._cli.app import app

    sources = [*(ROOT / "asgi_ipc/_operator/doctor").glob("*.py"), ROOT / "docs/troubleshooting.md"]
    told = {
        name for path in sources for name in re.findall(r"asgi-ipc ([a-z]+)[ `]", path.read_text())
    }
    existing = {command.name for command in app.registered_commands}
    assert told <= existing, told - existing
