"""Every test has a prefix of its own and leaves nothing behind."""

from __future__ import annotations

import ctypes  # noqa: F401 - from libffi 3.5 on, what it opens of itself stays open: before a test
import gc
import os
import secrets
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from asgi_ipc import (
    AsyncIPCChannelLayer,
    IPCChannelLayer,
)
from asgi_ipc._operator.check import check_groups, check_messages
from asgi_ipc._shm.segment import LockBusy, Segment
from asgi_ipc._wake import port

from .stepping import World

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell without job control: the processes that tests stop
    # with Ctrl-C would inherit that they are not to listen.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, to make or to run, says something about the machine alone.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

R = TypeVar("R")

SHM = "/dev/shm"
OURS = f"test-{os.getpid()}-"
HAS_FAILED = pytest.StashKey[bool]()
PATIENCE_S = 30.0  # how long a child may take to say something before the test gives up


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found


def _children() -> set[str]:
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as children:
                found.update(children.read().split())
        except FileNotFoundError:
            pass  # a thread that has just ended
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed: its traceback keeps alive what it had in its hands."""
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a segment, socket, descriptor, process or thread behind."""
    before = _belongings()
    yield
    if HAS_FAILED in request.node.stash:
        return
    gc.collect()
    for thread in threading.enumerate():
        if str(thread) not in before["threads"] and thread is not threading.current_thread():
            thread.join(5.0)  # an executor just collected has told it to end
    after = _belongings()
    left = {kind: sorted(after[kind] - before[kind]) for kind in after}
    assert not any(left.values()), f"left behind: {left}"


def _belongings() -> dict[str, set[str]]:
    return {
        "shared memory": {name for name in os.listdir(SHM) if name.startswith(OURS)},
        "descriptors": _descriptors(),
        "processes": _children(),
        "threads": {
            str(thread)
            for thread in threading.enumerate()
            # What is left when a thread that has ended is asked for its name by the garbage
            # collector, which found an old task in it.
            if not isinstance(thread, threading._DummyThread)
        },
    }


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix nobody else uses, removed afterwards."""
    name = f"{OURS}{secrets.token_hex(4)}"
    yield name
    for entry in os.listdir(SHM):
        if entry.startswith(name):
            path = os.path.join(SHM, entry)
            if os.path.isdir(path):
                for door in os.listdir(path):
                    os.unlink(os.path.join(path, door))
                os.rmdir(path)
            else:
                os.unlink(path)


def patiently(segment: Segment, operation: Callable[[Segment], R]) -> R:
    """Do something with the lock held, which other processes may have just now."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return segment.transact(operation, segment)
        except LockBusy:
            assert time.monotonic() < give_up, f"held by process {segment.lock_holder()}"


def problems_of(layer: AsyncIPCChannelLayer) -> list[str]:
    """What an independent look at both segments finds wrong."""
    return [
        *patiently(layer._site.messages.segment, check_messages),
        *patiently(layer._site.groups.segment, check_groups),
    ]


@pytest.fixture
def make_layer(prefix: str) -> Iterator[Callable[..., AsyncIPCChannelLayer]]:
    """Make async layers of this test's prefix; afterwards both segments must be sound."""
    layers: list[AsyncIPCChannelLayer] = []

    def make(**options: Any) -> AsyncIPCChannelLayer:
        options.setdefault("message_memory", 8 << 20)
        options.setdefault("group_memory", 4 << 20)
        options.setdefault("prefix", prefix)
        layer = AsyncIPCChannelLayer(**options)
        layers.append(layer)
        return layer

    yield make
    _close_and_check(layers)


@pytest.fixture
def make_sync(prefix: str) -> Iterator[Callable[..., IPCChannelLayer]]:
    """Make blocking layers of this test's prefix; afterwards both segments must be sound."""
    layers: list[IPCChannelLayer] = []

    def make(**options: Any) -> IPCChannelLayer:
        options.setdefault("message_memory", 8 << 20)
        options.setdefault("group_memory", 4 << 20)
        options.setdefault("prefix", prefix)
        layer = IPCChannelLayer(**options)
        layers.append(layer)
        return layer

    yield make
    for layer in layers:
        layer.close()
    _close_and_check([layer.core for layer in layers])


def _close_and_check(layers: list[AsyncIPCChannelLayer]) -> None:
    problems = []
    for layer in layers:
        if not layer._site.is_open and os.path.exists(f"{SHM}/{layer.prefix}-messages"):
            layer._site.open()
        if layer._site.is_open:
            problems += problems_of(layer)
            layer.close_now()
    assert not problems


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that makes worlds one for each way to wait for one name.

    Resting is what ``receive`` does where it need not spin first; those of ``test_spin`` do.
    """
    if "make_world" in metafunc.fixturenames:
        ways = getattr(metafunc.module, "WAYS", ["receive_async", "receive", "resting"])
        metafunc.parametrize("make_world", ways, indirect=True)


@pytest.fixture
def only_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops neither look by themselves nor be told to by inotify: the net must not help."""
    monkeypatch.setattr(port, "SAFETY_S", 3600.0)
    monkeypatch.setattr(port, "SETTLED_S", 3600.0)


