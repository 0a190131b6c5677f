"""The kernel tells of processes that end and of files that are removed: nobody has to look.

Every child of these tests looks once an hour: what happens sooner, it was told of.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import select
import shutil
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._shm import layout as L
from asgi_ipc._wake import inotify as inotify_module
from asgi_ipc._wake import port as port_module
from asgi_ipc._wake.inotify import IN_ATTRIB, IN_CLOSE_WRITE, Inotify, open_inotify

from .conftest import HALF_A_COMMIT, ONLY_RINGS
from .stepping import drive

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

SOON_S = 15.0  # far below a look, far above what a busy machine takes

NEVER_LOOKS = """
import logging
import asgi_ipc._wake.port
logging.disable()
asgi_ipc._wake.port.SAFETY_S = 3600.0
asgi_ipc._wake.port.SETTLED_S = LATER = 0.05
def say_when_settled(layer):
    def watch():  # until it is told of events, and no look is due for hours
        while not any(port._pause_s >= 3600 for port in layer._site.ports()):
            time.sleep(0.01)
        asgi_ipc._wake.port.SETTLED_S = LATER
        say("settled")
    threading.Thread(target=watch, daemon=True).start()
"""
ASYNC = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
say_when_settled(layer)
async def main():
    while True:
        say((await layer.receive("c"))["n"])
asyncio.run(main())
"""
MANY = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
say_when_settled(layer)
async def wait(*names):
    while True:
        say((await layer.receive_async(names))[1]["n"])
async def main():
    await asyncio.gather(wait("c", "d"), wait("x!a"), wait("x!b"))
asyncio.run(main())
"""
BLOCKING = """
layer = IPCChannelLayer(PREFIX, **SIZES)
say_when_settled(layer.core)
while True:
    channel, message = layer.receive(["c"], block=True)
    if channel:
        say(message["n"])
"""
THREAD = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
say_when_settled(layer)
def wait():
    while True:
        say(layer.sync.receive("c")["n"])
thread = threading.Thread(target=wait)
thread.start()
thread.join()
"""
TWISTED = """
from twisted.internet import defer, reactor
layer = IPCChannelLayer(PREFIX, **SIZES)
say_when_settled(layer.core)
@defer.inlineCallbacks
def main():
    while True:
        channel, message = yield layer.receive_twisted(["c"])
        if channel:
            say(message["n"])
reactor.callWhenRunning(main)
reactor.run()
"""
WAYS = {
    "async": ASYNC,
    "many": MANY,
    "blocking": BLOCKING,
    "thread": THREAD,
    "twisted": TWISTED,
}


def start_settled(start: Start, code: str) -> Child:
    child = start(NEVER_LOOKS + code)
    child.expect("settled")
    child.wait_for_state("S")
    return child


def inotifies(pid: int) -> int:
    """How many inotify descriptors a process has."""
    count = 0
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        try:
            count += os.readlink(link) == "anon_inode:inotify"
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return count


def switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def slot_of(layer: AsyncIPCChannelLayer, pid: int) -> int:
    """The slot of the first loop of a process."""
    words = layer._site.messages.segment.words
    for slot in range(L.SLOT_COUNT):
        base = L.SLOTS + L.SLOT_WORDS * slot
        if words[base + L.SLOT_TOKEN] and words[base + L.SLOT_PID] == pid:
            return slot
    raise AssertionError(f"process {pid} has no slot")


def is_parked(layer: AsyncIPCChannelLayer, pid: int, channel: str) -> bool:
    """Whether the first loop of a process is parked on a channel."""
    slot = slot_of(layer, pid)
    record = layer._site.messages.records.find(channel)
    word = record + L.CH_PARKED + (slot >> 6)
    return bool(layer._site.messages.segment.words[word] >> (slot & 63) & 1)


def ring_one_for(layer: AsyncIPCChannelLayer, victim: Child, other: Child) -> int:
    """Send until the message is one that the victim was rung for; return its number."""
    for number in range(10):
        drive(layer.send("c", {"n": number}))
        if not is_parked(layer, victim.pid, "c"):
            return number
        other.expect(str(number))
        other.wait_for_state("S")
    raise AssertionError("only one of them is ever rung")


# -- processes that end ------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_a_killed_process_was_rung_for_goes_to_another_at_once(
    start: Start, make_layer: MakeLayer, way: str
) -> None:
    """Rung while it was stopped, it dies with the message unread; the other sleeps no longer."""
    layer = make_layer()
    victim = start_settled(start, ASYNC)
    heir = start_settled(start, WAYS[way])
    victim.signal(signal.SIGSTOP)
    victim.wait_for_state("T")
    number = ring_one_for(layer, victim, heir)
    victim.kill()
    heir.expect(str(number), SOON_S)


