"""Descriptors taken from under a layer: daemonisers, exits, streams closed at the start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._process import own as own_module

from .conftest import problems_of
from .test_forks import ROUNDS

if TYPE_CHECKING:
    from .conftest import Child

Start = Callable[..., "Child"]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

# What a daemoniser does: closes what is open, and opens its logs.
DAEMONISED = (
    ROUNDS
    + """
import gc, logging, tempfile
said = []
class Said(logging.Handler):
    def emit(self, record):
        said.append(record.event)
logging.getLogger("asgi_ipc").addHandler(Said())
def large():
    for _ in range(30):
        layer.sync.send("large", {"n": "y" * 200000})
    for _ in range(30):
        assert layer.sync.receive("large", timeout=0)
def open_logs(count):
    logs = [tempfile.TemporaryFile() for _ in range(count)]
    for log in logs:
        log.write(b"a line")
        log.flush()
    return logs
def sizes_of(logs):
    return {os.fstat(log.fileno()).st_size for log in logs}
"""
)


@pytest.mark.parametrize("last", [256, 65536])
def test_a_daemonisers_logs_are_left_alone(start: Start, make_layer: MakeLayer, last: int) -> None:
    """They are neither grown nor closed, also by the layer's end; and the lock excludes again."""
    child = start(
        DAEMONISED
        + f"""
os.closerange(3, {last})
logs = open_logs(50)
other = child_of(os.fork, many)
large()
many()
say(ended(other), sizes_of(logs), said)
layer.close_now()
layer.sync.send("c", {{}})
del layer
gc.collect()
say(sizes_of(logs))
"""
    )
    lost = [] if last == 256 else ["descriptors-lost"]
    child.expect(f"[0] {{6}} {lost}", patience_s=100)
    child.expect("{6}")
    child.end()
    assert problems_of(make_layer()) == []


def test_a_number_that_means_another_file_is_let_go_within_a_second(
    start: Start, make_layer: MakeLayer
) -> None:
    """A log that got the lock's own number is not grown, and not closed."""
    child = start(
        DAEMONISED
        + """
(log,) = open_logs(1)
numbers = [segment.lock_fd for segment in layer._site._segments()]
for number in numbers:
    os.dup2(log.fileno(), number)
layer._site.watch_at_ns = 0  # a second passes
many()
large()
for number in numbers:
    os.fstat(number)
assert not set(numbers) & {segment.lock_fd for segment in layer._site._segments()}
say(sizes_of([log]), said)
"""
    )
    child.expect("{6} ['descriptors-lost']", patience_s=100)
    child.end()
    assert problems_of(make_layer()) == []


def test_a_file_is_not_grown_in_the_segments_place(start: Start) -> None:
    """Before that second has passed, too: the operation is begun anew with a lock of our own."""
    child = start(
        DAEMONISED
        + """
(log,) = open_logs(1)
for segment in layer._site._segments():
    os.dup2(log.fileno(), segment.lock_fd)
large()
say(sizes_of([log]), said)
"""
    )
    child.expect("{6} ['descriptors-lost']", patience_s=100)
    child.end()


def test_what_was_lost_may_be_gone_for_good(start: Start, prefix: str) -> None:
    """Deleted as well, it is made anew, as any deleted segment."""
    child = start(
        DAEMONISED
        + """
os.closerange(3, 65536)
for kind in ("messages", "groups"):
    os.unlink(f"/dev/shm/{PREFIX}-{kind}")
many()
say(said)
"""
    )
    child.expect("['descriptors-lost', 'segment-deleted'", patience_s=100)
    child.end()


