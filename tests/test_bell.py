"""The doorbell: one write wakes a loop of another process, and nothing ever blocks."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._process.witness import Life, Witness
from asgi_ipc._wake import bell as bell_module
from asgi_ipc._wake.bell import (
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

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]
SLOT = 3
ALIVE, DEAD, UNKNOWN = Life.ALIVE, Life.DEAD, Life.UNKNOWN
KINDS = [EventBell, PipeBell] if hasattr(os, "eventfd") else [PipeBell]


class House:
    """A bell and a door, as a loop owns them."""

    def __init__(self, directory: str, kind: type[Bell]) -> None:
        self.random = secrets.randbits(48) | 1
        self.witness = Witness(directory, 0o600)
        self.process = self.witness.take()
        self.token = self.random << 8 | SLOT
        self.bell = kind()
        self.door = Door(directory, self.random, 0o600, self.bell)

    def is_rung(self) -> bool:
        """Whether the bell has rung."""
        return bool(select.select([self.bell.read_fd], [], [], 0)[0])

    def is_knocked_at(self) -> bool:
        """Whether somebody waits at the door."""
        return bool(select.select([self.door.listener], [], [], 0)[0])

    def ring(self, ringer: Ringer) -> Life:
        """Be rung."""
        return ringer.ring(SLOT, self.token, self.process)

    def heard(self, ringer: Ringer) -> Life:
        """Be asked for."""
        return ringer.heard(SLOT, self.token, self.process)

    def close(self) -> None:
        """Close both."""
        self.door.close()
        self.bell.close()
        self.witness.close()


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
    made = new_ringer(directory)
    yield made
    made.close()
    made._witness.close()


def new_ringer(directory: str) -> Ringer:
    """One as every process has."""
    return Ringer(directory, Witness(directory, 0o600), 0o600)


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
    assert house.ring(ringer) is ALIVE
    assert house.is_knocked_at()
    assert not house.is_rung()
    assert house.door.answer()
    assert not house.is_knocked_at()


def test_from_then_on_a_ring_is_one_write(house: House, ringer: Ringer) -> None:
    """The second ring uses the descriptor that the first one was answered with."""
    house.ring(ringer)
    house.door.answer()
    for _ in range(3):
        assert house.ring(ringer) is ALIVE
        assert house.is_rung()
        assert not house.is_knocked_at()
        house.bell.drain()


def test_rings_before_the_answer_are_one_visitor(house: House, ringer: Ringer) -> None:
    """Ringing again while the door is unanswered adds nothing and loses nothing."""
    for _ in range(100):
        assert house.ring(ringer) is ALIVE
    assert house.door.answer()
    assert not house.door.answer()
    assert house.ring(ringer) is ALIVE
    assert house.is_rung()


def test_many_visitors_are_answered_at_once(house: House, directory: str) -> None:
    """Each gets the bell."""
    ringers = [new_ringer(directory) for _ in range(100)]
    for one in ringers:
        assert house.ring(one) is ALIVE
    assert house.door.answer()
    for one in ringers:
        assert house.ring(one) is ALIVE
        assert house.is_rung()
        house.bell.drain()
        one.close()
    another = new_ringer(directory)
    house.ring(another)
    house.door.answer()  # notices that the others are gone
    assert len(house.door._guests) == 1
    another.close()


def test_more_visitors_than_can_wait_are_rings_enough(house: House, directory: str) -> None:
    """When the queue at the door is full nobody is taken for dead and nobody blocks."""
    ringers = [new_ringer(directory) for _ in range(700)]
    try:
        assert all(house.ring(one) is ALIVE for one in ringers)
        assert house.door.answer()
    finally:
        for one in ringers:
            one.close()


def test_a_closed_door_says_nothing_of_its_process(house: House, ringer: Ringer) -> None:
    """The loop is gone, its process is not: another is to be rung as well, nobody is reaped."""
    house.ring(ringer)
    house.door.answer()
    house.ring(ringer)
    assert house.heard(ringer) is ALIVE
    house.door.close()
    assert house.ring(ringer) is ALIVE  # its bell is there
    assert house.heard(ringer) is UNKNOWN
    assert house.ring(ringer) is UNKNOWN


def test_an_unanswered_door_that_closes_says_nothing(house: House, ringer: Ringer) -> None:
    """Whoever closed it may live."""
    assert house.ring(ringer) is ALIVE
    house.door.close()
    assert house.ring(ringer) is UNKNOWN


def test_who_has_given_its_byte_back_is_dead(house: House, ringer: Ringer) -> None:
    """However well its door answers; the door's name is removed by who reaps it."""
    house.ring(ringer)
    house.door.answer()
    house.ring(ringer)
    house.witness.close()
    assert house.ring(ringer) is ALIVE  # it was rung
    assert house.heard(ringer) is DEAD
    ringer.forget(SLOT, house.token)
    assert not os.path.exists(house.door.path)
    assert house.ring(ringer) is DEAD


