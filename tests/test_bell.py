"""The doorbell: one write wakes a loop of another process, and nothing ever blocks."""

from __future__ import annotations

import os
import resource
import secrets
import select
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._bell import (
    Bell,
    Door,
    EventBell,
    PipeBell,
    Ringer,
    bells_directory,
    make_directory,
    new_bell,
    ring,
)
from asgi_ipc.exceptions import SegmentPermission

if TYPE_CHECKING:
    from tests.conftest import Child

SLOT = 3
KINDS = [EventBell, PipeBell] if hasattr(os, "eventfd") else [PipeBell]


class House:
    """A bell and a door, as a loop owns them."""

    def __init__(self, directory: str, kind: type[Bell]) -> None:
        self.random = secrets.randbits(48) | 1
        self.token = self.random << 8 | SLOT
        self.bell = kind()
        self.door = Door(directory, self.random, 0o600, self.bell)

    def is_rung(self) -> bool:
        """Whether the bell has rung."""
        return bool(select.select([self.bell.read_fd], [], [], 0)[0])

    def is_knocked_at(self) -> bool:
        """Whether somebody waits at the door."""
        return bool(select.select([self.door.listener], [], [], 0)[0])

    def close(self) -> None:
        """Close both."""
        self.door.close()
        self.bell.close()


@pytest.fixture
def directory(prefix: str) -> str:
    path = bells_directory(prefix)
    make_directory(path, 0o600)
    return path


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Bell]:
    found: type[Bell] = request.param
    return found


@pytest.fixture
def house(directory: str, kind: type[Bell]) -> Iterator[House]:
    made = House(directory, kind)
    yield made
    made.close()


@pytest.fixture
def ringer(directory: str) -> Iterator[Ringer]:
    made = Ringer(directory)
    yield made
    made.close()


def test_rings_add_up_to_one_and_are_drained_at_once(kind: type[Bell]) -> None:
    """However often it was rung, one drain empties it; draining an unrung bell is nothing."""
    bell = kind()
    bell.drain()
    for _ in range(10_000):
        ring(bell.ring_fd)
    assert select.select([bell.read_fd], [], [], 0)[0]
    bell.drain()
    assert not select.select([bell.read_fd], [], [], 0)[0]
    bell.close()


def test_ringing_a_full_bell_does_not_block(kind: type[Bell]) -> None:
    """A bell nobody answers swallows any number of rings."""
    bell = kind()
    if kind is EventBell:
        os.eventfd_write(bell.ring_fd, 2**64 - 2)
    for _ in range(20_000):
        ring(bell.ring_fd)
    bell.drain()
    assert not select.select([bell.read_fd], [], [], 0)[0]
    bell.close()


def test_the_best_bell_is_an_eventfd() -> None:
    """Where there is one."""
    bell = new_bell()
    assert isinstance(bell, KINDS[0])
    bell.close()


def test_the_connection_is_the_first_ring(house: House, ringer: Ringer) -> None:
    """Before the bell has been handed over a ring is a visitor at the door."""
    assert ringer.ring(SLOT, house.token)
    assert house.is_knocked_at()
    assert not house.is_rung()
    assert house.door.answer()
    assert not house.is_knocked_at()


def test_from_then_on_a_ring_is_one_write(house: House, ringer: Ringer) -> None:
    """The second ring uses the descriptor that the first one was answered with."""
    ringer.ring(SLOT, house.token)
    house.door.answer()
    for _ in range(3):
        assert ringer.ring(SLOT, house.token)
        assert house.is_rung()
        assert not house.is_knocked_at()
        house.bell.drain()


def test_rings_before_the_answer_are_one_visitor(house: House, ringer: Ringer) -> None:
    """Ringing again while the door is unanswered adds nothing and loses nothing."""
    for _ in range(100):
        assert ringer.ring(SLOT, house.token)
    assert house.door.answer()
    assert not house.door.answer()
    assert ringer.ring(SLOT, house.token)
    assert house.is_rung()


