"""A segment that cannot be opened says what is wrong and what helps; nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import (
    AsyncIPCChannelLayer,
    IPCChannelLayer,
    channels,
)
from asgi_ipc._process import opening
from asgi_ipc._shm import segment
from asgi_ipc.exceptions import SegmentError, SegmentMismatch, SegmentPermission

if TYPE_CHECKING:
    from .conftest import Child

Start = Callable[..., "Child"]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

# By what the kernel refuses a system call in a sandbox.
REFUSE = """
import ctypes, struct
def refuse(number, code, second=None):
    # and only with this as the second argument, if one is given
    which = [] if second is None else [
        struct.pack("HBBI", 0x15, 0, 3, number),
        struct.pack("HBBI", 0x20, 0, 0, 24),              # load the second argument
        struct.pack("HBBI", 0x15, 0, 1, second),
        struct.pack("HBBI", 0x06, 0, 0, 0x50000 | code),
        struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000),
    ]
    steps = [
        struct.pack("HBBI", 0x20, 0, 0, 0),               # load the number of the call
        *which,
        struct.pack("HBBI", 0x15, 0, 1, number),          # is it this one?
        struct.pack("HBBI", 0x06, 0, 0, 0x50000 | code),  # then it fails
        struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000),      # else it is done
    ]
    code = ctypes.create_string_buffer(b"".join(steps))
    at = ctypes.addressof(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), at))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP
        say("no sandbox here")
        os._exit(0)
"""
NUMBERS = {
    "x86_64": {"flock": 73, "sched_yield": 24, "madvise": 28, "fcntl": 72},
    "aarch64": {"flock": 32, "sched_yield": 124, "madvise": 233, "fcntl": 25},
}
needs_numbers = pytest.mark.skipif(
    platform.machine() not in NUMBERS, reason="the numbers of the system calls are not known"
)

OPEN = """
import gc, resource
from asgi_ipc.exceptions import SegmentError
def attempt(**options):
    try:
        AsyncIPCChannelLayer(PREFIX, **{**SIZES, **options})
    except SegmentError as exc:
        return f"{type(exc).__name__}: {exc}"
    return "opened"
def limit(what, number):
    resource.setrlimit(what, (number, resource.getrlimit(what)[1]))
"""


def test_too_few_descriptors_are_named(start: Start) -> None:
    """Whichever of those it takes is not to be had, the error says so and none is left open."""
    child = start(
        OPEN
        + """
limit(resource.RLIMIT_NOFILE, 64)
before = set(os.listdir("/proc/self/fd"))
for free in range(12):
    held = []
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for _ in range(free):
        os.close(held.pop())
    said = attempt()
    for fd in held:
        os.close(fd)
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
    assert said == "opened" or "ulimit -n" in said, said
    say(said)
"""
    )
    said = [child.line().split(":")[0] for _ in range(12)]
    assert said[0] == "SegmentError" and said[-1] == "opened"
    assert set(said) == {"SegmentError", "opened"}
    child.end()


@pytest.mark.parametrize(
    ("what", "number", "remedy"),
    [("RLIMIT_AS", 400 << 20, "ulimit -v"), ("RLIMIT_FSIZE", 1 << 20, "ulimit -f")],
)
def test_another_limit_of_the_process_is_named(
    start: Start, what: str, number: int, remedy: str
) -> None:
    """Address space, or the size of a file: the remedy is that limit, not the filesystem."""
    child = start(
        OPEN + f"limit(resource.{what}, {number}); say(attempt(message_memory=500 << 20))"
    )
    said = child.expect("S")
    assert remedy in said
    assert "/dev/shm" not in said
    child.end()


def test_a_segment_too_large_for_the_address_space_is_not_created_in_vain(
    start: Start, make_layer: MakeLayer
) -> None:
    """Who comes next, with room for it, finds nothing that stands in the way."""
    start(OPEN + "limit(resource.RLIMIT_AS, 400 << 20); attempt(message_memory=500 << 20)").end()
    make_layer().sync.send("c", {})


@needs_numbers
def test_a_kernel_without_locks_is_named(start: Start) -> None:
    """While it opens, and when it is open."""
    number = NUMBERS[platform.machine()]["flock"]
    child = start(
        OPEN
        + REFUSE
        + f"""
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
layer.sync.send("c", {{}})
refuse({number}, {errno.ENOLCK})
say(attempt())
for _ in range(2):
    try:
        layer.sync.send("c", {{}})
    except SegmentError as exc:
        say(f"{{type(exc).__name__}}: {{exc}}")
"""
    )
    first = child.line()
    if first != "no sandbox here":
        for said in (first, child.line(), child.line()):
            assert said.startswith("SegmentError: segment /")
            assert "no room for another lock" in said
    child.end()


@needs_numbers
def test_a_refused_unlock_holds_up_nobody(start: Start, make_layer: MakeLayer) -> None:
    """Kernels that allocate for it may refuse; the lock is free all the same."""
    number = NUMBERS[platform.machine()]["flock"]
    child = start(
        REFUSE
        + f"""
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
for name in ("c", "d!e"):
    layer.sync.send(name, {{}})
    assert layer.sync.receive(name, 0) == {{}}