def test_a_token_of_another_file_cannot_be_told(house: House, ringer: Ringer) -> None:
    """The directory was cleaned up: who has died long ago is neither dead nor alive."""
    stranger = house.process ^ 1 << 50
    assert ringer.ring(SLOT, 12345 << 8 | SLOT, stranger) is UNKNOWN
    house.ring(ringer)
    house.door.answer()
    assert ringer.ring(SLOT, house.token, stranger) is UNKNOWN  # although it was rung
    assert house.is_rung()


def test_a_killed_owner_is_noticed(
    start: Callable[..., Child], ringer: Ringer, kind: type[Bell]
) -> None:
    """At the first ring after it, although the last thing it said was its bell."""
    child = start(
        f"""
import asgi_ipc._wake.bell as module
from asgi_ipc._process.witness import Witness
bell = module.{kind.__name__}()
directory = module.bells_directory(PREFIX)
witness = Witness(directory, 0o600)
say(witness.take())
door = module.Door(directory, 77, 0o600, bell)
import select
say("open")
select.select([door.listener], [], [])
door.answer()
say("answered")
sys.stdin.readline()
"""
    )
    process = int(child.line())
    child.expect("open")
    token = 77 << 8 | SLOT
    assert ringer.ring(SLOT, token, process) is ALIVE
    child.expect("answered")
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    assert ringer.ring(SLOT, token, process) is ALIVE
    assert ringer.heard(SLOT, token, process) is ALIVE  # merely stopped
    child.kill()
    assert ringer.heard(SLOT, token, process) is DEAD
    ringer.forget(SLOT, token)
    assert ringer.ring(SLOT, token, process) is DEAD


def test_a_slot_with_a_new_owner_is_rung_at_its_own_door(
    directory: str, kind: type[Bell], ringer: Ringer
) -> None:
    """The bell of the last owner is let go."""
    old, new = House(directory, kind), House(directory, kind)
    old.ring(ringer)
    old.door.answer()
    assert new.ring(ringer) is ALIVE
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
    assert [ringer.ring(SLOT, 42, 0) for _ in range(3)] == [ALIVE, ALIVE, DEAD]


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
from asgi_ipc._wake.bell import bells_directory, make_directory
os.setgroups([]); os.setgid(23456); os.setuid(23456)
try:
    make_directory(bells_directory(PREFIX), 0o600)
except PermissionError as exc:
    say(type(exc).__name__)
