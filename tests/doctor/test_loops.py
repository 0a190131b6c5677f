"""Doors, slots and descriptors: whom a sender can wake."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._operator.doctor.probe import is_alive
from asgi_ipc._operator.doctor.processes import inotify_instances, inotify_limit
from asgi_ipc._wake.bell import Door, bells_directory, door_path, make_directory, new_bell

from ..conftest import ONLY_RINGS
from ..stepping import drive
from ..test_inotify import ASYNC, start_settled
from .grounds import as_root, cure, look, of, trouble
from .test_segments import WAIT

if TYPE_CHECKING:
    from ..conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]


def test_waiting_processes_are_green(prefix: str, start: Start) -> None:
    """Each has a slot and a socket."""
    children = [start(WAIT), start(WAIT)]
    for child in children:
        child.expect("waits")
    findings = look(prefix)
    assert trouble(findings) == []
    assert of(findings, "bells").numbers["doors"] == 2
    assert of(findings, "slots").numbers["slots"] == 2


def test_looking_wakes_nobody(prefix: str, start: Start) -> None:
    """Asking whether a loop lives costs it nothing: it is not scheduled for it."""
    child = start_settled(start, ASYNC)

    def switches() -> int:
        with open(f"/proc/{child.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("voluntary"))

    before = switches()
    for _ in range(5):
        assert of(look(prefix), "slots").severity == "ok"
    assert switches() <= before + 1  # that it has fallen asleep may be counted late


def test_a_killed_process_leaves_a_dead_slot_and_stale_sockets(
    prefix: str, start: Start, make_layer: MakeLayer
) -> None:
    """Both are warnings; the remedies say who frees them, and how to do it by hand."""
    child = start(WAIT)
    child.expect("waits")
    child.signal(signal.SIGKILL)
    child.process.wait()
    findings = look(prefix)
    assert trouble(findings) == ["stale-sockets", "dead-slots"]
    dead = of(findings, "dead-slots")
    assert dead.numbers["pids"] == [child.pid]
    assert isinstance(of(findings, "stale-sockets").numbers["paths"], list)
    assert len(of(findings, "stale-sockets").numbers["paths"]) == 1  # type: ignore[arg-type]

    cure(of(findings, "stale-sockets"))
    assert trouble(look(prefix)) == ["dead-slots"]
    layer = make_layer()
    drive(layer.send("c", {}))  # "whoever waits or rings it next frees it"
    assert trouble(look(prefix)) == []


def test_nearly_all_slots_taken_is_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """Before TooManyLoops is raised."""
    layer = make_layer()
    directory = bells_directory(prefix)
    make_directory(directory, 0o600)
    bell = new_bell()
    doors = []
    for number in range(1, 232):
        doors.append(Door(directory, number, 0o600, bell))
        layer._site.messages.slots.claim(number, process=number)
    try:
        finding = of(look(prefix), "slots-full")
        assert finding.severity == "warning"
        assert finding.numbers["slots"] == 231
    finally:
        for door in doors:
            door.close()
        bell.close()


@pytest.mark.parametrize(("mode", "severity"), [(0o777, "error"), (0o755, "warning")])
def test_a_directory_open_to_others_is_found(
    prefix: str, start: Start, mode: int, severity: str
) -> None:
    """Writable by others is an error, readable a warning; chmod cures both."""
    child = start(WAIT)
    child.expect("waits")
    os.chmod(bells_directory(prefix), mode)
    finding = of(look(prefix), "bells-mode")
    assert finding.severity == severity
    cure(finding)
    assert trouble(look(prefix)) == []


def test_processes_with_different_modes_are_found(prefix: str, start: Start) -> None:
    """One with mode=0o600 in a site that is to be shared: its socket keeps the others out."""
    child = start(WAIT)
    child.expect("waits")
    assert {"segment-mode", "bells-mode"} <= set(trouble(look(prefix, mode=0o660)))


@as_root
def test_a_directory_of_another_user_is_an_error(prefix: str) -> None:
    """Of root's above all, who once ran a command of the site."""
    directory = bells_directory(prefix)
    make_directory(directory, 0o600)
    finding = of(look(prefix, user=12345), "bells-owner")
    assert finding.severity == "error"
    assert "root" in finding.what
    cure(finding)
    assert trouble(look(prefix, user=12345)) == ["site-missing"]
    assert of(look(prefix, user=23456), "bells-owner").severity == "error"


