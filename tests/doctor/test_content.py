"""What is inside: the lock, the log, the memory, the channels, the clocks."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull
from asgi_ipc._operator.inspect import Inspector, LockHeld
from asgi_ipc._shm import layout as L

from ..conftest import HALF_A_COMMIT, PATIENCE_S
from ..stepping import drive
from ..test_aio import HOLD_LOCK
from ..test_segment import write_word
from .grounds import as_root, cure, look, of, trouble
from .test_segments import WAIT, path_of

if TYPE_CHECKING:
    from ..conftest import Child, Clock

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]


def grows(number: Callable[[], object]) -> bool:
    """Whether a number grows while it is looked at."""
    give_up = time.monotonic() + PATIENCE_S
    first = number()
    assert isinstance(first, float)
    while time.monotonic() < give_up:
        later = number()
        assert isinstance(later, float)
        if later > first:
            return True
    return False


# -- the lock and the log ----------------------------------------------------------------


def test_a_stopped_lock_holder_is_an_error_at_once(
    prefix: str, start: Start, make_layer: MakeLayer
) -> None:
    """Who it is and for how long; it is not waited for; its end, as said, frees the lock."""
    make_layer().close_now()
    child = start(HOLD_LOCK)
    child.expect("locked")
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    findings = look(prefix, watch=3600)  # would take an hour if it waited
    finding = of(findings, "lock-stopped")
    assert finding.severity == "error"
    assert finding.numbers["pid"] == child.pid
    assert finding.numbers["name"] == f"{prefix}-messages"
    if os.path.exists("/proc/self/sched"):
        assert grows(lambda: of(look(prefix), "lock-stopped").numbers["idle_s"])
    assert of(findings, "versions").severity == "ok"  # the rest was looked at
    cure(finding, only="CONT")
    child.tell()
    child.end()
    assert trouble(look(prefix)) == []


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A control group of the older kind that can be frozen."""
    group = Path(f"/sys/fs/cgroup/freezer/test-asgi-ipc-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control groups of a freezer here")
    yield group
    (group / "freezer.state").write_text("THAWED")
    for pid in (group / "cgroup.procs").read_text().split():
        Path("/sys/fs/cgroup/freezer/cgroup.procs").write_text(pid)
    group.rmdir()


def test_a_frozen_lock_holder_is_to_be_thawed(
    prefix: str, start: Start, make_layer: MakeLayer, freezer: Path
) -> None:
    """Docker pauses a container: not waited for, and not to be killed, which would wait as well."""
    make_layer().close_now()
    child = start(HOLD_LOCK)
    child.expect("locked")
    (freezer / "cgroup.procs").write_text(str(child.pid))
    (freezer / "freezer.state").write_text("FROZEN")
    child.wait_for_state("DS")
    findings = look(prefix, watch=3600)  # would take an hour if it waited
    finding = of(findings, "lock-frozen")
    assert finding.severity == "error"
    assert finding.numbers["pid"] == child.pid
    assert "kill -" not in finding.remedy
    with pytest.raises(LockHeld, match="control group is frozen"):
        Inspector(prefix, patience=3600).read()
    cure(finding)
    child.tell()
    child.end()
    assert trouble(look(prefix)) == []
    waiting = start(WAIT)
    waiting.expect("waits")
    (freezer / "cgroup.procs").write_text(str(waiting.pid))
    (freezer / "freezer.state").write_text("FROZEN")
    finding = of(look(prefix), "process-stopped")
    assert "frozen" in finding.what
    cure(finding)
    assert trouble(look(prefix)) == []


def test_a_lock_that_is_held_for_long_is_a_warning(
    prefix: str, start: Start, make_layer: MakeLayer
) -> None:
    """By a process that runs, so that it may end by itself."""
    make_layer().close_now()
    child = start(HOLD_LOCK)
    child.expect("locked")
    finding = of(look(prefix, watch=0.02), "lock-busy")
    assert finding.severity == "warning"
    assert finding.numbers["pid"] == child.pid
    child.tell()
    child.end()
    assert trouble(look(prefix)) == []


