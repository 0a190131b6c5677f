"""Blocking receives and what surrounds them: signals, callbacks, odd interpreters, no waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._drive.poll_loop import PrivateLoops
from asgi_ipc._wake.blocking import drive, driving, pause
from asgi_ipc.exceptions import IPCError

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]


def test_no_time_to_wait_takes_no_slot_and_no_descriptor(make_layer: MakeLayer) -> None:
    """A receive with ``timeout=0`` finds what is there, and leaves nothing open.

    But for the witness, the one descriptor of a process that owns a home.
    """
    layer = make_layer()
    assert layer.sync.receive("x!", timeout=0) is None
    before = len(os.listdir("/proc/self/fd"))
    for channel in ("c", "x!a"):
        assert layer.sync.receive(channel, timeout=0) is None
        layer.sync.send(channel, {"n": 1})
        assert layer.sync.receive(channel, timeout=0) == {"n": 1}
        assert layer.sync.receive(channel, timeout=-1) is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert not layer._site.ports()


@pytest.mark.parametrize("count", range(8))
def test_a_receive_without_descriptors_says_so(start: Start, count: int) -> None:
    """However many are left it names the remedy, leaves nothing open, and works later."""
    child = start(
        """
import resource, warnings
from asgi_ipc.exceptions import SegmentError
def open_now():
    return len(os.listdir("/proc/self/fd"))
warnings.simplefilter("error")
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
layer.sync.send("d", {})
before = open_now()
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for _ in range(int(sys.argv[2])):
    os.close(taken.pop())
try:
    said = layer.sync.receive("c", timeout=0.001)
except SegmentError as exc:
    said = str(exc)
for fd in taken:
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
layer.sync.close()
say(open_now() - before <= 1, all(port.is_orphaned() for port in layer._site.ports()))
say(layer.sync.receive("c", timeout=0.001))
layer.sync.close()
say(said)
""",
        str(count),
    )
    child.expect("True True")  # but for the witness, of which a process keeps one
    child.expect("None")
    said = child.line()
    assert ("ulimit -n" in said) if count < 5 else (said == "None")
    child.end()


async def test_a_deadline_that_has_passed_takes_no_slot(make_layer: MakeLayer) -> None:
    """On an event loop neither."""
    layer = make_layer()
    for channel in ("c", "x!a"):
        assert await layer.receive_within(channel, 0.0) is None
    assert not layer._site.ports()


def test_what_is_driven_inside_leaves_the_outside_as_it_was(make_layer: MakeLayer) -> None:
    """A handler sends while a receive waits: the receive goes on sleeping when a lock is busy."""
    layer = make_layer()

    async def operation() -> list[bool]:
        found = [driving.is_driving]
        layer.sync.send("c", {})  # as a callback or a handler does
        found.append(driving.is_driving)
        assert layer.sync.receive("c", timeout=10) == {}
        found.append(driving.is_driving)
        await pause(0.0)
        return found

    def run(loop: Any) -> Coroutine[Any, Any, list[bool]]:
        return operation()

    loops = PrivateLoops()
    assert loops.run(run) == [True] * 3
    assert not driving.is_driving
    assert drive(operation()) == [True] * 3
    assert not driving.is_driving
    loops.close()


def test_a_receive_without_an_event_loop_says_what_to_do(make_layer: MakeLayer) -> None:
    """As under trio, which steps through coroutines but is not asyncio."""
    layer = make_layer()
    drive(layer.send("c", {"n": 1}))
    assert drive(layer.receive("c")) == {"n": 1}
    for receive in (layer.receive("c"), layer.receive("x!a"), layer.receive_async(["c", "d"])):
        step: Coroutine[Any, Any, Any] = receive
        with pytest.raises(IPCError, match="no asyncio event loop runs here"):
            step.send(None)


def test_a_busy_lock_is_waited_for_without_an_event_loop(
    make_layer: MakeLayer, start: Start
) -> None:
    """A coroutine that something other than asyncio steps through sleeps, and sends."""
    layer = make_layer()
    child = start(
        """