def test_the_lock_keeps_away_from_the_numbers_of_the_streams(
    make_layer: MakeLayer, prefix: str
) -> None:
    """Started with all three closed, a process that writes to them writes into no segment."""
    code = """
import os, sys
from asgi_ipc import AsyncIPCChannelLayer
layer = AsyncIPCChannelLayer(sys.argv[1], message_memory=8 << 20, group_memory=4 << 20)
layer.sync.send("c", {"n": 1})
layer.sync.receive("w", timeout=0.01)
for number in (0, 1, 2):
    try:
        os.write(number, b"Fatal Python error: a traceback" * 10)
    except OSError:
        pass  # EBADF: nobody has taken it
    if os.path.realpath(f"/proc/self/fd/{number}").startswith("/dev/shm"):
        os._exit(3)
layer.sync.send("c", {"n": 2})
"""
    without_streams = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run([*without_streams, prefix], timeout=60).returncode == 0
    layer = make_layer()
    assert layer.sync.receive("c", timeout=0) == {"n": 1}
    assert layer.sync.receive("c", timeout=0) == {"n": 2}


def test_a_thread_that_writes_to_closed_streams_meets_nothing_of_ours(
    start: Start, make_layer: MakeLayer
) -> None:
    """Not even for a moment, while a layer attaches, waits and rings."""
    peer = start(
        """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
while True:
    layer.sync.receive("in")
"""
    )
    child = start(
        """
said = os.dup2(1, 100)
for number in (0, 1, 2):
    os.close(number)
is_over = False
def chatter():
    while not is_over:
        for number in (0, 1, 2):
            try:
                os.write(number, b"Fatal Python error: a traceback")
            except OSError:
                pass
thread = threading.Thread(target=chatter)
thread.start()
try:
    layer = AsyncIPCChannelLayer(PREFIX, capacity=1000, **SIZES)
    for n in range(300):
        layer.close_now()
        layer.sync.send("in", {"n": n})
        layer.sync.receive("w", timeout=0.0001)
    answer = b"fine"
except BaseException as exc:
    answer = repr(exc).encode()
is_over = True
thread.join()
os.write(said, answer + b"\\n")
"""
    )
    child.expect("fine", patience_s=100)
    child.end()
    peer.kill()
    assert problems_of(make_layer()) == []


def test_a_duplicate_that_is_not_found_is_told() -> None:
    """As when another thread moves it while it is looked for."""
    fd = os.memfd_create("lonely")
    try:
        assert own_module._duplicate_of(fd) == -1
    finally:
        os.close(fd)