def test_many_visitors_are_answered_at_once(house: House, directory: str) -> None:
    """Each gets the bell."""
    ringers = [Ringer(directory) for _ in range(100)]
    for one in ringers:
        assert one.ring(SLOT, house.token)
    assert house.door.answer()
    for one in ringers:
        assert one.ring(SLOT, house.token)
        assert house.is_rung()
        house.bell.drain()
        one.close()
    another = Ringer(directory)
    another.ring(SLOT, house.token)
    house.door.answer()  # notices that the others are gone
    assert len(house.door._guests) == 1
    another.close()


def test_more_visitors_than_can_wait_are_rings_enough(house: House, directory: str) -> None:
    """When the queue at the door is full nobody is taken for dead and nobody blocks."""
    ringers = [Ringer(directory) for _ in range(700)]
    try:
        assert all(one.ring(SLOT, house.token) for one in ringers)
        assert house.door.answer()
    finally:
        for one in ringers:
            one.close()


def test_a_closed_door_means_dead(house: House, ringer: Ringer) -> None:
    """Both for who has never rung there and for who has the bell already."""
    ringer.ring(SLOT, house.token)
    house.door.answer()
    ringer.ring(SLOT, house.token)
    house.door.close()
    assert _ring_until_false(ringer, house.token)
    assert not ringer.ring(SLOT, house.token)


def _ring_until_false(ringer: Ringer, token: int) -> bool:
    """A peer is asked whether it lives once a millisecond, not at every ring."""
    return any(not ringer.ring(SLOT, token) for _ in range(1_000_000))


def test_an_unanswered_door_that_closes_means_dead(house: House, ringer: Ringer) -> None:
    """Killed before it could answer."""
    assert ringer.ring(SLOT, house.token)
    house.door.close()
    assert not ringer.ring(SLOT, house.token)


def test_a_door_that_was_never_there_means_dead(ringer: Ringer) -> None:
    """A token of a process that died long ago."""
    assert not ringer.ring(SLOT, 12345 << 8 | SLOT)


def test_a_killed_owner_is_noticed(
    start: Callable[..., Child], ringer: Ringer, kind: type[Bell]
) -> None:
    """SIGKILL leaves the socket's name behind; the kernel tells all the same."""
    child = start(
        f"""
import asgi_ipc._bell as module
bell = module.{kind.__name__}()
door = module.Door(module.bells_directory(PREFIX), 77, 0o600, bell)
import select
say("open")
select.select([door.listener], [], [])
door.answer()
say("answered")
select.select([bell.read_fd], [], [])
bell.drain()
say("rung")
sys.stdin.readline()
"""
    )
    child.expect("open")
    token = 77 << 8 | SLOT
    assert ringer.ring(SLOT, token)
    child.expect("answered")
    assert ringer.ring(SLOT, token)
    child.expect("rung")
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    assert ringer.ring(SLOT, token)  # merely stopped
    child.kill()
    assert _ring_until_false(ringer, token)


def test_a_slot_with_a_new_owner_is_rung_at_its_own_door(
    directory: str, kind: type[Bell], ringer: Ringer
) -> None:
    """The bell of the last owner is let go."""
    old, new = House(directory, kind), House(directory, kind)
    ringer.ring(SLOT, old.token)
    old.door.answer()
    assert ringer.ring(SLOT, new.token)
    assert new.is_knocked_at()
    assert not old.is_rung()
    old.close()
    new.close()


def test_a_loop_of_this_process_is_rung_without_a_door(ringer: Ringer) -> None:
    """And says for itself whether it is there."""
    calls: list[bool] = []

    def own() -> bool:
        calls.append(True)
        return len(calls) < 3

    ringer.own[42] = own
    assert [ringer.ring(SLOT, 42) for _ in range(3)] == [True, True, False]


def test_the_directory_is_private(directory: str) -> None:
    """Only its owner may go in."""
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    make_directory(directory, 0o600)


def test_a_shared_directory_lets_the_group_in(prefix: str) -> None:
    """Modes follow the layer's ``mode``, whatever the umask is."""
    path = bells_directory(prefix)
    before = os.umask(0o077)
    try:
        make_directory(path, 0o660)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o770 == 0o770