def test_one_that_dies_before_it_ever_answered_its_door(
    start: Start, make_layer: MakeLayer
) -> None:
    """The first ring is a connection, which nobody accepted."""
    layer, other = make_layer(), make_layer()
    victim = start_settled(start, ASYNC)
    heir = start_settled(start, ASYNC)
    victim.signal(signal.SIGSTOP)
    victim.wait_for_state("T")
    number = ring_one_for(layer, victim, heir)
    assert is_parked(other, heir.pid, "c")
    victim.kill()
    heir.expect(str(number), SOON_S)
    drive(other.send("c", {"n": 99}))
    heir.expect("99")


def test_what_one_killed_in_a_commit_has_sent_is_received_at_once(
    start: Start, make_layer: MakeLayer
) -> None:
    """It rang one that is stopped, and its message stands in the log alone: another finishes it."""
    layer = make_layer()
    stopped = start_settled(start, ASYNC)
    heir = start_settled(start, ASYNC)
    stopped.signal(signal.SIGSTOP)
    stopped.wait_for_state("T")
    sender = start(
        HALF_A_COMMIT
        + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
segment, slots = layer._site.messages.segment, layer._site.messages.slots
asyncio.run(layer.send("other", {}))  # cuts a stock of extents, a step of its own
ring = slots.ring
def ring_aloud(slot, *who):
    say("rings", slot)
    return ring(slot, *who)
slots.ring, segment.commit = ring_aloud, half
asyncio.run(layer.send("c", {"n": 1}))
"""
    )
    sender.expect(f"rings {slot_of(layer, stopped.pid)}")
    heir.expect("1", SOON_S)


def test_a_child_of_the_killed_process_may_live_on(start: Start, make_layer: MakeLayer) -> None:
    """It shares the memory; the descriptor of the lock it has given back."""
    layer = make_layer()
    forking = ASYNC.replace(
        'say((await layer.receive("c"))["n"])',
        """
        waiting = asyncio.ensure_future(layer.receive("c"))
        await asyncio.sleep(0)
        child = os.fork()
        if not child:
            os.close(1)
            sys.stdin.buffer.read()  # until the test is over
            os._exit(0)
        say("forked")
        say((await waiting)["n"])
""",
    )
    victim = start(NEVER_LOOKS + forking)
    assert {victim.line(), victim.line()} == {"forked", "settled"}
    heir = start_settled(start, ASYNC)
    victim.signal(signal.SIGSTOP)
    victim.wait_for_state("T")
    number = ring_one_for(layer, victim, heir)
    victim.signal(signal.SIGKILL)
    heir.expect(str(number), SOON_S)


def test_one_that_was_dead_already_is_rung_for_nothing(start: Start, make_layer: MakeLayer) -> None:
    """The sender has rung each once; it asks when it has committed, and rings the other."""
    layer = make_layer()
    code = ONLY_RINGS + ASYNC.replace("say_when_settled(layer)", "")
    victim, heir = start(code), start(code)
    for number in range(2):  # they take turns
        while not (has_parked(layer, victim.pid) and has_parked(layer, heir.pid)):
            os.sched_yield()
        drive(layer.send("c", {"n": number}))
        who_speaks(victim, heir).expect(str(number))
    while not (has_parked(layer, victim.pid) and has_parked(layer, heir.pid)):
        os.sched_yield()
    victim.kill()
    for number in (2, 3):
        drive(layer.send("c", {"n": number}))
        heir.expect(str(number), SOON_S)


def has_parked(layer: AsyncIPCChannelLayer, pid: int) -> bool:
    """Whether a process has a slot and is parked."""
    try:
        return is_parked(layer, pid, "c")
    except AssertionError:
        return False


def who_speaks(*children: Child) -> Child:
    """The one that says something."""
    ready, _, _ = select.select(
        [c.process.stdout for c in children if c.process.stdout], [], [], SOON_S
    )
    return next(child for child in children if child.process.stdout in ready)


# -- names that are removed --------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_deleted_segment_is_followed_at_once(
    start: Start, make_layer: MakeLayer, prefix: str, way: str
) -> None:
    """Whoever waits meets the others in the new one, without having looked."""
    child = start_settled(start, WAYS[way])
    for kind in ("messages", "groups"):
        os.unlink(f"/dev/shm/{prefix}-{kind}")
    layer = make_layer()
    layer.sync.send("c", {"n": 1})
    child.expect("1", SOON_S)


@pytest.mark.parametrize("kind", ["messages", "groups"])
def test_one_deleted_segment_is_made_anew_by_who_waits(
    start: Start, prefix: str, kind: str
) -> None:
    """Nobody else has to come."""
    start_settled(start, ASYNC)
    os.unlink(f"/dev/shm/{prefix}-{kind}")
    give_up = time.monotonic() + SOON_S
    while not os.path.exists(f"/dev/shm/{prefix}-{kind}"):
        assert time.monotonic() < give_up
        os.sched_yield()


@pytest.mark.parametrize("way", WAYS)
def test_removed_doors_are_made_anew_at_once(
    start: Start, make_layer: MakeLayer, prefix: str, way: str
) -> None:
    """The child has a new socket before anybody has sent it anything, and is rung there."""
    child = start_settled(start, WAYS[way])
    directory = f"/dev/shm/{prefix}-bells"
    shutil.rmtree(directory)
    give_up = time.monotonic() + SOON_S
    while not os.path.isdir(directory) or len(os.listdir(directory)) < 2:  # its own and its loop's
        assert time.monotonic() < give_up
        os.sched_yield()
    layer = make_layer()
    layer.sync.send("c", {"n": 1})
    child.expect("1", SOON_S)


@pytest.mark.parametrize("what", ["directory", "doors"])
def test_moved_doors_are_made_anew_at_once(
    start: Start, make_layer: MakeLayer, prefix: str, what: str
) -> None:
    """Nobody finds them where they are now."""
    child = start_settled(start, ASYNC)
    directory = Path(f"/dev/shm/{prefix}-bells")
    elsewhere = directory.with_name(f"{prefix}-moved")
    if what == "directory":
        directory.rename(elsewhere)
    else:
        elsewhere.mkdir()
        for door in directory.iterdir():
            door.rename(elsewhere / door.name)
    give_up = time.monotonic() + SOON_S
    while not directory.is_dir() or len(list(directory.iterdir())) < 2:
        assert time.monotonic() < give_up
        os.sched_yield()
    shutil.rmtree(elsewhere)
    make_layer().sync.send("c", {"n": 1})
    child.expect("1", SOON_S)


async def test_what_happened_while_nobody_waited_is_not_missed(
    make_layer: MakeLayer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receive that begins after the news, within the second in which nobody looks."""
    monkeypatch.setattr(port_module, "SAFETY_S", 3600.0)
    monkeypatch.setattr(port_module, "SETTLED_S", 0.01)
    layer = make_layer()
    waiting = asyncio.ensure_future(layer.receive("c"))
    while not layer._site.ports() or layer._site.ports()[0]._pause_s < 3600:
        await asyncio.sleep(0.001)
    waiting.cancel()
    await asyncio.sleep(0)
    layer._site.watch()  # a second begins
    layer._site.watch_at_ns += 3600 * 10**9  # a long one
    for kind in ("messages", "groups"):
        os.unlink(f"/dev/shm/{prefix}-{kind}")
    for _ in range(3):
        await asyncio.sleep(0.001)
    layer._site.watch_at_ns += 3600 * 10**9
    waiting = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    await make_layer().send("c", {"n": 1})
    assert await asyncio.wait_for(waiting, SOON_S) == {"n": 1}


# -- senders that cannot ring ------------------------------------------------------------


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_sender_without_descriptors_wakes_its_reader(start: Start, make_layer: MakeLayer) -> None:
    """It cannot connect to the bell; the segment itself tells whoever waits."""
    layer = make_layer()
    child = start_settled(start, ASYNC)
    with no_descriptor_left():
        drive(layer.send("c", {"n": 1}))
    child.expect("1", SOON_S)


def test_a_reader_without_descriptors_hears_who_rings_first(
    start: Start, make_layer: MakeLayer
) -> None:
    """It cannot let the sender in, but it knows that somebody is there."""
    child = start(
        NEVER_LOOKS
        + """
import resource
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
say_when_settled(layer)
async def main():
    waiting = asyncio.ensure_future(layer.receive("c"))
    await asyncio.to_thread(sys.stdin.readline)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    say("has none left")
    say((await waiting)["n"])
asyncio.run(main())
"""
    )
    child.expect("settled")
    child.tell()
    child.expect("has none left")
    drive(make_layer().send("c", {"n": 1}))
    child.expect("1", SOON_S)


# -- where there is no inotify -----------------------------------------------------------


def test_without_inotify_it_looks(start: Start, make_layer: MakeLayer) -> None:
    """The kernel refuses the descriptor: what a killed process left is found by looking."""
    layer = make_layer()
    victim = start_settled(start, ASYNC)
    heir = start(
        """
import ctypes, resource
import asgi_ipc._wake.port
asgi_ipc._wake.port.SAFETY_S = 0.2
asgi_ipc._wake.port.SETTLED_S = 0.1
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    waiting = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    say("waits")
    while layer._site.ports()[0]._pause_s != 0.2: await asyncio.sleep(0.01)
    while True:
        say((await waiting)["n"])
        waiting = layer.receive("c")
asyncio.run(main())
"""
    )
    heir.expect("waits")
    victim.signal(signal.SIGSTOP)
    victim.wait_for_state("T")
    while True:
        drive(layer.send("c", {"n": 1}))
        if not is_parked(layer, victim.pid, "c"):
            break
        heir.expect("1")
        heir.wait_for_state("S")
    heir.expect("1", SOON_S)
    assert inotifies(heir.pid) == 0
    assert inotifies(victim.pid) == 1


def test_a_refusal_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no error, and one line in a process says why."""
    monkeypatch.setattr(inotify_module, "_refusals", iter(range(9)))
    with caplog.at_level(logging.DEBUG, "asgi_ipc"):
        assert open_inotify([("/proc/self/nothing", IN_ATTRIB)]) is None
        with no_descriptor_left():
            assert open_inotify([("/proc/self", IN_ATTRIB)]) is None
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert vars(record)["event"] == "no-inotify"
    assert "/proc/self/nothing" in record.getMessage()


# -- what it costs -----------------------------------------------------------------------


def test_a_loop_that_ends_soon_has_none(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making and closing one for every short wait would be dear."""
    assert port_module.SETTLED_S > 0.1
    monkeypatch.setattr(
        port_module, "SETTLED_S", 60.0
    )  # so that a machine that stands still is soon
    layer = make_layer()

    async def wait_briefly() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(layer.receive("c"), 0.001)
        return inotifies(os.getpid())

    before = inotifies(os.getpid())
    assert asyncio.run(wait_briefly()) == before


async def test_a_port_closes_its_own(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each loop and layer that waits, and none afterwards."""
    monkeypatch.setattr(port_module, "SETTLED_S", 0.01)
    before = inotifies(os.getpid())
    layers = [make_layer() for _ in range(3)]
    waits = [asyncio.ensure_future(layer.receive("c")) for layer in layers]
    while inotifies(os.getpid()) < before + 3:
        await asyncio.sleep(0.001)
    for layer in layers:
        layer.close_now()
    assert inotifies(os.getpid()) == before
    await asyncio.gather(*waits, return_exceptions=True)


def test_a_forked_child_lets_go_of_it(make_layer: MakeLayer) -> None:
    """The descriptor is the parent's; what the child reads there the parent would miss."""
    layer = make_layer()

    async def main() -> tuple[int, int]:
        waiting = asyncio.ensure_future(layer.receive("c"))
        while not inotifies(os.getpid()):
            await asyncio.sleep(0.01)
        child = os.fork()
        if not child:
            os._exit(inotifies(os.getpid()))
        left = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        mine = inotifies(os.getpid())
        waiting.cancel()
        return left, mine

    left, mine = asyncio.run(main())
    assert mine == left + 1


def test_a_queue_that_nobody_reads_does_not_grow(tmp_path: Path) -> None:
    """Ten thousand processes may end while a blocking thread does something else."""
    path = tmp_path / "file"
    path.touch()
    inotify = Inotify([(str(path), IN_CLOSE_WRITE | IN_ATTRIB)])
    for _ in range(10_000):
        os.close(os.open(path, os.O_WRONLY))
    waiting = struct.unpack("i", fcntl.ioctl(inotify.fd, termios.FIONREAD, bytes(4)))[0]
    assert waiting == 16
    inotify.drain()
    with pytest.raises(BlockingIOError):
        os.read(inotify.fd, 16)
    inotify.close()


def test_an_overflow_is_an_event_like_any_other(tmp_path: Path) -> None:
    """However much there is, draining takes it all."""
    path = tmp_path / "file"
    path.touch()
    inotify = Inotify([(str(path), IN_CLOSE_WRITE | IN_ATTRIB)])
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 1):  # two kinds in turn are never merged
        os.close(os.open(path, os.O_WRONLY))
        os.utime(path)
    inotify.drain()
    with pytest.raises(BlockingIOError):
        os.read(inotify.fd, 16)
    inotify.close()
