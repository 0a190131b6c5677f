"""Idle means idle: a process that waits makes no system call at all, for half a minute."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer

if TYPE_CHECKING:
    from ..conftest import Child

WAITER = """
async def main():
    layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
    tasks = [asyncio.create_task(layer.receive(f"c{n}")) for n in range(1000)]
    while not layer._site.ports() or layer._site.ports()[0]._pause_s < 30:
        await asyncio.sleep(0.01)
    say("waiting")
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    say("woken")
asyncio.run(main())
"""


def switches(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("voluntary_ctxt_switches"):
                return int(line.split()[1])
    raise AssertionError("no counter")


def idle_for(start: Callable[..., Child], seconds: float) -> None:
    child = start(WAITER)
    child.expect("waiting")
    child.wait_for_state("S")
    before = switches(child.pid)
    time.sleep(seconds)  # what is measured
    assert switches(child.pid) <= before + 1  # that it has fallen asleep may be counted late
    wake_one(child)


def wake_one(child: Child) -> None:
    prefix = str(child.process.args[-1])  # type: ignore[index]
    layer = AsyncIPCChannelLayer(prefix, message_memory=8 << 20, group_memory=4 << 20)
    layer.sync.send("c500", {})
    child.expect("woken")
    layer.close_now()


def test_a_thousand_receives_sleep(start: Callable[..., Child], prefix: str) -> None:
    """For two seconds nothing happens, by the kernel's count; then a message wakes one."""
    idle_for(start, 2)


@pytest.mark.slow
def test_a_thousand_receives_sleep_for_long(start: Callable[..., Child], prefix: str) -> None:
    """The same for twelve seconds."""
    idle_for(start, 12)


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_no_system_call(start: Callable[..., Child], prefix: str, tmp_path: object) -> None:
    """Counted by strace over six seconds: none."""
    path = f"{tmp_path}/calls"
    child = start(WAITER)
    child.expect("waiting")
    child.wait_for_state("S")
    import subprocess

    tracer = subprocess.Popen(
        ["strace", "-f", "-o", path, "-p", str(child.pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.communicate()
        pytest.skip(f"strace may not attach here: {line.strip()}")
    time.sleep(6)  # what is measured
    tracer.send_signal(signal.SIGINT)
    tracer.communicate()
    with open(path) as calls:
        made = [one for one in calls if "restart" not in one and "detached" not in one]
    assert not made, "".join(made)
    wake_one(child)