"""
    )
    assert child.end() == "SegmentPermission\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "asked", "accepted"),
    [
        (23456, 0, 0o700, 0o600, False),  # root is no exception
        (23456, 0, 0o777, 0o660, False),  # everybody may write
        (23456, 23456, 0o770, 0o660, False),  # the group is none of ours
        (23456, 0, 0o770, 0o660, True),
        (0, 0, 0o700, 0o600, True),
    ],
)
def test_a_directory_prepared_by_a_stranger_is_refused(
    directory: str, owner: int, group: int, mode: int, asked: int, accepted: bool
) -> None:
    """Unless it is to be shared, its group is one of ours, and others may not write there."""
    os.chown(directory, owner, group)
    os.chmod(directory, mode)
    if accepted:
        make_directory(directory, asked)
    else:
        with pytest.raises(SegmentPermission, match=directory):
            make_directory(directory, asked)


@pytest.mark.parametrize("stranger", ["link", "owner"])
def test_nothing_goes_where_the_directory_of_doors_is_not_ours(
    ringer: Ringer, directory: str, tmp_path: Path, stranger: str
) -> None:
    """Removed with the site still alive, and replaced by a link or a directory of another user."""
    if stranger == "owner" and os.geteuid() != 0:
        pytest.skip("only root can be two users")
    token = 0x0123456789AB << 8
    behind = tmp_path / "behind"
    behind.mkdir()
    os.rmdir(directory)
    if stranger == "link":
        os.symlink(behind, directory)
    else:
        os.mkdir(directory)
        os.chown(directory, 23456, 23456)
    door = Path(directory, "0123456789ab")
    door.touch()
    ringer.forget(SLOT, token)
    assert door.exists()
    door.unlink()
    os.unlink(directory) if stranger == "link" else os.rmdir(directory)
    os.mkdir(directory)
    door.touch()
    ringer.forget(SLOT, token)
    assert not door.exists()


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_stranger_is_rung_and_rings_by_connecting(
    start: Callable[..., Child], house: House, directory: str
) -> None:
    """Not welcome at the door, or in a user namespace of its own: nobody is dead of it."""
    os.chmod(directory, 0o777)
    os.chmod(house.door.path, 0o777)
    os.chmod(house.witness.path, 0o644)
    child = start(
        """
from asgi_ipc._wake.bell import Ringer, bells_directory
from asgi_ipc._process.witness import Witness
os.setgroups([]); os.setgid(23456); os.setuid(23456)
directory = bells_directory(PREFIX)
ringer = Ringer(directory, Witness(directory, 0o600), 0o600)
for line in sys.stdin:
    who = tuple(map(int, line.split()))
    say(ringer.ring(*who), ringer.heard(*who))
"""
    )
    for _ in range(3):
        child.tell(f"{SLOT} {house.token} {house.process}")
        child.expect("Life.ALIVE Life.ALIVE")
        assert house.door.answer()
    assert not house.is_rung()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_the_bell_of_a_strangers_door_is_not_taken(
    start: Callable[..., Child], house: House, ringer: Ringer, directory: str
) -> None:
    """He listens in another's place and hands out a pipe that is full and blocks."""
    os.chmod(directory, 0o777)
    house.door.close()
    child = start(
        """
import socket
os.setgroups([]); os.setgid(23456); os.setuid(23456)
door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
door.bind(sys.argv[2])
os.chmod(sys.argv[2], 0o777)
door.listen()
reads, writes = os.pipe()
os.set_blocking(writes, False)
try:
    while True:
        os.write(writes, bytes(4096))
except BlockingIOError:
    os.set_blocking(writes, True)
say("listens")
while True:
    guest, _ = door.accept()
    try:
        socket.send_fds(guest, [b"b"], [writes])
    except OSError:
        pass
    say("handed out")
""",
        house.door.path,
    )
    child.expect("listens")
    for _ in range(3):
        assert house.ring(ringer) is ALIVE  # each time by connecting
        child.expect("handed out")
    assert not ringer._peers


@pytest.mark.parametrize("what", ["a file", "a full pipe", "a socket"])
def test_a_bell_of_the_wrong_kind_is_not_rung(
    house: House, ringer: Ringer, tmp_path: Path, what: str
) -> None:
    """Whatever a door hands out: it is never written to, or never waited for."""
    reads, writes = os.pipe()
    one, other = socket.socketpair()
    with open(tmp_path / "file", "w+b") as file:
        if what == "a full pipe":
            os.set_blocking(writes, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writes, bytes(4096))
            os.set_blocking(writes, True)
        fd = {"a file": file.fileno(), "a full pipe": writes, "a socket": one.fileno()}[what]
        house.ring(ringer)
        guest, _ = house.door.listener.accept()
        socket.send_fds(guest, [b"b"], [fd])
        for _ in range(3):
            assert house.ring(ringer) is ALIVE
        assert os.fstat(file.fileno()).st_size == 0
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        guest.close()
    for number in (reads, writes):
        os.close(number)
    one.close()
    other.close()


