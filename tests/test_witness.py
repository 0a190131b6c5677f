"""Who lives: a locked byte, which the kernel frees when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._process import witness as witness_module
from asgi_ipc._process.witness import Life, Witness
from asgi_ipc._wake.bell import bells_directory, make_directory
from asgi_ipc.exceptions import SegmentError, SegmentPermission

from .test_opening import NUMBERS, REFUSE, needs_numbers

if TYPE_CHECKING:
    from .conftest import Child

Start = Callable[..., "Child"]
MakeWitness = Callable[[], Witness]

HOLDS = """
from asgi_ipc._process.witness import Witness
from asgi_ipc._wake.bell import bells_directory
witness = Witness(bells_directory(PREFIX), 0o600)
say(witness.take())
"""
WAITS = """
sys.stdin.readline()
"""


@pytest.fixture
def directory(prefix: str) -> str:
    path = bells_directory(prefix)
    make_directory(path, 0o600)
    return path


@pytest.fixture
def make_witness(directory: str) -> Iterator[MakeWitness]:
    made: list[Witness] = []

    def make() -> Witness:
        made.append(Witness(directory, 0o600))
        return made[-1]

    yield make
    for witness in made:
        witness.close()


@pytest.fixture
def witness(make_witness: MakeWitness) -> Witness:
    return make_witness()


@pytest.mark.parametrize("how", ["killed", "ends", "replaced by exec"])
def test_a_process_is_alive_until_it_ends(
    start: Start, witness: Witness, directory: str, how: str
) -> None:
    """Running or stopped it is alive; then it is dead, and was never asked."""
    end = {
        "killed": "",
        "ends": "os._exit(0)",
        "replaced by exec": 'os.execvp("sleep", ["sleep", "60"])',
    }[how]
    child = start(HOLDS + WAITS + end)
    token = int(child.line())
    assert witness.ask(token) is Life.ALIVE
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    assert witness.ask(token) is Life.ALIVE
    child.signal(signal.SIGCONT)
    if how == "killed":
        child.kill()
    else:
        child.tell()
        while "sleep" not in _command(child.pid) and child.process.poll() is None:
            os.sched_yield()
    assert witness.ask(token) is Life.DEAD


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return "sleep"


def test_children_have_no_part_in_it(start: Start, witness: Witness) -> None:
    """Forked by Python or by C, and programs started: none keeps its parent's byte locked."""
    child = start(
        HOLDS
        + """
import ctypes, subprocess
for fork in (os.fork, ctypes.PyDLL(None).fork):
    if not fork():
        os.close(1)
        sys.stdin.buffer.read()
        os._exit(0)
subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
say("has children")
"""
        + WAITS
    )
    token = int(child.line())
    child.expect("has children")
    assert witness.ask(token) is Life.ALIVE
    child.signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert witness.ask(token) is Life.DEAD


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_a_forked_child_takes_a_token_of_its_own(start: Start, witness: Witness, fork: str) -> None:
    """It believes nothing that it inherited, and lets go without harm to its parent."""
    child = start(
        HOLDS
        + f"""
import ctypes
from asgi_ipc._process.witness import Life
inherited = witness.token
if not {fork}():
    assert witness.ask(inherited) is Life.ALIVE  # as it is
    witness.abandon()
    own = witness.take()
    assert own != inherited and witness.ask(own) is witness.ask(inherited) is Life.ALIVE
    say(own)
    witness.close()
    say("closed")
    sys.stdin.readline()
    os._exit(0)
os.wait()
say("lives on")
sys.stdin.readline()
"""
    )
    parent = int(child.line())
    own = int(child.line())
    child.expect("closed")
    assert witness.ask(own) is Life.DEAD
    assert witness.ask(parent) is Life.ALIVE
    child.tell()
    child.expect("lives on")
    assert witness.ask(parent) is Life.ALIVE


def test_all_sites_of_a_process_share_one_descriptor(make_witness: MakeWitness) -> None:
    """What one closes does not free what the others hold."""
    one, other, asks = make_witness(), make_witness(), make_witness()
    tokens = one.take(), other.take()
    assert one.take() == tokens[0] and tokens[0] != tokens[1]
    assert [asks.ask(token) for token in tokens] == [Life.ALIVE] * 2
    one.close()
    assert [asks.ask(token) for token in tokens] == [Life.DEAD, Life.ALIVE]
    assert _seen_from_outside(other.path, tokens[1]) == "ALIVE"
    asks.close()
    assert _seen_from_outside(other.path, tokens[1]) == "ALIVE"
    other.close()
    assert not _here_open(other.path)


