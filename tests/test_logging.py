"""What is logged: each event once, at its level, under its name, while no lock is held."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull
from asgi_ipc._store import throttle as throttle_module

from .conftest import HALF_A_COMMIT
from .stepping import drive

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]


class Heard(logging.Handler):
    """Keeps records, and publishes them through a layer: which works while no lock is held."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.layer: AsyncIPCChannelLayer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it; publish it."""
        self.records.append(record)
        if self.layer is not None:  # a handler that publishes what it is told
            drive(self.layer.send("log", {"event": vars(record)["event"]}))

    def of(self, event: str) -> list[logging.LogRecord]:
        """Return the records of one event."""
        return [record for record in self.records if vars(record)["event"] == event]


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("asgi_ipc")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


class Clock:
    """Time as the throttles see it."""

    now = 1000.0

    def monotonic(self) -> float:
        """Return what the test says it is."""
        return self.now


@pytest.fixture
def throttle_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throttle_module, "time", clock)
    return clock


WAIT = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def wait():
    task = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    say("waits")
    await task
asyncio.run(wait())
"""


def test_creating_and_attaching_are_told_once_each(make_layer: MakeLayer, heard: Heard) -> None:
    """Created by the first, for both segments; attached by each."""
    layer = make_layer()
    assert len(heard.of("segment-created")) == 2
    assert len(heard.of("segment-attached")) == 2
    make_layer()
    assert len(heard.of("segment-created")) == 2
    assert len(heard.of("segment-attached")) == 4
    created = heard.of("segment-created")
    assert {record.levelno for record in created} == {logging.INFO}
    assert {record.levelno for record in heard.of("segment-attached")} == {logging.DEBUG}
    texts = " ".join(record.getMessage() for record in created)
    assert f"/{layer.prefix}-messages, {8 << 20} bytes" in texts
    assert f"/{layer.prefix}-groups, {4 << 20} bytes" in texts


def test_an_adopted_size_is_told_once(make_layer: MakeLayer, heard: Heard) -> None:
    """Both sizes, and what to do."""
    make_layer()
    make_layer(message_memory=16 << 20)
    (record,) = heard.of("size-adopted")
    assert record.levelno == logging.WARNING
    assert str(8 << 20) in record.getMessage()
    assert str(16 << 20) in record.getMessage()


def test_a_reaped_process_is_told_once_and_no_lock_is_held(
    make_layer: MakeLayer, start: Start, heard: Heard
) -> None:
    """By whoever reaps it, with the process id; a handler may publish it through the layer."""
    layer = heard.layer = make_layer()
    child = start(WAIT)
    child.expect("waits")
    child.signal(signal.SIGKILL)
    child.process.wait()
    drive(layer.send("c", {}))
    drive(layer.send("c", {}))
    (record,) = heard.of("process-reaped")
    assert record.levelno == logging.INFO
    assert str(child.pid) in record.getMessage()
    told = drive(layer.receive_async(["log"], block=False))
    assert told == ("log", {"event": "process-reaped"})


OWN = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def own():
    mine = await layer.new_channel()
    task = asyncio.ensure_future(layer.receive(mine))
    await asyncio.sleep(0)
    say(mine)
    await task
asyncio.run(own())
"""


@pytest.mark.parametrize("way", ["receive", "receive_async", "blocking"])
def test_who_waits_for_what_another_process_owns_is_told_so_once(
    make_layer: MakeLayer, start: Start, heard: Heard, way: str
) -> None:
    """With the owner's process id; whoever waits for a name of its own hears nothing."""
    layer = heard.layer = make_layer()
    child = start(OWN)
    theirs = child.line()
    home = theirs.partition("!")[0] + "!"

    async def wait_for(channel: str) -> None:
        if way == "receive":
            task = asyncio.ensure_future(layer.receive(channel))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
        elif way == "receive_async":
            layer.block_timeout = 0.001
            assert await layer.receive_async([channel]) == (None, None)
        else:
            layer.sync.receive(channel, timeout=0.001)

    async def wait() -> None:
        await wait_for(await layer.new_channel())
        await wait_for("ordinary")
        assert not heard.of("receive-of-another")
        for _ in range(3):
            await wait_for(theirs)
        await wait_for(f"{home}x")

    asyncio.run(wait())
    (record,) = heard.of("receive-of-another")
    assert record.levelno == logging.WARNING
    assert home in record.getMessage()
    assert f"process {child.pid} owns" in record.getMessage()


def test_who_waits_for_what_a_dead_process_owned_owns_it_now(
    make_layer: MakeLayer, start: Start, heard: Heard
) -> None:
    """Nothing is wrong with that, so nothing is said."""
    layer = make_layer()
    child = start(OWN)
    theirs = child.line()
    child.kill()
    layer.sync.receive(theirs, timeout=0.001)
    assert not heard.of("receive-of-another")