@pytest.mark.parametrize("limit", [16, 64, 256, 1024])
def test_the_lock_is_set_aside_under_any_limit(start: Start, limit: int) -> None:
    """It lies as far up as there is room for, and works."""
    child = start(
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
layer.sync.send("c", {"n": 1})
say(layer.sync.receive("c", timeout=1), layer._site.messages.segment.lock_fd)
""",
        str(limit),
    )
    _, _, number = child.expect("{'n': 1} ").rpartition(" ")
    assert limit * 3 // 4 <= int(number) < limit
    child.end()


def test_where_nothing_is_free_above_it_is_any_number() -> None:
    """The descriptor given is closed, whatever comes of it."""
    read, write = os.pipe()
    identity = own_module.identity_of(read)
    aside = own_module.set_aside(read)
    try:
        assert own_module.identity_of(aside) == identity
        assert aside >= 3 and not os.get_inheritable(aside)
        with pytest.raises(OSError):
            os.fstat(read)
    finally:
        os.close(aside)
        os.close(write)


# -- the end of a process ----------------------------------------------------------------


def test_threads_that_send_at_exit_harm_nobody(start: Start, make_layer: MakeLayer) -> None:
    """Eight processes end with daemon threads in mid-send; who goes on finds everything whole."""
    survivor = start(
        ROUNDS
        + """
say("ready")
sys.stdin.readline()
while not layer.sync.receive("stop", timeout=0):
    many()
    for n in range(7):
        while layer.sync.receive(f"c{n}", timeout=0):
            pass
say("whole")
"""
    )
    survivor.expect("ready")
    survivor.tell()
    for _ in range(8):
        child = start(
            """
import atexit
at_exit = []
atexit.register(lambda: at_exit[0]())  # before the layer's own, so it is called after them
layer = AsyncIPCChannelLayer(PREFIX, **SIZES, capacity=10**5)
threading.excepthook = lambda args: say("raised", args.exc_value)
def send(n):
    while True:
        layer.sync.send(f"exit{n}", {"n": n})
        layer.sync.receive(f"exit{n}", timeout=0)
def last():
    files = [open("/dev/null", "w+b") for _ in range(8)]
    for n in range(500):
        layer.sync.send("last", {"n": n})
        assert layer.sync.receive("last", timeout=0)
    layer.sync.send("goodbye", {"from": os.getpid()})
    say("sent")
at_exit.append(last)
for n in range(4):
    threading.Thread(target=send, args=(n,), daemon=True).start()
for n in range(200):
    layer.sync.send("busy", {})
    layer.sync.receive("busy", timeout=0)
"""
        )
        child.expect("sent", patience_s=100)
        assert child.end() == ""
    layer = make_layer()
    said = {layer.sync.receive("goodbye", timeout=1)["from"] for _ in range(8)}  # type: ignore[index]
    assert len(said) == 8
    layer.sync.send("stop", {"now": True})
    survivor.expect("whole", patience_s=100)
    survivor.end()
    assert problems_of(layer) == []


@pytest.mark.parametrize("what", ["close", "exit", "both"])
def test_a_handler_may_close_and_exit_while_sending(
    start: Start, make_layer: MakeLayer, what: str
) -> None:
    """300 processes are told to end in mid-send, and end as they are told to."""
    child = start(
        ROUNDS
        + """
what = sys.argv[2]
def stop(*_):
    if what != "exit":
        layer.close_now()
        layer.close_now()
    if what != "close":
        sys.exit(7)
    raise KeyboardInterrupt
def interrupted(n):
    signal.signal(signal.SIGALRM, stop)
    body = "x" * (n * 7 % 3000)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + n * 0.000013)
        while True:
            layer.sync.send("c", {"n": body})
            layer.sync.receive("c", timeout=0)
            layer.sync.send("new%d!x" % n, {"n": body})
            layer.sync.receive("new%d!x" % n, timeout=0)
            layer.sync.group_add("g", "c")
            layer.sync.group_send("g", {})
    except (SystemExit, KeyboardInterrupt):
        if what != "exit":
            assert not layer._site.is_open
        layer.sync.send("after", {})  # and goes on where it is used on
        assert not layer._site.mutex._is_owned()
        os._exit(7)
codes = []
for n in range(300):
    codes += ended(child_of(os.fork, lambda: interrupted(n)))
say({code: codes.count(code) for code in codes})
""",
        what,
    )
    child.expect("{7: 300}", patience_s=100)
    child.end()
    assert problems_of(make_layer(capacity=1000)) == []


def test_closing_in_the_middle_of_a_transaction_waits_for_its_end(make_layer: MakeLayer) -> None:
    """A handler's ``close`` returns at once; the layer is closed when the lock is given back."""
    layer = make_layer()
    segment = layer._site.messages.segment

    def operation() -> None:
        layer.close_now()
        assert layer._site.is_open

    segment.transact(operation)
    assert not layer._site.is_open
    assert not segment.is_held_here()
    layer.sync.send("c", {"n": 1})
    assert layer.sync.receive("c", timeout=0) == {"n": 1}


def test_nothing_stays_mapped_when_a_layer_is_closed(start: Start) -> None:
    """Its memory goes with the close, without the garbage collector."""
    child = start(
        """
import gc
gc.disable()
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
def mapped():
    with open("/proc/self/maps") as maps:
        return sum(PREFIX in line for line in maps)
async def wait():
    try:
        await asyncio.wait_for(layer.receive("w!x"), 0.01)
    except TimeoutError:
        pass
layer.sync.send("c", {"n": "x" * 100000})
layer.sync.receive("c")
layer.sync.receive("c", timeout=0.01)
asyncio.run(wait())
layer.sync.group_add("g", "c")
layer.sync.group_send("g", {})
before = mapped()
layer.close_now()
say(before > 0, mapped())
"""
    )
    child.expect("True 0")
    child.end()