def test_a_file_in_the_directorys_place_is_refused(prefix: str) -> None:
    """The error names the path."""
    path = bells_directory(prefix)
    with open(path, "w"):
        pass
    with pytest.raises(SegmentPermission, match="not a directory"):
        make_directory(path, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_directory_is_refused(start: Callable[..., Child], directory: str) -> None:
    """A process does not put its door into somebody else's house."""
    os.chown(directory, 12345, 12345)
    child = start(
        """
from asgi_ipc._bell import bells_directory, make_directory
os.setgroups([]); os.setgid(23456); os.setuid(23456)
try:
    make_directory(bells_directory(PREFIX), 0o600)
except PermissionError as exc:
    say(type(exc).__name__)
"""
    )
    assert child.end() == "SegmentPermission\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_stranger_at_the_door_gets_no_bell(
    start: Callable[..., Child], house: House, directory: str
) -> None:
    """The kernel says whose connection it is."""
    os.chmod(directory, 0o777)
    os.chmod(house.door.path, 0o777)
    child = start(
        """
import socket
os.setgroups([]); os.setgid(23456); os.setuid(23456)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.connect(sys.argv[2])
say("knocked")
say(socket.recv_fds(sock, 1, 1)[:2])
""",
        house.door.path,
    )
    child.expect("knocked")
    house.door.answer()
    assert child.end() == "(b'', [])\n"


def test_descriptors_do_not_leak_to_programs_started(house: House, ringer: Ringer) -> None:
    """Bells, doors and connections are closed on exec."""
    ringer.ring(SLOT, house.token)
    house.door.answer()
    ringer.ring(SLOT, house.token)
    for fd in range(3, 200):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if link.startswith(("socket:", "anon_inode:[eventfd]")):
            assert not os.get_inheritable(fd), link


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Use up every descriptor this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass  # EMFILE
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_out_of_descriptors_the_ringer_does_not_fail(house: House, ringer: Ringer) -> None:
    """A send that cannot open a connection is still a send: it calls all who wait."""
    with no_descriptor_left():
        assert ringer.ring(SLOT, house.token)
    assert ringer.ring(SLOT, house.token)
    assert house.is_knocked_at()


def test_who_cannot_be_reached_is_called_in_another_way(tmp_path: Path) -> None:
    """Neither dead nor to be rung: whoever waits is told through the segment."""
    not_a_directory = tmp_path / "file"
    not_a_directory.touch()
    calls: list[str] = []
    ringer = Ringer(str(not_a_directory))
    ringer.call_all = lambda: calls.append("all")
    assert ringer.ring(SLOT, 1 << 8 | SLOT)
    assert calls == ["all"]
    ringer.close()


def test_a_bell_that_could_not_be_received_is_asked_for_again(house: House, ringer: Ringer) -> None:
    """A descriptor that the kernel dropped for want of room is not waited for for ever."""
    ringer.ring(SLOT, house.token)
    house.door.answer()
    with no_descriptor_left():
        ringer.ring(SLOT, house.token)
    for _ in range(2):
        assert ringer.ring(SLOT, house.token)
    assert house.is_rung() or house.is_knocked_at()


def test_an_owner_out_of_descriptors_keeps_its_visitors(house: House, ringer: Ringer) -> None:
    """They wait at the door and are answered later."""
    assert ringer.ring(SLOT, house.token)
    with no_descriptor_left():
        house.door.answer()
    assert house.is_knocked_at()
    assert house.door.answer()
    assert ringer.ring(SLOT, house.token)
    assert house.is_rung()


def test_closing_a_door_removes_its_name(directory: str, kind: type[Bell]) -> None:
    """Nothing is left in the directory, also when it was removed meanwhile."""
    first, second = House(directory, kind), House(directory, kind)
    first.close()
    assert os.listdir(directory) == [os.path.basename(second.door.path)]
    os.unlink(second.door.path)
    os.rmdir(directory)
    second.close()


def test_a_visitor_that_dies_at_the_door_is_no_problem(house: House) -> None:
    """Gone before it was answered."""
    for _ in range(5):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(house.door.path)
        sock.close()
    assert house.door.answer()
    assert not house.door.answer()
