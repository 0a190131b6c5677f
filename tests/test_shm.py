"""Shared memory by name: the same through `posix_ipc` and as files."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asgi_ipc._process import shm
from asgi_ipc._process.shm import shm_open, shm_unlink

HAS_POSIX_IPC = vars(shm)["posix_ipc"] is not None
TESTS = Path(__file__).parent
# What depends on how a segment is opened, made and removed.
OVER_FILES = [
    "test_shm.py",
    "test_opening.py",
    "test_segment.py",
    "test_deleted.py",
    "test_sync.py",
]
NEW = os.O_CREAT | os.O_EXCL


@pytest.fixture(params=["posix_ipc", "files"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go through one of the two."""
    if request.param == "files":
        monkeypatch.setattr(shm, "posix_ipc", None)
    elif not HAS_POSIX_IPC:
        pytest.skip("posix_ipc is not here")


def test_make_open_and_remove(way: None, prefix: str) -> None:
    """A file of /dev/shm that is read and written, and no program inherits."""
    name = f"/{prefix}-a"
    made = shm_open(name, NEW, 0o640)
    opened = shm_open(name)
    os.write(made, b"hello")
    assert os.pread(opened, 5, 0) == b"hello"
    assert os.stat(f"/dev/shm{name}").st_mode & 0o777 == 0o640
    assert not os.get_inheritable(made)
    assert not os.get_inheritable(opened)
    shm_unlink(name)
    assert not os.path.exists(f"/dev/shm{name}")
    os.close(made)
    os.close(opened)


def _link(path: str) -> None:
    os.symlink("/dev/shm/nowhere", path)


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)


def _file(path: str) -> None:
    Path(path).touch()


IN_THE_WAY: dict[str, tuple[Callable[[str], object] | None, int, set[int]]] = {
    "nothing": (None, 0, {errno.ENOENT}),
    "a file": (_file, NEW, {errno.EEXIST}),
    "a link": (_link, 0, {errno.ELOOP}),
    "a link, to be made": (_link, NEW, {errno.EEXIST}),
    "a directory": (os.mkdir, 0, {errno.EISDIR, errno.EINVAL}),
    "a socket": (_socket, 0, {errno.ENXIO}),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_the_system_says_is_raised(way: None, prefix: str, what: str) -> None:
    """With its number, whichever way it goes."""
    make, flags, numbers = IN_THE_WAY[what]
    path = f"/dev/shm/{prefix}-a"
    if make is not None:
        make(path)
    try:
        with pytest.raises(OSError) as caught:
            shm_open(f"/{prefix}-a", flags, 0o600)
        assert caught.value.errno in numbers
    finally:
        if make is not None:
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def test_a_name_that_is_gone_is_said_to_be(way: None, prefix: str) -> None:
    """Removing it twice is an error of its own."""
    with pytest.raises(FileNotFoundError):
        shm_unlink(f"/{prefix}-a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("hidden", [False, True], ids=["posix_ipc", "files"])
def test_another_users_is_refused(prefix: str, hidden: bool) -> None:
    """To open, and to remove: /dev/shm is sticky."""
    os.close(shm_open(f"/{prefix}-a", NEW, 0o600))
    program = f"""
import os, sys
from asgi_ipc._process import shm
if {hidden}:
    shm.posix_ipc = None
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for call in shm.shm_open, shm.shm_unlink:
    try:
        call("/{prefix}-a")
    except PermissionError:
        print("refused")
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == 2 * "refused\n"


def test_a_process_without_descriptors_is_told_so(way: None, prefix: str) -> None:
    """EMFILE, which `posix_ipc` says in words only."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    name = f"/{prefix}-a"
    os.close(shm_open(name, NEW, 0o600))
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            shm_open(name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.skipif(not HAS_POSIX_IPC, reason="these tests run without it as they are")
def test_the_same_tests_pass_without_posix_ipc() -> None:
    """In processes, and children of theirs, that find none."""
    path = str(TESTS / "without_posix_ipc")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *OVER_FILES], cwd=TESTS, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "posix_ipc is not here" in done.stdout