@pytest.fixture
def make_world(
    make_layer: Callable[..., AsyncIPCChannelLayer],
    request: pytest.FixtureRequest,
    only_rings: None,
) -> Iterator[Callable[[int], World]]:
    """Make worlds of loops that are run step by step."""
    made: list[World] = []
    by_name = request.param != "receive_async"
    spin_rounds = 0 if request.param == "resting" else 16

    def make(loop_count: int) -> World:
        make_one = partial(make_layer, spin_rounds=spin_rounds)
        made.append(World(make_one, loop_count, by_name=by_name))
        return made[-1]

    yield make
    for world in made:
        world.close()


class Clock:
    """The monotonic clock as the stores see it: stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_ns = time.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Return what the test says it is."""
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += int(seconds * 1_000_000_000)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def install_clock(patch: pytest.MonkeyPatch) -> Clock:
    """Replace the nanosecond clock of every module of the package that has read it."""
    fake = Clock()
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "asgi_ipc":
            for name, value in list(vars(module).items()):
                if value is time:
                    patch.setattr(module, name, fake)
                elif value is time.monotonic_ns:
                    patch.setattr(module, name, fake.monotonic_ns)
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the test say what time it is."""
    return install_clock(monkeypatch)


# For a child: the same as the fixture of this name.
ONLY_RINGS = """
import asgi_ipc._wake.port
asgi_ipc._wake.port.SAFETY_S = asgi_ipc._wake.port.SETTLED_S = 3600.0
"""
# For a child: what makes it die in a commit, the log written and nothing applied.
HALF_A_COMMIT = """
import struct
from asgi_ipc._shm import layout as L
def half(plan, flags=0):
    pairs = [part for pair in plan.items() for part in pair]
    start = 8 * L.LOG
    segment.memory[start:start + 8 * len(pairs)] = struct.pack(f"<{len(pairs)}Q", *pairs)
    segment.words[L.LOG_N] = len(plan)
    os.kill(os.getpid(), signal.SIGKILL)
"""
PREAMBLE = """
import asyncio, faulthandler, os, signal, sys, threading, time
faulthandler.enable()
from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer
PREFIX = sys.argv[1]
SIZES = {"message_memory": 8 << 20, "group_memory": 4 << 20}
def say(*words):
    print(*words, flush=True)
"""


class Child:
    """Another Python interpreter, spoken to through its standard input and output."""

    def __init__(self, code: str, *arguments: str, wrapper: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self._unread = b""

    def line(self, patience_s: float = PATIENCE_S) -> str:
        """Return the next line it says, without the end of line; "" once it has ended."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([fd], [], [], patience_s)
            assert ready, f"child {self.pid} says nothing; so far: {self.lines}"
            piece = os.read(fd, 65536)
            if not piece:
                break
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        self.lines.append(line.decode())
        return self.lines[-1]

    def expect(self, text: str, patience_s: float = PATIENCE_S) -> str:
        """Return the next line, which must begin with ``text``."""
        line = self.line(patience_s)
        assert line.startswith(text), f"expected {text!r}, got {line!r} after {self.lines}"
        return line

    def tell(self, text: str = "") -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait_for_state(self, state: str) -> None:
        """Return once the kernel says that all of its threads are in a state (S, T, ...)."""
        give_up = time.monotonic() + PATIENCE_S
        while (states := self._states()) - set(state):
            assert time.monotonic() < give_up, f"child {self.pid} is in states {states}"
            os.sched_yield()

    def _states(self) -> set[str]:
        states = set()
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                with open(f"/proc/{self.pid}/task/{task}/stat") as stat:
                    states.add(stat.read().rpartition(")")[2].split()[0])
            except (FileNotFoundError, ProcessLookupError):
                states.add("ended just now")
        return states

    def end(self, patience_s: float = PATIENCE_S) -> str:
        """Wait until it has ended by itself, with success, and return what else it said."""
        output, _ = self.process.communicate(timeout=patience_s)
        assert self.process.returncode == 0, f"exit {self.process.returncode}: {self.lines}"
        return (self._unread + output).decode()

    def kill(self) -> None:
        """Kill it, stopped or not, and wait for its end. Idempotent."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # it will never read what we still had for it


@pytest.fixture
def start(prefix: str) -> Iterator[Callable[..., Child]]:
    """Start interpreters that know this test's prefix as ``PREFIX``; none outlives the test."""
    children: list[Child] = []

    def start_one(code: str, *arguments: str, wrapper: tuple[str, ...] = ()) -> Child:
        child = Child(code, prefix, *arguments, wrapper=wrapper)
        children.append(child)
        return child

    yield start_one
    for child in children:
        child.kill()