def test_a_replayed_log_is_told_once_and_no_lock_is_held(
    make_layer: MakeLayer, start: Start, heard: Heard
) -> None:
    """By whoever finishes what a killed process had committed."""
    layer = heard.layer = make_layer()
    drive(layer.send("d", {"n": 0}))
    child = start(
        HALF_A_COMMIT
        + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
segment = layer._site.messages.segment
asyncio.run(layer.send("other", {"n": 1}))  # cuts a stock of extents, a step of its own
segment.commit = half
asyncio.run(layer.send("d", {"n": 1}))
"""
    )
    assert child.process.wait() == -signal.SIGKILL
    received = [drive(layer.receive_async(["d"], block=False)) for _ in range(3)]
    assert received == [("d", {"n": 0}), ("d", {"n": 1}), (None, None)]
    (record,) = heard.of("log-replayed")
    assert record.levelno == logging.INFO
    assert f"/{layer.prefix}-messages" in record.getMessage()


def test_full_memory_is_told_at_once_and_then_counted(
    make_layer: MakeLayer, heard: Heard, throttle_clock: Clock
) -> None:
    """One line for the first refused send; the next one, ten seconds later, stands for the rest."""
    layer = make_layer(message_memory=1 << 16, capacity=10_000)
    refused = 0
    while refused < 5:
        try:
            drive(layer.send("c", {"body": b"x" * 1000}))
        except ChannelFull:
            refused += 1
    (record,) = heard.of("memory-full")
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("1 sends")
    assert "message_memory" in record.getMessage()
    throttle_clock.now += 10
    with pytest.raises(ChannelFull):
        drive(layer.send("c", {"body": b"x" * 1000}))
    assert heard.of("memory-full")[1].getMessage().startswith("5 sends")


def test_full_group_memory_is_told(make_layer: MakeLayer, heard: Heard) -> None:
    """With the option that is to be raised."""
    layer = make_layer(group_memory=1 << 16)
    refused = 0
    for number in range(10_000):
        try:
            drive(layer.group_add("g", f"c{number}"))
        except ChannelFull:
            refused += 1
            if refused == 3:
                break
    (record,) = heard.of("memory-full")
    assert "group_memory" in record.getMessage()


def test_drops_are_told_at_once_and_then_counted(
    make_layer: MakeLayer, heard: Heard, throttle_clock: Clock
) -> None:
    """Group messages for a full channel: one line now, one for all others ten seconds later."""
    layer = make_layer(capacity=1)
    drive(layer.group_add("g", "c"))
    for _ in range(6):
        drive(layer.group_send("g", {}))
    (record,) = heard.of("messages-dropped")
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("1 group messages")
    assert "'c' with 1 of 1" in record.getMessage()
    throttle_clock.now += 10
    drive(layer.group_send("g", {}))
    assert heard.of("messages-dropped")[1].getMessage().startswith("5 group messages")


def test_a_deleted_segment_is_told_once(make_layer: MakeLayer, heard: Heard) -> None:
    """As an error, by each process that had it."""
    layer = make_layer()
    os.unlink(f"/dev/shm/{layer.prefix}-messages")
    layer._site.watch_at_ns = 0  # a second has passed
    drive(layer.send("c", {}))
    layer._site.watch_at_ns = 0
    drive(layer.send("c", {}))
    (record,) = heard.of("segment-deleted")
    assert record.levelno == logging.ERROR
    assert f"/{layer.prefix}-messages" in record.getMessage()
    assert "-groups" not in record.getMessage()


def test_ordinary_work_is_silent(make_layer: MakeLayer, heard: Heard) -> None:
    """Nothing is logged for messages that arrive, channels that are full, a layer that closes."""
    layer = make_layer(capacity=1)
    heard.records.clear()

    async def work() -> None:
        await layer.send("c", {})
        with pytest.raises(ChannelFull):
            await layer.send("c", {})
        await layer.receive("c")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(layer.receive("c"), 0.01)
        await layer.group_add("g", "c")
        await layer.group_send("g", {})
        await layer.flush()
        await layer.close()

    asyncio.run(work())
    assert heard.records == []


def test_a_forked_child_does_not_tell_what_its_parent_has_to(
    make_layer: MakeLayer, heard: Heard
) -> None:
    """Only what it meets itself."""
    layer = make_layer()
    layer._site.messages.segment.note(logging.INFO, "process-reaped", "the parent's")
    heard.records.clear()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        drive(layer.send("c", {}))
        os.write(writer, b"%d" % len(heard.records))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"0"
    os.waitpid(pid, 0)
    drive(layer.receive_async(["c"], block=False))
    assert len(heard.of("process-reaped")) == 1


def test_every_event_is_in_the_documentation_and_the_reverse() -> None:
    """With its level."""
    root = Path(__file__).parent.parent
    package = root / "asgi_ipc"
    files = [*package.glob("*.py"), *package.glob("_*/*.py")]
    source = "".join(path.read_text() for path in files)
    noted = re.findall(r"logging\.([A-Z]+),\s+\"([a-z-]+)\"", source)
    logged = re.findall(
        r"logger\.([a-z]+)\((?:[^()]|\([^()]*\))*?extra=\{\"event\": \"([a-z-]+)\"", source
    )
    told = {(event, level.upper().replace("EXCEPTION", "ERROR")) for level, event in noted + logged}
    page = (root / "docs/deployment.md").read_text()
    assert told == set(re.findall(r"^\| `([a-z-]+)` \| ([A-Z]+) \|", page, re.MULTILINE))


def test_a_throttle_counts_what_it_does_not_tell() -> None:
    """The first at once; nothing gets lost in between."""
    throttle = throttle_module.Throttle()
    assert throttle.add(3) == 3
    assert throttle.add() == throttle.add() == 0
    throttle._due_at = 0.0
    assert throttle.add() == 3
