"""Ways to run Python: event loops and task factories, switches, and threads without a GIL."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeSync = Callable[..., IPCChannelLayer]
NewLoop = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, NewLoop] = {"asyncio": asyncio.new_event_loop}
try:
    import uvloop
except ImportError:
    pass  # there is none for this Python
else:
    uvloop.new_event_loop().close()  # libuv keeps a pipe for signals from here on
    LOOPS["uvloop"] = uvloop.new_event_loop


# -- loops -------------------------------------------------------------------------------


async def a_busy_minute(layer: AsyncIPCChannelLayer, other: AsyncIPCChannelLayer) -> None:
    """Tasks that receive, are cancelled, send and fan out; every message arrives once."""
    got: list[int] = []

    async def receive(count: int) -> None:
        for _ in range(count):
            got.append((await layer.receive("c"))["n"])

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(receive(20))
        given_up = group.create_task(receive(1))
        await asyncio.sleep(0)
        given_up.cancel()
        for number in range(100):
            await other.send("c", {"n": number})
    assert sorted(got) == list(range(100))

    mine, theirs = await layer.new_channel(), await other.new_channel()
    await layer.group_add("g", mine)
    await other.group_add("g", theirs)
    async with asyncio.TaskGroup() as group:
        one = group.create_task(layer.receive(mine))
        two = group.create_task(other.receive(theirs))
        group.create_task(other.group_send("g", {"n": 1}))
    assert one.result() == two.result() == {"n": 1}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await layer.receive(mine)
    # One that has something to return does not wait, and so may end before its task exists.
    await layer.send("c", {"n": 2})
    assert await asyncio.create_task(layer.receive("c")) == {"n": 2}


@pytest.mark.parametrize("eager", [False, True], ids=["plain", "eager"])
@pytest.mark.parametrize("name", LOOPS)
def test_loops_and_task_factories(make_layer: MakeLayer, name: str, eager: bool) -> None:
    """Several rounds on one loop, then all anew on another; the layers stay the same."""
    factory: Any = getattr(asyncio, "eager_task_factory", None)
    if eager and factory is None:
        pytest.skip("eager tasks came with Python 3.12")
    if eager and name == "uvloop" and sys.version_info < (3, 13, 3):
        pytest.skip("uvloop gives the factory an option that it takes from Python 3.13.3 on")
    layer, other = make_layer(), make_layer()
    for _ in range(2):
        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            if eager:
                runner.get_loop().set_task_factory(factory)
            for _ in range(2):
                runner.run(a_busy_minute(layer, other))


# -- switches ----------------------------------------------------------------------------

SWITCHES = {
    "warnings are errors": ["-W", "error"],
    "development mode": ["-X", "dev", "-W", "error"],
    "neither asserts nor docstrings": ["-OO"],
    "isolated": ["-I"],
    "all of them": ["-I", "-OO", "-X", "dev", "-W", "error"],
}
PROGRAM = """
import asyncio, sys
from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc.worker import Worker
import asgi_ipc.interface

async def main(layer):
    asking = asyncio.create_task(layer.receive("c"))
    await asyncio.sleep(0)
    await layer.send("c", {"n": 1})
    print(await asking)
    mine = await layer.new_channel()
    await layer.group_add("g", mine)
    await layer.group_send("g", {"n": 2})
    return (await layer.receive(mine))["n"]

layer = AsyncIPCChannelLayer(sys.argv[1])
try:
    n = asyncio.run(main(layer))
    blocking = IPCChannelLayer(sys.argv[1])
    blocking.send("c", {"n": n})
    print(blocking.receive(["c"], block=True))
    blocking.close()
finally:
    layer.unlink()