def test_who_asked_first_locks_later(make_witness: MakeWitness) -> None:
    """It is opened a second time for that; closing either would free the lock."""
    make_witness().take()
    one = make_witness()
    make_witness().close()
    token = one.take()
    assert one.ask(token) is Life.ALIVE
    assert _seen_from_outside(one.path, token) == "ALIVE"


def test_a_process_that_only_asked_locks_later(start: Start, witness: Witness) -> None:
    """With a descriptor that is open for writing, beside the one it has."""
    child = start(
        """
from asgi_ipc._process.witness import Witness
from asgi_ipc._wake.bell import bells_directory
directory = bells_directory(PREFIX)
witness, other = Witness(directory, 0o600), Witness(directory, 0o600)
say(witness.ask(int(sys.argv[2])))
say(witness.take())
other.ask(int(sys.argv[2]))
other.close()
say("asked again")
sys.stdin.readline()
""",
        str(witness.take()),
    )
    child.expect("Life.ALIVE")
    token = int(child.line())
    child.expect("asked again")
    assert witness.ask(token) is Life.ALIVE


def _seen_from_outside(path: str, token: int) -> str:
    code = (
        "import sys; from asgi_ipc._process.witness import Witness; import os\n"
        "print(Witness(os.path.dirname(sys.argv[1]), 0o600).ask(int(sys.argv[2])).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(token)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _here_open(path: str) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)") == path:
                found.append(fd)
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_what_is_known_of_an_old_file_stays_known(
    start: Start, witness: Witness, directory: str, how: str
) -> None:
    """To who has it open; to others the token of a file that is gone says nothing."""
    child = start(HOLDS + WAITS)
    token = int(child.line())
    assert witness.ask(token) is Life.ALIVE
    os.unlink(witness.path)
    late = Witness(directory, 0o600)
    if how == "replaced":
        late.take()
    assert late.ask(token) is Life.UNKNOWN or how == "replaced"
    assert _seen_from_outside(witness.path, token) == "UNKNOWN"
    assert witness.ask(token) is Life.ALIVE
    child.kill()
    assert witness.ask(token) is Life.DEAD
    assert _seen_from_outside(witness.path, token) == "UNKNOWN"
    late.close()


def test_a_holder_notices_that_its_file_is_gone(witness: Witness) -> None:
    """Then it takes a token where others look for it."""
    assert witness.is_held()
    first = witness.take()
    assert witness.is_held()
    os.unlink(witness.path)
    assert not witness.is_held()
    witness.retire()
    assert witness.is_held()
    second = witness.take()
    assert second != first
    assert witness.is_held()
    assert _seen_from_outside(witness.path, second) == "ALIVE"
    assert witness.ask(second) is Life.ALIVE
    assert witness.ask(first) is Life.UNKNOWN  # its own: what was that one's goes over


def test_a_retired_token_is_no_death(start: Start, witness: Witness) -> None:
    """Who has the old file open still sees it locked, until its process ends."""
    child = start(
        HOLDS
        + """
sys.stdin.readline()
witness.retire()
say(witness.take())
os.unlink(witness.path)
witness.retire()
say(witness.take())
sys.stdin.readline()
witness.close()
say("closed")
"""
        + WAITS
    )
    tokens = [int(child.line())]
    assert witness.ask(tokens[0]) is Life.ALIVE
    child.tell()
    tokens += [int(child.line()), int(child.line())]
    assert [witness.ask(token) for token in tokens] == [Life.ALIVE] * 3
    child.tell()
    child.expect("closed")
    assert [witness.ask(token) for token in tokens] == [Life.DEAD] * 3


def test_what_was_given_back_is_dead_whatever_the_kernel_says(witness: Witness) -> None:
    """Who closes its layer and joins again must know that its old home is nobody's."""
    token = witness.take()
    witness.close()
    os.unlink(witness.path)
    assert witness.ask(token) is Life.DEAD
    assert witness.ask(token + 1) is Life.UNKNOWN
    assert witness.ask(witness.take()) is Life.ALIVE