def test_descriptors_do_not_leak_to_programs_started(house: House, ringer: Ringer) -> None:
    """Bells, doors and connections are closed on exec."""
    house.ring(ringer)
    house.door.answer()
    house.ring(ringer)
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
        assert house.ring(ringer) is UNKNOWN
    assert house.ring(ringer) is ALIVE
    assert house.is_knocked_at()


def test_who_cannot_be_reached_is_called_in_another_way(tmp_path: Path) -> None:
    """Neither dead nor to be rung: whoever waits is told through the segment."""
    not_a_directory = tmp_path / "file"
    not_a_directory.touch()
    calls: list[str] = []
    ringer = new_ringer(str(not_a_directory))
    ringer.call_all = lambda: calls.append("all")
    assert ringer.ring(SLOT, 1 << 8 | SLOT, 1) is UNKNOWN
    assert calls == ["all"]
    ringer.close()


def test_a_bell_that_could_not_be_received_is_asked_for_again(house: House, ringer: Ringer) -> None:
    """A descriptor that the kernel dropped for want of room is not waited for for ever."""
    house.ring(ringer)
    house.door.answer()
    with no_descriptor_left():
        house.ring(ringer)
    for _ in range(2):
        assert house.ring(ringer) is ALIVE
    assert house.is_rung() or house.is_knocked_at()


def test_an_owner_out_of_descriptors_keeps_its_visitors(house: House, ringer: Ringer) -> None:
    """They wait at the door and are answered later."""
    assert house.ring(ringer) is ALIVE
    with no_descriptor_left():
        house.door.answer()
    assert house.is_knocked_at()
    assert house.door.answer()
    assert house.ring(ringer) is ALIVE
    assert house.is_rung()


def test_closing_a_door_removes_its_name(directory: str, kind: type[Bell]) -> None:
    """Nothing is left in the directory, also when it was removed meanwhile."""
    first, second = House(directory, kind), House(directory, kind)
    first.close()
    assert set(os.listdir(directory)) == {"alive", os.path.basename(second.door.path)}
    os.unlink(second.door.path)
    os.unlink(second.witness.path)
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


class Raised(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("has_threads", [False, True])
def test_a_signal_while_a_bell_arrives_loses_no_descriptor(
    start: Start, make_layer: MakeLayer, has_threads: bool
) -> None:
    """At whichever line of ringing: the bell that another process hands over is kept or closed.

    With other threads as well: the kernel may give one of them the signal, at any moment.
    """
    end = threading.Event()
    others = [threading.Thread(target=end.wait) for _ in range(3 * has_threads)]
    for thread in others:
        thread.start()
    child = start(
        """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    while True:
        say((await layer.receive("c"))["n"])
asyncio.run(main())
"""
    )
    layer = make_layer()

    def reach(n: int) -> None:
        child.wait_for_state("S")
        layer.sync.send("c", {"n": n})
        while child.line() != str(n):
            pass

    def descriptors() -> int:
        layer.close_now()
        return len(os.listdir("/proc/self/fd"))

    def on_signal(*_: object) -> None:
        raise Raised

    left = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != bell_module.__file__:
            return None
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGUSR1)
        return trace

    reach(0)
    before = descriptors()
    handler = signal.signal(signal.SIGUSR1, on_signal)
    try:
        for place in range(1, 1000):
            reach(-place)  # by connecting; the bell is on its way then
            child.wait_for_state("S")
            left = place
            sys.settrace(trace)
            try:
                layer.sync.send("c", {"n": place})
            except Raised:
                pass
            finally:
                sys.settrace(None)
            reach(1000 + place)
            assert descriptors() <= before, f"interrupted at line {place}"
            if left > 0:
                break
    finally:
        signal.signal(signal.SIGUSR1, handler)
        end.set()
        for thread in others:
            thread.join()
    assert place > 20
