"""Whose lock is it: forks of every kind, and what a child may not touch."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer

from .conftest import problems_of
from .test_opening import NUMBERS, REFUSE, needs_numbers

if TYPE_CHECKING:
    from .conftest import Child

Start = Callable[..., "Child"]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

ROUNDS = """
import ctypes, traceback
layer = AsyncIPCChannelLayer(PREFIX, **SIZES, capacity=10**5)
layer.sync.send("before", {})
def c_fork():
    return ctypes.PyDLL(None).fork()
def many():
    for n in range(1500):
        layer.sync.send(f"c{n % 7}", {"n": n, "body": "x" * (n % 700)})
        layer.sync.receive(f"c{(n + 3) % 7}", timeout=0)
        if n % 50 == 0:
            layer.sync.group_add("g", f"c{n % 7}")
            layer.sync.group_send("g", {"n": n})
def child_of(fork, work):
    pid = fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid
def ended(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""


@pytest.mark.parametrize("how", ["os.fork", "c_fork"])
def test_a_child_has_a_lock_of_its_own_however_it_was_forked(
    start: Start, make_layer: MakeLayer, how: str
) -> None:
    """Parent and children of a fork that Python may not know of exclude each other."""
    child = start(
        ROUNDS
        + f"""
pids = [child_of({how}, many) for _ in range(2)]
many()
say(ended(*pids))
"""
    )
    child.expect("[0, 0]", patience_s=100)
    child.end()
    assert problems_of(make_layer()) == []


def test_a_grandchild_has_one_too(start: Start, make_layer: MakeLayer) -> None:
    """A daemoniser forks twice, and the child between them may not have used anything."""
    child = start(
        ROUNDS
        + """
def twice():
    assert ended(child_of(c_fork, many), child_of(c_fork, many)) == [0, 0]
pids = [child_of(c_fork, twice)]
many()
say(ended(*pids))
"""
    )
    child.expect("[0]", patience_s=100)
    child.end()
    assert problems_of(make_layer()) == []


@pytest.mark.parametrize("how", ["os.fork", "c_fork"])
def test_a_child_makes_names_of_its_own(start: Start, how: str) -> None:
    """Before it has done anything else: a name of the parent's part would be the parent's home."""
    child = start(
        ROUNDS
        + f"""
def home():
    return layer.sync.new_channel().split("!")[0]
mine = home()
read, write = os.pipe()
pid = child_of({how}, lambda: os.write(write, home().encode()))
say(ended(pid), os.read(read, 1000).decode() != mine, home() == mine)
"""
    )
    child.expect("[0] True True")
    child.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give privileges up")
@pytest.mark.parametrize("how", ["os.fork", "c_fork"])
def test_a_child_that_may_not_open_it_says_so(
    start: Start, make_layer: MakeLayer, how: str
) -> None:
    """As a pool of processes under ``gunicorn --preload --user``: never with the parent's lock."""
    child = start(
        ROUNDS
        + f"""
from asgi_ipc.exceptions import SegmentPermission
def refused():
    for _ in range(2):
        try:
            layer.sync.send("c", {{}})
        except SegmentPermission as exc:
            assert "user" in str(exc), exc
        else:
            os._exit(2)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
pids = [child_of({how}, refused) for _ in range(2)]
many()
say(ended(*pids))
"""
    )
    child.expect("[0, 0]", patience_s=100)
    child.end()
    assert problems_of(make_layer()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give privileges up")
def test_privileges_may_be_given_up_after_the_fork(start: Start) -> None:
    """As ``gunicorn --preload --user`` does: the child has opened its lock by then."""
    child = start(
        ROUNDS
        + """
def work():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    many()
say(ended(child_of(os.fork, work)))
"""
    )
    child.expect("[0]", patience_s=100)
    child.end()


def test_a_child_without_descriptors_says_so_and_goes_on_later(start: Start) -> None:
    """The error names the limit; the child attaches when it may open files again."""
    child = start(
        ROUNDS
        + """
import resource
from asgi_ipc.exceptions import SegmentError
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
def work():
    try:
        layer.sync.send("c", {})
    except SegmentError as exc:
        assert "ulimit -n" in str(exc), exc
    else:
        os._exit(2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    many()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
say(ended(child_of(os.fork, work)))
"""
    )
    child.expect("[0]", patience_s=100)
    child.end()


def test_a_child_does_not_wait_for_threads_it_has_not(start: Start) -> None:
    """Forked while another thread closes and attaches: no guard or mutex of it is waited for."""
    child = start(
        ROUNDS
        + """
def again_and_again():
    while True:
        layer.close_now()
        layer.sync.send("w", {})
threading.Thread(target=again_and_again, daemon=True).start()
def work():
    signal.alarm(20)
    layer.sync.send("child", {})
for _ in range(150):
    assert ended(child_of(os.fork, work)) == [0]
    layer.sync.receive("w", timeout=0)
say("none hangs")
os._exit(0)
"""
    )
    child.expect("none hangs", patience_s=100)
    child.end()


@pytest.mark.parametrize("how", ["os.fork", "c_fork"])
def test_a_fork_leaves_the_doors_of_threads_alone(start: Start, how: str) -> None:
    """A child drops the threads of its parent and what was theirs; they are reached as before."""
    child = start(
        ROUNDS
        + f"""
import gc
def doors():
    return sorted(os.listdir(f"/dev/shm/{{PREFIX}}-bells"))
ready, go_on, got = threading.Barrier(4), threading.Event(), []
def serve(n):
    name = f"home{{n}}!thread"
    layer.sync.receive(name, timeout=0.01)  # this makes the thread's door
    layer.sync.group_add("threads", name)
    ready.wait()
    go_on.wait()  # busy with what it has received, say
    for _ in range(5):
        got.append(layer.sync.receive(name, timeout=30)["n"])
threads = [threading.Thread(target=serve, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
ready.wait()
while len(go_on._cond._waiters) < 3:
    time.sleep(0.001)
time.sleep(0.05)  # forked in C while a thread waits for the GIL, a child has a lock too many
before = doors()
def drop_everything():
    global layer
    del layer
    gc.collect()
pids = [child_of({how}, drop_everything), child_of({how}, many)]
say(ended(*pids), set(before) <= set(doors()))
sys.stdin.readline()
go_on.set()
for thread in threads:
    thread.join()
say(*sorted(got))
"""
    )
    child.expect("[0, 0] True", patience_s=100)
    sender = start(
        "layer = AsyncIPCChannelLayer(PREFIX, **SIZES)\n"
        "for n in range(5): layer.sync.group_send('threads', {'n': n})"
    )
    sender.end()
    child.tell()
    child.expect(" ".join(str(n // 3) for n in range(15)))
    child.end()


@needs_numbers
def test_where_the_kernel_cannot_empty_a_page_the_pid_tells(
    prefix: str, make_layer: MakeLayer
) -> None:
    """As in some sandboxes: a child is known all the same."""
    code = (
        REFUSE.replace("say(", "print(")
        + f"""
import faulthandler, os, signal, sys, threading, time
refuse({NUMBERS[platform.machine()]["madvise"]}, {errno.EINVAL})
from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._process import own
assert isinstance(own.here, own._Pid)
PREFIX = sys.argv[1]
SIZES = {{"message_memory": 8 << 20, "group_memory": 4 << 20}}
"""
        + ROUNDS
        + """
pids = [child_of(fork, many) for fork in (c_fork, os.fork)]
many()
assert ended(*pids) == [0, 0]
"""
    )
    assert subprocess.run([sys.executable, "-c", code, prefix], timeout=100).returncode == 0
    assert problems_of(make_layer()) == []


@pytest.mark.parametrize("how", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_a_thread_forks_while_the_main_one_waits(start: Start, how: str) -> None:
    """The child waits with a wakeup descriptor of its own, and leaves none behind."""
    child = start(
        f"""
import ctypes, gc
def fork():
    while signal_fd() == -1:
        time.sleep(0.001)
    pid = {how}
    if pid == 0:
        try:
            for n in range(3):
                assert layer.sync.receive("d", timeout=0.02) is None
                os.closerange(3, 60)  # its parent's descriptors too
                gc.collect()
            if threading.main_thread() is threading.current_thread():
                assert signal.set_wakeup_fd(-1) == -1
            os._exit(0)
        finally:
            os._exit(1)
    say("child", os.waitpid(pid, 0)[1])
    layer.sync.send("c", {{}})
def signal_fd():
    return next(iter(poll_loop._alarms), -1)
from asgi_ipc._drive import poll_loop
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
thread = threading.Thread(target=fork)
thread.start()
say(layer.sync.receive("c", timeout=30))
thread.join()
say("left", signal.set_wakeup_fd(-1))
"""
    )
    child.expect("child 0")
    child.expect("{}")
    child.expect("left -1")
    child.end()