def test_a_lock_that_was_lost_is_locked_again(witness: Witness) -> None:
    """Somebody in this process opened the file and closed it: that frees everything."""
    token = witness.take()
    os.close(os.open(witness.path, os.O_RDONLY))
    assert _seen_from_outside(witness.path, token) == "DEAD"
    assert witness.is_held()
    assert _seen_from_outside(witness.path, token) == "ALIVE"


def test_a_number_that_is_another_files_now_is_left_alone(witness: Witness, tmp_path: Path) -> None:
    """A daemoniser closed all descriptors, and a log file has got the number."""
    token = witness.take()
    (number,) = map(int, _here_open(witness.path))
    assert number > 255  # beyond what is usually closed, and far from 0, 1 and 2
    with open(tmp_path / "log", "w+b") as log:
        os.dup2(log.fileno(), number)
        assert not witness.is_held()
        witness.close()
        assert os.path.samestat(os.fstat(number), os.fstat(log.fileno()))
        again = witness.take()
        assert again != token
        assert _seen_from_outside(witness.path, again) == "ALIVE"
        os.close(number)


def test_a_lost_descriptor_proves_nothing(start: Start, witness: Witness, tmp_path: Path) -> None:
    """A free byte of a file that is not the witness file is no death: that is opened anew."""
    child = start(HOLDS + WAITS)
    token = int(child.line())
    assert witness.ask(token) is Life.ALIVE
    (number,) = map(int, _here_open(witness.path))
    with open(tmp_path / "log", "w+b") as log:
        os.dup2(log.fileno(), number)
        assert witness.ask(token) is Life.ALIVE
        (again,) = map(int, _here_open(witness.path))
        os.dup2(log.fileno(), again)
        child.kill()
        assert witness.ask(token) is Life.DEAD
        os.close(number)
        os.close(again)


def test_few_descriptors_are_enough(start: Start, witness: Witness) -> None:
    """With a limit of 32 it is opened; with none left the error names file and remedy."""
    child = start(
        """
import resource
from asgi_ipc._process.witness import Life, Witness
from asgi_ipc._wake.bell import bells_directory
directory = bells_directory(PREFIX)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
late = Witness(directory, 0o600)
assert late.ask(int(sys.argv[2])) is Life.UNKNOWN
try:
    late.take()
except Exception as exc:
    say(type(exc).__name__, exc)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))
say(late.take())
sys.stdin.readline()
""",
        str(witness.take()),
    )
    error = child.expect("SegmentError")
    assert "alive" in error and "ulimit -n" in error
    assert witness.ask(int(child.line())) is Life.ALIVE


