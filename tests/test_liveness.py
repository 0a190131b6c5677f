"""Silence is not death: living processes are kept, whatever keeps them from answering.

Ordinary users where root is exempt from a limit: their processes give root's rights up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, _port
from asgi_ipc import _layout as L
from asgi_ipc._bell import bells_directory

from .conftest import ONLY_RINGS
from .stepping import SteppingLoop, drive
from .test_inotify import has_parked, inotifies, no_descriptor_left, start_settled

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

SOON_S = 15.0

ORDINARY = """
import concurrent.futures.thread, ctypes, resource  # what is loaded late may be root's alone
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
BROADCASTS = (
    ORDINARY
    + """
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    async def receive():
        while True:
            say((await layer.receive(channel))["n"])
    receiving = asyncio.create_task(receive())
    await asyncio.sleep(0)
    say("ready")
    n = 0
    while await asyncio.to_thread(sys.stdin.readline):
        await layer.group_send("g", {"n": await layer.group_count("g")})
asyncio.run(main())
"""
)


@pytest.mark.parametrize(("limit", "count"), [(32, 8), (64, 9)])
def test_few_descriptors_lose_nobody(start: Start, prefix: str, limit: int, count: int) -> None:
    """Processes of an ordinary user that ring each other once: all get every broadcast of each."""
    children = []
    for _ in range(count):
        children.append(start(BROADCASTS, str(limit)))
        children[-1].expect("ready")
    for _ in range(3):
        for child in children:
            for one in children:
                one.wait_for_state("S")
            child.tell()
            assert [one.line() for one in children] == [str(count)] * count