def test_what_a_killed_process_left_in_the_log_is_a_warning(
    prefix: str, start: Start, make_layer: MakeLayer
) -> None:
    """The next operation finishes it, as the remedy says."""
    layer = make_layer()
    drive(layer.send("c", {"n": 1}))
    child = start(
        HALF_A_COMMIT
        + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
segment = layer._site.messages.segment
segment.commit = half
asyncio.run(layer.send("d", {}))
"""
    )
    assert child.process.wait() == -signal.SIGKILL
    assert trouble(look(prefix)) == ["log-pending"]
    drive(layer.receive_async(["c"], block=False))
    assert trouble(look(prefix)) == []


def fill(put: Callable[[int], object]) -> None:
    """Put things into the memory until it is full."""
    try:
        for number in range(10_000):
            put(number)
    except ChannelFull:
        return
    raise AssertionError("it is not full yet")


# -- memory and channels -----------------------------------------------------------------


def test_a_segment_that_is_nearly_full_is_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """With what is in use, and how often a send was refused; once it was read all is well."""
    layer = make_layer(capacity=10_000)
    fill(lambda number: drive(layer.send("c", {"body": b"x" * 50_000})))
    finding = of(look(prefix), "memory-full")
    assert finding.severity == "warning"
    assert finding.numbers["name"] == f"{prefix}-messages"
    assert finding.numbers["refused"] == 1
    while drive(layer.receive_async(["c"], block=False)) != (None, None):
        pass
    assert trouble(look(prefix)) == []


def test_full_group_memory_names_its_own_option(prefix: str, make_layer: MakeLayer) -> None:
    """group_memory, not message_memory."""
    layer = make_layer(group_memory=1 << 16)
    fill(lambda number: drive(layer.group_add("g", f"c{number}")))
    finding = of(look(prefix, group_memory=1 << 16), "memory-full")
    assert "group_memory" in finding.remedy


def test_old_messages_that_nobody_waits_for_are_a_warning(
    prefix: str, make_layer: MakeLayer, clock: Clock
) -> None:
    """With the channel, how many and for how long; a young backlog is none."""
    layer = make_layer(capacity=3)
    for _ in range(3):
        drive(layer.send("http.disconnect", {}))
    with pytest.raises(ChannelFull):
        drive(layer.send("http.disconnect", {}))
    assert trouble(look(prefix)) == []
    clock.advance(30)
    finding = of(look(prefix), "channel-unread")
    assert finding.severity == "warning"
    assert finding.numbers["names"] == ["http.disconnect"]
    assert "3 messages, the oldest for 30 s, 1 refused" in finding.detail


def test_messages_for_a_killed_process_are_found(
    prefix: str, make_layer: MakeLayer, start: Start, clock: Clock
) -> None:
    """A home whose loop is dead, though its slot and its parked bit are still there."""
    layer = make_layer()
    child = start(WAIT.replace('"c"', '"p.x!y"'))
    child.expect("waits")
    child.signal(signal.SIGKILL)
    child.process.wait()
    words = layer._site.messages.segment.words
    before = words[L.SLOTS]
    drive(layer.send("p.x!y", {}))
    write_word(path_of(prefix), L.SLOTS, before)  # as if the ring had just not been noticed
    clock.advance(30)
    assert "channel-unread" in trouble(look(prefix))
    write_word(path_of(prefix), L.SLOTS, 0)


def test_a_reader_of_another_channel_does_not_count(
    prefix: str, make_layer: MakeLayer, start: Start, clock: Clock
) -> None:
    """The site has a living loop, which waits for something else."""
    layer = make_layer()
    child = start(WAIT)
    child.expect("waits")
    drive(layer.send("other", {}))
    clock.advance(30)
    assert of(look(prefix), "channel-unread").numbers["names"] == ["other"]


# -- clocks ------------------------------------------------------------------------------


@as_root
@pytest.mark.skipif(
    shutil.which("unshare") is None or not os.path.exists("/proc/self/ns/time"),
    reason="the kernel has no time namespaces",
)
def test_another_monotonic_clock_is_an_error(
    prefix: str, start: Start, make_layer: MakeLayer
) -> None:
    """A process in another time namespace stamps messages with other deadlines."""
    make_layer()
    child = start(WAIT, wrapper=("unshare", "--time", "--monotonic", "100000"))
    child.expect("waits")
    finding = of(look(prefix), "clock-namespace")
    assert finding.severity == "error"
    assert finding.numbers["pids"] == [child.pid]


def test_a_wall_clock_that_was_set_back_is_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """A segment from the future: nothing depends on it."""
    make_layer().close_now()
    write_word(path_of(prefix), L.CREATED, time.time_ns() + 3_600_000_000_000)
    finding = of(look(prefix), "clock-stepped")
    assert finding.severity == "warning"
    assert "in the future" in finding.what