@pytest.mark.parametrize("what", ["a directory", "a pipe", "a link"])
def test_something_else_in_the_files_place_is_refused(witness: Witness, what: str) -> None:
    """With its path and what to do; asking says that nothing is known."""
    {
        "a directory": os.mkdir,
        "a pipe": os.mkfifo,
        "a link": lambda path: os.symlink("/etc/passwd", path),
    }[what](witness.path)
    try:
        with pytest.raises(SegmentError, match=witness.path):
            witness.take()
        assert witness.ask(1 << 48 | 1) is Life.UNKNOWN
    finally:
        (os.rmdir if what == "a directory" else os.unlink)(witness.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_file_is_refused(start: Start, witness: Witness, directory: str) -> None:
    """It names the remedy; asked through it, nothing is known."""
    token = witness.take()
    os.chmod(directory, 0o755)
    child = start(
        """
from asgi_ipc._process.witness import Witness
os.setgroups([]); os.setgid(23456); os.setuid(23456)
late = Witness(sys.argv[2], 0o600)
say(late.ask(int(sys.argv[3])))
try:
    late.take()
except PermissionError as exc:
    say(type(exc).__name__, exc)
""",
        directory,
        str(token),
    )
    assert child.line() == "Life.UNKNOWN"
    assert "mode=0o660" in child.expect(SegmentPermission.__name__)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_file_that_a_stranger_has_put_there_proves_nothing(
    make_witness: MakeWitness, directory: str
) -> None:
    """Its bytes are free, and its number may be made to fit; who only looks believes it."""
    here = make_witness()
    token = here.take()
    os.chown(here.path, 23456, 23456)
    late = make_witness()
    assert late.ask(token ^ 1) is Life.UNKNOWN
    with pytest.raises(SegmentPermission, match="mode=0o660"):
        late.take()
    assert here.ask(token) is Life.ALIVE
    looks = Witness(directory, 0)
    assert looks.ask(token ^ 1) is Life.DEAD
    assert late.ask(token ^ 1) is Life.UNKNOWN  # also when another has it open
    looks.close()


def test_a_dropped_witness_gives_its_byte_back(make_witness: MakeWitness, directory: str) -> None:
    """As a site that is collected without having been closed."""
    asks = make_witness()
    dropped = Witness(directory, 0o600)
    token = dropped.take()
    assert asks.ask(token) is Life.ALIVE
    del dropped
    assert asks.ask(token) is Life.DEAD


COLLECTS = """
import gc
from asgi_ipc._process.witness import Witness, _here
gc.disable()
def in_a_cycle():
    made = Witness(sys.argv[2], 0o600)
    made.itself = made
    made.take()
def collect_at(call):
    def count(*_):
        nonlocal call
        call -= 1
        if not call:
            sys.setprofile(None)
            gc.collect()
    return count
for call in range(1, 80):
    in_a_cycle()
    late = Witness(sys.argv[2], 0o600)
    sys.setprofile(collect_at(call))
    late.take()
    sys.setprofile(None)
    assert late.is_held()
    late.close()
    gc.collect()
    assert not _here.files
say("done")
"""


def test_one_that_is_collected_while_another_takes_does_no_harm(
    start: Start, directory: str
) -> None:
    """The garbage collector may come at any call, and closes what nobody uses."""
    start(COLLECTS, directory).expect("done")


def test_asking_waits_for_no_thread(witness: Witness, make_witness: MakeWitness) -> None:
    """One that opens the file, and is interrupted in it, may wait for a lock that is held here."""
    token = witness.take()
    late = make_witness()
    answers: list[Life] = []
    with witness_module._here.lock:
        thread = threading.Thread(target=lambda: answers.append(late.ask(token)))
        thread.start()
        thread.join()
    assert answers == [Life.UNKNOWN]
    assert late.ask(token ^ 1) is Life.DEAD


def test_who_has_to_know_waits_for_the_thread_that_opens(
    witness: Witness, make_witness: MakeWitness
) -> None:
    """A join, say: a home whose owner is not known to be dead would lose it later."""
    token = witness.take()
    late = make_witness()
    is_held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with witness_module._here.lock:
            is_held.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    assert not late.can_tell(token)
    threading.Timer(0.05, go_on.set).start()
    assert late.ask(token, wait=True) is Life.ALIVE
    thread.join()


def test_asking_is_quick_and_needs_no_descriptor(witness: Witness) -> None:
    """Once the file is open nothing more is opened, whatever is asked."""
    token = witness.take()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert witness.ask(token) is Life.ALIVE
        assert witness.ask(token ^ 1) is Life.DEAD
        assert witness.ask(token ^ 1 << 50) is Life.UNKNOWN
        assert witness.ask(0) is Life.UNKNOWN
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not witness_module._here.is_inherited()


@needs_numbers
def test_a_refused_question_forgets_nothing(start: Start, witness: Witness) -> None:
    """An own token is alive all the same, and its byte stays locked; of others nothing is known."""
    child = start(
        HOLDS
        + REFUSE
        + f"""
refuse({NUMBERS[platform.machine()]["fcntl"]}, {errno.ENOLCK}, second=5)  # F_GETLK
from asgi_ipc._process.witness import Life
assert witness.ask(int(sys.argv[2])) is Life.UNKNOWN
assert witness.ask(witness.token) is Life.ALIVE and witness.is_held()
say("fine")
""",
        str(witness.take()),
    )
    child.line()
    assert child.line() in ("fine", "no sandbox here")
    child.end()


@needs_numbers
def test_a_refused_lock_is_told(start: Start, directory: str) -> None:
    """Whatever byte is tried: it does not go on for ever."""
    child = start(
        REFUSE
        + f"""
refuse({NUMBERS[platform.machine()]["fcntl"]}, {errno.EACCES}, second=6)  # F_SETLK
from asgi_ipc._process.witness import Witness
from asgi_ipc.exceptions import SegmentError
try:
    Witness({directory!r}, 0o600).take()
except SegmentError as exc:
    say(type(exc).__name__, exc)
"""
    )
    assert (said := child.line()) == "no sandbox here" or "F_SETLK" in said
    child.end()