"""


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_switches_of_the_interpreter(prefix: str, switches: list[str]) -> None:
    """It works, and says nothing."""
    command = [sys.executable, *switches, "-c", PROGRAM, prefix]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{'n': 1}\n('c', {'n': 2})\n", "")


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_switches_for_the_command(prefix: str, switches: list[str]) -> None:
    """Its options are explained, and a site that is not there is an error of its own."""
    command = [sys.executable, *switches, "-m", "asgi_ipc"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "doctor" in done.stdout
    done = subprocess.run([*command, "stats", "--prefix", prefix], capture_output=True, text=True)
    assert prefix in done.stderr
    assert "Traceback" not in done.stderr


# -- threads, and whether there is a GIL ---------------------------------------------------

GIL = getattr(sys, "_is_gil_enabled", lambda: True)


def test_importing_leaves_the_gil_off() -> None:
    """A free-threaded Python turns it on for a module that is not made for it."""
    program = (
        "import sys; gil = getattr(sys, '_is_gil_enabled', lambda: True); before = gil()\n"
        "import asgi_ipc, asgi_ipc.worker, asgi_ipc.interface; print(before == gil())"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.check_output(command, text=True) == "True\n"


def together(works: list[Callable[[], None]]) -> None:
    """Run them in threads that begin at once; raise what one of them raised."""
    failures: list[BaseException] = []
    line = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            line.wait()
            work()
        except BaseException as exc:
            failures.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]


def test_threads_on_one_blocking_layer(make_sync: MakeSync) -> None:
    """Senders, readers, members, and those who look at the statistics: all is accounted for."""
    layer = make_sync(capacity=20)
    each, readers = 150, 4
    got: list[Counter[tuple[int, int]]] = [Counter() for _ in range(readers)]

    def send(who: int) -> None:
        for number in range(each):
            while True:
                try:
                    layer.send(f"c{number % 3}", {"who": who, "n": number})
                    break
                except ChannelFull:
                    time.sleep(0.0005)

    def read(who: int) -> None:
        while True:
            name, message = layer.receive(["c0", "c1", "c2", f"end{who}"], block=True)
            if name == f"end{who}":
                return
            if message is not None:
                got[who][message["who"], message["n"]] += 1

    def belong(who: int) -> None:
        for number in range(each):
            layer.group_add(f"g{number % 2}", f"m{who}")
            assert f"m{who}" in layer.group_channels(f"g{number % 2}")
            layer.group_discard(f"g{number % 2}", f"m{who}")

    def look() -> None:
        for _ in range(each):
            assert layer.global_statistics()["messages_count"] >= 0

    def all_sent() -> None:
        together([lambda who=who: send(who) for who in range(3)])  # type: ignore[misc]
        while any(layer.channel_statistics(f"c{n}")["messages_pending"] for n in range(3)):
            time.sleep(0.001)
        for who in range(readers):
            layer.send(f"end{who}", {})

    works: list[Callable[[], None]] = [all_sent, look]
    works += [lambda who=who: read(who) for who in range(readers)]  # type: ignore[misc]
    works += [lambda who=who: belong(who) for who in range(2)]  # type: ignore[misc]
    together(works)
    total = sum(got, Counter[tuple[int, int]]())
    assert total == {(who, number): 1 for who in range(3) for number in range(each)}
    assert not layer.group_channels("g0")
    assert not layer.group_channels("g1")


def test_loops_in_threads_on_one_async_layer(make_layer: MakeLayer) -> None:
    """Each loop receives, gives up, fans out and leaves; each message arrives once, in order."""
    layer = make_layer(capacity=10_000)
    count, each = 4, 100
    names: dict[int, str] = {}
    heard: dict[int, list[tuple[int, int]]] = {who: [] for who in range(count)}
    met = threading.Barrier(count)

    async def live(who: int) -> None:
        dice = random.Random(who)
        names[who] = await layer.new_channel(f"t{who}")
        await layer.group_add("all", names[who])
        await asyncio.to_thread(met.wait)

        async def listen() -> None:
            while len(heard[who]) < count * each:
                receiving = asyncio.create_task(layer.receive(names[who]))
                if dice.random() < 0.3:  # give up, before or after it has come
                    await asyncio.sleep(0)
                    receiving.cancel()
                try:
                    message = await receiving
                except asyncio.CancelledError:
                    continue
                heard[who].append((message["who"], message["n"]))

        async def speak() -> None:
            for number in range(each):
                await layer.group_send("all", {"who": who, "n": number})
                if not number % 10:
                    await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            group.create_task(speak())
        await asyncio.to_thread(met.wait)
        await layer.group_discard("all", names[who])

    def run(operation: Coroutine[Any, Any, None]) -> None:
        asyncio.run(operation)

    together([lambda who=who: run(live(who)) for who in range(count)])  # type: ignore[misc]
    everything = {(who, number): 1 for who in range(count) for number in range(each)}
    for who in range(count):
        assert Counter(heard[who]) == everything
        for speaker in range(count):  # in the order in which each of them spoke
            assert [n for other, n in heard[who] if other == speaker] == list(range(each))
    assert layer.sync.group_count("all") == 0