refuse({number}, {errno.ENOMEM}, second=8)  # LOCK_UN
for n in range(2):
    layer.sync.send("c", {{"n": n}})
    layer.sync.send("in", {{"n": n}})
    layer.sync.group_add("g", "d!e")
    layer.sync.group_send("g", {{}})
    assert layer.sync.receive("c", timeout=0) == {{"n": n}}
    assert layer.sync.receive("d!e", timeout=1) == {{}}
say("done")
sys.stdin.readline()
AsyncIPCChannelLayer(PREFIX + "-new", **SIZES).unlink()
say("attached as well")
"""
    )
    if child.line(patience_s=100) == "done":
        layer = make_layer(lock_timeout=1.0)
        for n in range(2):
            assert layer.sync.receive("in", timeout=0) == {"n": n}
        assert layer.sync.group_channels("g") == ["d!e"]
        child.tell()
        child.expect("attached as well")
    child.end()


@needs_numbers
def test_a_sandbox_may_refuse_to_yield(start: Start) -> None:
    """Whoever waits for the lock sleeps, then: two processes that contend come to their end."""
    number = NUMBERS[platform.machine()]["sched_yield"]
    code = (
        REFUSE
        + f"""
layer = AsyncIPCChannelLayer(PREFIX, **SIZES, capacity=10**5)
refuse({number}, {errno.EPERM})
say("ready")
sys.stdin.readline()
for n in range(5000):
    layer.sync.send("c", {{"n": n}})
    assert layer.sync.receive("c", timeout=1)
say("done")
"""
    )
    children = [start(code) for _ in range(2)]
    if {child.line() for child in children} == {"ready"}:
        for child in children:
            child.tell()
        for child in children:
            child.expect("done")


def _link(path: str) -> None:
    os.symlink("/dev/shm/nowhere", path)


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)


NO_FILES = {"link": _link, "pipe": os.mkfifo, "directory": os.mkdir, "socket": _socket}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("kind", ["messages", "groups"])
def test_what_is_no_file_is_neither_used_nor_removed(
    make_layer: MakeLayer, prefix: str, make: Callable[[str], object], kind: str
) -> None:
    """It stands in the segment's place, and the error says what to do about it."""
    path = f"/dev/shm/{prefix}-{kind}"
    make(path)
    with pytest.raises(SegmentMismatch, match=r"no file.*remove it or choose another prefix"):
        make_layer()
    assert os.path.lexists(path)
    os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
    make_layer().sync.send("c", {})


CALLS: dict[str, tuple[Any, str]] = {
    "open": (os, "open"),
    "fchmod": (os, "fchmod"),
    "ftruncate": (os, "ftruncate"),
    "posix_fallocate": (os, "posix_fallocate"),
    "shm_open": (opening, "shm_open"),
    "mmap": (mmap, "mmap"),
    "fcntl": (fcntl, "fcntl"),
    "flock": (segment, "_flock"),
}


class FailsOnce:
    """Stands in for a system call: the n-th one fails."""

    def __init__(self, call: Callable[..., Any], at: int, code: int) -> None:
        self._call = call
        self._left = at
        self._code = code

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Do it, or fail."""
        self._left -= 1
        if not self._left:
            raise OSError(self._code, os.strerror(self._code))
        return self._call(*arguments, **options)

    @property
    def has_failed(self) -> bool:
        """Whether there were so many calls."""
        return self._left <= 0


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EMFILE, errno.EIO, errno.ENOSPC])
def test_whichever_call_fails_nothing_is_left_behind(
    make_layer: MakeLayer, name: str, code: int
) -> None:
    """Each call of opening and of attaching again, one after the other."""
    module, attribute = CALLS[name]
    layer = make_layer()
    for at in range(1, 100):
        for site_is_new in (True, False):
            layer.unlink() if site_is_new else layer.close_now()
            before = sorted(os.listdir("/proc/self/fd"))
            with pytest.MonkeyPatch.context() as patch:
                call = FailsOnce(getattr(module, attribute), at, code)
                patch.setattr(module, attribute, call)
                error = ""
                try:
                    layer.sync.send("c", {"n": at})
                except SegmentError as exc:
                    error = str(exc)
            if error:
                assert f"segment /{layer.prefix}" in error
                assert sorted(os.listdir("/proc/self/fd")) == before
            layer.sync.send("c", {"n": at})
        if not call.has_failed:
            break
    else:
        raise AssertionError("there is no end of it")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_root_does_not_walk_into_a_site_that_a_stranger_has_prepared(
    start: Start, prefix: str, mode: int
) -> None:
    """From each face it is refused, and the stranger, who waits there, hears of nothing."""
    stranger = start(
        f"""
import concurrent.futures.thread, ctypes  # what is loaded late may be root's alone
os.setgroups([]); os.setgid(65534); os.setuid(65534)
layer = AsyncIPCChannelLayer(PREFIX, **SIZES, mode={mode})
say("prepared")
say(layer.sync.receive("c", timeout=float(sys.stdin.readline())))
"""
    )
    stranger.expect("prepared")
    faces: list[Callable[..., Any]] = [
        AsyncIPCChannelLayer,
        IPCChannelLayer,
        channels.IPCChannelLayer,
    ]
    for face in faces:
        with pytest.raises(SegmentPermission, match="belongs to user 65534"):
            face(prefix=prefix, mode=mode)
    stranger.tell("0")
    stranger.expect("None")
    stranger.end()