@as_root
def test_processes_of_two_users_are_an_error(prefix: str, start: Start) -> None:
    """They could not wake each other."""
    child = start(WAIT)
    child.expect("waits")
    findings = look(prefix, user=12345)
    assert {"segment-owner", "bells-owner"} <= set(trouble(findings))


def test_something_else_among_the_doors_is_a_warning(prefix: str) -> None:
    """A file nobody of ours made."""
    directory = bells_directory(prefix)
    make_directory(directory, 0o600)
    with open(os.path.join(directory, "notes.txt"), "w"):
        pass
    finding = of(look(prefix), "bells")
    assert finding.severity == "warning"
    assert "notes.txt" in finding.what


def test_a_file_in_the_directorys_place_is_an_error(prefix: str) -> None:
    """No process of the site could wait; the remedy removes it."""
    with open(bells_directory(prefix), "w"):
        pass
    finding = of(look(prefix), "bells-owner")
    assert finding.severity == "error"
    cure(finding)
    assert trouble(look(prefix)) == ["site-missing"]


def test_doors_deleted_underneath_are_an_error(prefix: str, start: Start) -> None:
    """Living loops that nobody can wake, and that have not noticed yet."""
    child = start(ONLY_RINGS + WAIT)
    child.expect("waits")
    directory = bells_directory(prefix)
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    os.rmdir(directory)
    finding = of(look(prefix), "bells-missing")
    assert finding.severity == "error"
    assert finding.numbers["pids"] == [child.pid]


def test_few_descriptors_left_is_found(prefix: str, start: Start) -> None:
    """At 80 % of the limit a warning, at 95 % an error, for the process it is about."""
    child = start(
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
kept = []
for wanted in (50, 85, 97):
    while len(os.listdir("/proc/self/fd")) - 1 < wanted:
        kept.append(os.open("/dev/null", os.O_RDONLY))
    say(wanted)
    sys.stdin.readline()
"""
    )
    for wanted, severity in ((50, "ok"), (85, "warning"), (97, "error")):
        child.expect(str(wanted))
        finding = of(look(prefix), "descriptors")
        assert finding.severity == severity
        assert finding.numbers["open"] == {str(child.pid): wanted}
        assert finding.numbers["limit"] == 100
        child.tell()
    child.end()


@as_root
def test_few_inotify_instances_left_are_found(prefix: str, start: Start) -> None:
    """At 90 % of what the user may have: its own processes count, whatever they belong to."""
    user = 1_000_000 + os.getpid()  # who runs nothing else
    limit = inotify_limit()
    assert limit is not None
    child = start(
        """
import ctypes
user = int(sys.argv[2])
os.setgroups([]); os.setgid(user); os.setuid(user)
libc = ctypes.CDLL(None)
while True:
    wanted = int(sys.stdin.readline())
    for _ in range(wanted):
        libc.inotify_init1(os.O_CLOEXEC)
    say("has them")
""",
        str(user),
    )
    before = of(look(prefix, user=user), "inotify")
    assert (before.severity, before.numbers["limit"]) == ("ok", limit)
    child.tell("3")
    child.expect("has them")
    assert inotify_instances(user) == 3
    child.tell(str(limit))  # more than there are: the kernel refuses some
    child.expect("has them")
    after = of(look(prefix, user=user), "inotify")
    assert after.severity == "warning"
    assert "max_user_instances" in after.remedy


def test_whether_anybody_listens_is_asked_without_being_heard(prefix: str) -> None:
    """The probe leaves no connection behind at a door, open or closed."""
    directory = bells_directory(prefix)
    make_directory(directory, 0o600)
    path = door_path(directory, 1)
    assert is_alive(path) is False
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(1)
        door.setblocking(False)
        assert is_alive(path) is True
        with pytest.raises(BlockingIOError):
            door.accept()
    assert is_alive(path) is False