import fcntl
fd = os.open(f"/dev/shm/{PREFIX}-messages", os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
say("locked")
sys.stdin.readline()
"""
    )
    child.expect("locked")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            child.tell()
            child.end()

    driving.sleep = sleep
    try:
        with pytest.raises(StopIteration):
            layer.send("c", {"n": 1}).send(None)
    finally:
        del driving.sleep
    assert len(slept) >= 3


def test_eventlet_is_told_what_to_do(start: Start) -> None:
    """Its monkey_patch() removes ``select.poll``."""
    child = start(
        """
import select
del select.poll
layer = IPCChannelLayer(PREFIX, block_timeout=0.01, **SIZES)
assert layer.receive(["c"]) == (None, None)
try:
    layer.receive(["c"], block=True)
except Exception as exc:
    say(type(exc).__name__, exc)
say(AsyncIPCChannelLayer(PREFIX).sync.receive("c", timeout=0))
"""
    )
    child.expect("IPCError select.poll is not there")
    child.expect("None")
    child.end()


def test_a_receive_in_a_subinterpreter_waits(start: Start, make_layer: MakeLayer) -> None:
    """As in mod_wsgi: no handlers run there, and signals cannot wake it."""
    layer = make_layer()
    child = start(
        """
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
code = f'''
import sys
sys.path[:] = {sys.path!r}
from asgi_ipc import AsyncIPCChannelLayer
layer = AsyncIPCChannelLayer({PREFIX!r})
print("ready", flush=True)
print(layer.sync.receive("c", timeout=60), flush=True)
print(layer.sync.receive("c", timeout=0.01), flush=True)
layer.close_now()
'''
interpreters.run_string(interpreters.create(), code)
"""
    )
    child.expect("ready")
    child.wait_for_state("S")
    layer.sync.send("c", {"n": 1})
    child.expect("{'n': 1}")
    child.expect("None")
    child.end()


def test_a_callback_inherits_no_mask_and_a_fault_is_never_held(start: Start) -> None:
    """A process that ``on_drop`` or a log handler starts has no signal blocked."""
    child = start(
        """
import logging
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())
class Handler(logging.Handler):
    def emit(self, record):
        say("log", len(blocked()))
logging.getLogger("asgi_ipc").addHandler(Handler())
logging.getLogger("asgi_ipc").propagate = False
def on_drop(drop):
    layer.sync.send("note", {"dropped": drop.channel})
    say("drop", len(blocked()), drop.channel)
def blocked_inside(name, real):
    def call(*args, **options):
        held.append(blocked())
        return real(*args, **options)
    return call
held = []
layer = AsyncIPCChannelLayer(PREFIX, on_drop=on_drop, channel_capacity={"x!a": 1}, **SIZES)
for name in ("x!a", "x!b"):
    layer.sync.group_add("g", name)
reception = layer._reception
reception._take = blocked_inside("_take", reception._take)
for n in range(2):
    layer.sync.group_send("g", {"n": n})
    say(layer.sync.receive("x!b", timeout=20))
say("inside", held[0] & FAULTS, len(held[0]) > 20, len(blocked()))
say(layer.sync.receive("note", timeout=20))
"""
    )
    child.expect("{'n': 0}")
    child.expect("drop 0 x!a")
    child.expect("log 0")
    child.expect("{'n': 1}")
    child.expect("inside set() True 0")
    child.expect("{'dropped': 'x!a'}")
    child.end()


@pytest.mark.parametrize("channels", ["'c'", "'x!a'", "'x!a', 'x!b'"])
def test_interrupts_beside_another_thread_lose_the_message_in_hand(
    start: Start, channels: str
) -> None:
    """Python then runs handlers in the middle of a receive: each loses one message at most."""
    child = start(
        """
class Stop(Exception):
    pass
def stop(*args):
    raise Stop
signal.signal(signal.SIGALRM, stop)
idle = threading.Event()
threading.Thread(target=idle.wait, daemon=True).start()
layer = AsyncIPCChannelLayer(PREFIX, capacity=10000, **SIZES)
names = [NAMES]
for n in range(2000):
    layer.sync.send(names[n % len(names)], {"n": n})
got, interrupted, turn = [], 0, 0
while len(got) + interrupted < 1500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003 + (interrupted % 40) * 0.00001)
        while True:
            turn += 1
            message = layer.sync.receive(names[turn % len(names)], timeout=0.001)
            if message is not None:
                got.append(message["n"])
    except Stop:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
for name in names:
    while (message := layer.sync.receive(name, timeout=0)) is not None:
        got.append(message["n"])
assert len(got) == len(set(got)), "doubled"
for k in range(len(names)):
    mine = [n for n in got if n % len(names) == k]
    assert mine == sorted(mine), "out of order"
assert len(got) >= 2000 - interrupted, (len(got), interrupted)
say("fine", len(got), interrupted)
for name in names:
    layer.sync.send(name, {"n": 1})
    assert layer.sync.receive(name, timeout=20) == {"n": 1}
idle.set()
""".replace("[NAMES]", f"[{channels}]")
    )
    child.expect("fine")
    child.end()
