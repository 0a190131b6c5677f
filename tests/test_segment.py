"""A segment's life: creation races, checks on attach, its lock, its redo log, forks."""

from __future__ import annotations

import logging
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._process.shm import shm_unlink
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import LockBusy, Plan, Segment
from asgi_ipc.exceptions import (
    SegmentCorrupt,
    SegmentError,
    SegmentMismatch,
    SegmentPermission,
    StoreLocked,
)

if TYPE_CHECKING:
    from tests.conftest import Child

SIZE = 1 << 20
MakeSegment = Callable[..., Segment]
Start = Callable[..., "Child"]

CHILD_SEGMENT = """
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Plan, Segment
def attach(size=1 << 20):
    return Segment(f"/{PREFIX}-messages", L.KIND_MESSAGES, size, mode=0o600, lock_timeout=20.0)
"""


@pytest.fixture
def make_segment(prefix: str) -> Iterator[MakeSegment]:
    made: list[Segment] = []

    def make(
        size: int = SIZE,
        *,
        kind: int = L.KIND_MESSAGES,
        mode: int = 0o600,
        lock_timeout: float = 10.0,
    ) -> Segment:
        segment = Segment(f"/{prefix}-messages", kind, size, mode=mode, lock_timeout=lock_timeout)
        made.append(segment)
        return segment

    yield make
    for segment in made:
        segment.close()


def path_of(segment: Segment) -> str:
    return "/dev/shm" + segment.name


def write_word(path: str, word: int, value: int) -> None:
    with open(path, "r+b") as file:
        file.seek(8 * word)
        file.write(struct.pack("<Q", value))


def read_word(path: str, word: int) -> int:
    with open(path, "rb") as file:
        file.seek(8 * word)
        return int.from_bytes(file.read(8), "little")


# -- life --------------------------------------------------------------------------------


def test_the_second_attaches_to_what_the_first_made(make_segment: MakeSegment) -> None:
    """Two segments of one name are one memory."""
    first, second = make_segment(), make_segment()
    first.transact(lambda: first.commit({L.COUNT_FLUSHED: 42}))
    assert second.transact(lambda: second.words[L.COUNT_FLUSHED]) == 42
    assert os.stat(path_of(first)).st_size == SIZE


@pytest.mark.parametrize("round_number", range(3))
def test_a_creation_race_of_many_processes_ends_in_one_segment(
    start: Start, prefix: str, round_number: int
) -> None:
    """Twelve processes that create at once all see the same inode and the same epoch."""
    children = [
        start(
            CHILD_SEGMENT
            + """
from asgi_ipc._shm.segment import LockBusy
say("ready")
sys.stdin.readline()
segment = attach()
while True:
    try:
        epoch = segment.transact(lambda: segment.words[L.EPOCH])
        break
    except LockBusy:
        pass  # the others are just attaching
say(os.fstat(segment.lock_fd).st_ino, epoch)
"""
        )
        for _ in range(12)
    ]
    for child in children:
        child.expect("ready")
    for child in children:
        child.tell()
    assert len({child.line() for child in children}) == 1
    for child in children:
        child.end()


def test_threads_race_to_create_one_segment(make_segment: MakeSegment) -> None:
    """Threads of one process that create at once end in one segment too."""
    gate = threading.Barrier(8)
    inodes: list[int] = []

    def create() -> None:
        gate.wait()
        inodes.append(os.fstat(make_segment().lock_fd).st_ino)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inodes) == 8
    assert len(set(inodes)) == 1


@pytest.mark.parametrize(
    "store", ["ftruncate", "posix_fallocate", "mmap", "time_ns", "before ready"]
)
def test_a_creator_killed_half_way_is_redone(
    start: Start, make_segment: MakeSegment, store: str
) -> None:
    """Whatever step of the creation a kill falls into, the next process makes it whole."""
    creator = start(
        CHILD_SEGMENT
        + """
import mmap, signal, asgi_ipc._shm.segment as module
step = sys.argv[2]
die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
if step in ("ftruncate", "posix_fallocate"):
    setattr(os, step, die)
elif step == "mmap":
    Segment._map = die
elif step == "time_ns":
    time.time_ns = die
else:
    attach()
    with open(f"/dev/shm/{PREFIX}-messages", "r+b") as file:
        file.seek(8 * L.READY_WORD)
        file.write(bytes(8))
    say("done")
    die()
attach()
""",
        store,
    )
    creator.process.wait()
    assert creator.process.returncode == -signal.SIGKILL
    segment = make_segment()
    assert segment.words[L.READY_WORD] == L.READY_MARK
    assert segment.words[L.SIZE_WORD] == os.stat(path_of(segment)).st_size == SIZE
    other = make_segment()
    assert os.fstat(other.lock_fd).st_ino == os.fstat(segment.lock_fd).st_ino


def test_a_different_size_is_kept_and_warned_of_once(
    make_segment: MakeSegment, caplog: pytest.LogCaptureFixture
) -> None:
    """The creator's size holds; one warning names both."""
    make_segment(SIZE)
    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        second = make_segment(2 * SIZE)
    assert second.size_bytes == SIZE
    (record,) = caplog.records
    assert str(SIZE) in record.getMessage()
    assert str(2 * SIZE) in record.getMessage()


def test_unlinking_removes_the_name_and_nothing_else(make_segment: MakeSegment) -> None:
    """Whoever is attached keeps the memory and can tell."""
    segment = make_segment()
    assert not segment.is_deleted()
    shm_unlink(segment.name)
    assert segment.is_deleted()
    segment.transact(lambda: segment.commit({L.COUNT_FLUSHED: 1}))
    assert make_segment().transact(lambda: 0) == 0  # a new one


def test_closing_twice_is_harmless_and_attaching_again_works(make_segment: MakeSegment) -> None:
    """A closed segment says so and can come back to what the name stands for."""
    segment = make_segment()
    segment.transact(lambda: segment.commit({L.COUNT_FLUSHED: 7}))
    segment.close()
    segment.close()
    assert segment.closed
    segment.reattach()
    assert segment.words[L.COUNT_FLUSHED] == 7


def test_a_dropped_segment_gives_its_descriptors_back(prefix: str) -> None:
    """Garbage collection alone closes the lock and the memory, and unlinks nothing."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Segment(f"/{prefix}-messages", L.KIND_MESSAGES, SIZE, mode=0o600, lock_timeout=1.0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.path.exists(f"/dev/shm/{prefix}-messages")


def test_nothing_is_unlinked_when_a_process_ends(start: Start, make_segment: MakeSegment) -> None:
    """The end of the creator, or of any other process, leaves the segment to the others."""
    creator = start(CHILD_SEGMENT + "segment = attach(); say('made')")
    creator.expect("made")
    creator.end()
    segment = make_segment()
    assert not segment.is_deleted()
    start(CHILD_SEGMENT + "segment = attach(); sys.exit(0)").end()
    assert not segment.is_deleted()


# -- checks on attach --------------------------------------------------------------------


def test_a_foreign_object_is_refused(make_segment: MakeSegment, prefix: str) -> None:
    """Something of that name that is no segment of ours is neither used nor overwritten."""
    path = f"/dev/shm/{prefix}-messages"
    with open(path, "wb") as file:
        file.write(b"somebody else's " * 4096)
    os.chmod(path, 0o600)
    with pytest.raises(SegmentMismatch, match="not a segment of asgi_ipc"):
        make_segment()
    with open(path, "rb") as file:
        assert file.read() == b"somebody else's " * 4096


def test_another_layout_version_is_refused(make_segment: MakeSegment) -> None:
    """The error names both versions and the remedy."""
    path = path_of(make_segment())
    write_word(path, L.VERSION_WORD, 1999)
    with pytest.raises(SegmentMismatch, match=f"1999.*{L.LAYOUT_VERSION}.*unlink"):
        make_segment()


def test_the_other_kind_of_segment_is_refused(make_segment: MakeSegment) -> None:
    """A groups segment is not taken for a messages segment."""
    make_segment(kind=L.KIND_GROUPS)
    with pytest.raises(SegmentMismatch, match="kind"):
        make_segment()


def test_a_truncated_segment_is_refused(make_segment: MakeSegment) -> None:
    """A size that contradicts the header is corruption, said with both numbers."""
    path = path_of(make_segment())
    os.truncate(path, SIZE // 2)
    with pytest.raises(SegmentCorrupt, match=f"{SIZE // 2}.*{SIZE}"):
        make_segment()


def test_a_damaged_ready_mark_is_refused(make_segment: MakeSegment) -> None:
    """Only zero means unfinished and only the mark means ready."""
    path = path_of(make_segment())
    write_word(path, L.READY_WORD, 12345)
    with pytest.raises(SegmentCorrupt, match="ready mark"):
        make_segment()


@pytest.mark.parametrize("end", [0, 3, SIZE, 1 << 60, 2**64 - 4])
def test_an_impossible_end_of_heap_is_refused(make_segment: MakeSegment, end: int) -> None:
    """A heap that ends outside of the segment is corruption."""
    path = path_of(make_segment())
    write_word(path, L.HEAP_END, end)
    with pytest.raises(SegmentCorrupt, match="heap ends"):
        make_segment()


def test_a_wider_mode_is_refused(make_segment: MakeSegment) -> None:
    """A segment that others may open is not used by who asked for a private one."""
    path = path_of(make_segment())
    os.chmod(path, 0o666)
    with pytest.raises(SegmentPermission, match="0o666"):
        make_segment()
    make_segment(mode=0o666)


def test_the_mode_is_the_one_asked_for_whatever_the_umask(make_segment: MakeSegment) -> None:
    """A group-shared segment is group-shared under any umask."""
    before = os.umask(0o077)
    try:
        segment = make_segment(mode=0o660)
    finally:
        os.umask(before)
    assert os.stat(path_of(segment)).st_mode & 0o777 == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_segment_is_refused(start: Start, make_segment: MakeSegment) -> None:
    """A process of another user gets SegmentPermission, which is also a PermissionError."""
    segment = make_segment()
    os.chown(path_of(segment), 12345, 12345)
    code = (
        CHILD_SEGMENT
        + """
os.setgroups([]); os.setgid(23456); os.setuid(23456)
try:
    attach()
except PermissionError as exc:
    say(type(exc).__name__, exc)
"""
    )
    assert "SegmentPermission" in start(code).end()
    os.chmod(path_of(segment), 0o666)  # even if the kernel lets it in
    said = start(code).end()
    assert "SegmentPermission" in said
    assert "12345" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "asked", "accepted"),
    [
        (23456, 0, 0o600, 0o600, False),  # root is no exception
        (23456, 0, 0o600, 0o660, True),
        (23456, 23456, 0o660, 0o660, False),  # the group is none of ours
        (23456, 0, 0o666, 0o666, False),  # everybody may write
        (0, 23456, 0o600, 0o600, True),
    ],
)
def test_a_segment_prepared_by_a_stranger_is_refused(
    make_segment: MakeSegment, owner: int, group: int, mode: int, asked: int, accepted: bool
) -> None:
    """Unless it is to be shared, its group is one of ours, and others may not write there."""
    segment = make_segment()
    os.chown(path_of(segment), owner, group)
    os.chmod(path_of(segment), mode)
    if accepted:
        make_segment(mode=asked)
    else:
        with pytest.raises(SegmentPermission, match=r"belongs to user 23456.*root as well"):
            make_segment(mode=asked)


def test_something_that_is_no_file_is_refused(prefix: str, make_segment: MakeSegment) -> None:
    """A directory in the segment's place ends in an error, not in a loop."""
    os.mkdir(f"/dev/shm/{prefix}-messages")
    with pytest.raises(SegmentError):
        make_segment()


# -- the lock ----------------------------------------------------------------------------


def test_one_transaction_at_a_time_over_all_processes(
    start: Start, make_segment: MakeSegment
) -> None:
    """Counts that are read and written by six processes and their threads lose nothing."""
    segment = make_segment()
    children = [
        start(
            CHILD_SEGMENT
            + """
from asgi_ipc._shm.segment import LockBusy
segment = attach()
def add():
    segment.commit({L.COUNT_FLUSHED: segment.words[L.COUNT_FLUSHED] + 1})
def work():
    done = 0
    while done < 200:
        try:
            segment.transact(add)
            done += 1
        except LockBusy:
            pass
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
        )
        for _ in range(6)
    ]
    for child in children:
        child.end()
    assert segment.words[L.COUNT_FLUSHED] == 6 * 3 * 200


STOPPED_HOLDER = (
    CHILD_SEGMENT
    + """
import signal
segment = attach()
def stop():
    say("stopping")
    os.kill(os.getpid(), signal.SIGSTOP)
segment.transact(stop)
say("continued")
"""
)


def test_a_stopped_holder_is_named_and_not_stolen_from(
    start: Start, make_segment: MakeSegment
) -> None:
    """Waiting ends in LockBusy quickly; the error names the pid; its death frees the lock."""
    segment = make_segment()
    holder = start(STOPPED_HOLDER)
    holder.expect("stopping")
    holder.wait_for_state("T")
    with pytest.raises(LockBusy):
        segment.transact(lambda: None)
    assert segment.lock_holder() == holder.pid
    error = segment.locked_error()
    assert error.holder_pid == holder.pid
    assert str(holder.pid) in str(error)
    with pytest.raises(StoreLocked, match=str(holder.pid)):
        make_segment(lock_timeout=0.05)
    holder.kill()
    assert segment.transact(lambda: "free") == "free"


def test_a_stopped_holder_goes_on_where_it_was(start: Start, make_segment: MakeSegment) -> None:
    """Continued, it finishes its transaction and lets go."""
    segment = make_segment()
    holder = start(STOPPED_HOLDER)
    holder.expect("stopping")
    holder.wait_for_state("T")
    holder.signal(signal.SIGCONT)
    holder.expect("continued")
    assert segment.transact(lambda: "free") == "free"
    holder.end()


def test_an_exception_inside_lets_the_lock_go(make_segment: MakeSegment) -> None:
    """Whatever a transaction raises, the next one runs."""
    first, second = make_segment(), make_segment()
    for error in (ValueError, KeyboardInterrupt, SystemExit):

        def fail(error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            first.transact(fail)
        assert second.transact(lambda: 1) == first.transact(lambda: 1) == 1


def test_a_transaction_inside_a_transaction_is_refused(make_segment: MakeSegment) -> None:
    """A signal handler or finaliser that sends gets an error, not a deadlock."""
    segment = make_segment()
    with pytest.raises(StoreLocked, match="this very thread"):
        segment.transact(lambda: segment.transact(lambda: None))
    assert segment.transact(lambda: 1) == 1


def test_keyboard_interrupts_at_any_point_leave_the_lock_free(
    start: Start, make_segment: MakeSegment
) -> None:
    """A process interrupted two thousand times in its transactions never keeps the lock."""
    segment = make_segment()
    child = start(
        CHILD_SEGMENT
        + """
import signal
from asgi_ipc._shm.segment import LockBusy
segment = attach()
words = segment.words
def add():
    count = words[L.COUNT_FLUSHED] + 1
    segment.commit({L.COUNT_FLUSHED: count, L.COUNT_DROPPED: count})
def interrupt(*args):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
hits = 0
while hits < 2000:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.00002 + (hits % 50) * 0.000002)
        while True:
            segment.transact(add)
    except KeyboardInterrupt:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
segment.transact(lambda: None)
assert words[L.COUNT_FLUSHED] == words[L.COUNT_DROPPED], "half a commit"
say("survived", words[L.COUNT_FLUSHED])
sys.stdin.readline()
"""
    )
    child.expect("survived")
    assert segment.transact(lambda: "free") == "free"
    child.tell()
    child.end()


# -- the log -----------------------------------------------------------------------------


def test_a_plan_reads_through_to_memory(make_segment: MakeSegment) -> None:
    """Steps of one operation see each other's writes; memory sees them at the commit."""
    segment = make_segment()

    def operation() -> None:
        plan = Plan(segment.words)
        assert plan[L.COUNT_FLUSHED] == 0
        plan[L.COUNT_FLUSHED] += 5
        assert plan[L.COUNT_FLUSHED] == 5
        assert segment.words[L.COUNT_FLUSHED] == 0
        segment.commit(plan)

    segment.transact(operation)
    assert segment.words[L.COUNT_FLUSHED] == 5
    assert segment.words[L.LOG_N] == 0


def test_a_plan_that_fits_no_log_is_our_own_bug(make_segment: MakeSegment) -> None:
    """Nothing is written of a plan that is too large or empty."""
    segment = make_segment()
    large = dict.fromkeys(range(L.heap_start(SIZE), L.heap_start(SIZE) + L.LOG_CAPACITY + 1), 1)
    empty: dict[int, int] = {}
    for plan in (empty, large):
        with pytest.raises(AssertionError):
            segment.transact(segment.commit, plan)
    assert segment.words[L.LOG_N] == 0
    segment.transact(lambda: segment.commit({L.COUNT_FLUSHED: 1}))


@pytest.mark.parametrize("count", [1, 4, 11])
def test_pairs_are_committed_like_a_plan(make_segment: MakeSegment, count: int) -> None:
    """Every word is written, and the log is idle again."""
    segment = make_segment()
    wanted = {L.SLOTS + number: 1000 + number for number in range(count)}
    pairs = [number for pair in wanted.items() for number in pair]
    segment.transact(segment.commit_pairs, *pairs)
    assert {word: segment.words[word] for word in wanted} == wanted
    assert segment.words[L.LOG_N] == 0
    assert segment.words[L.LOG : L.LOG + 2 * count].tolist() == pairs


def test_the_next_process_finishes_what_a_killed_one_committed(
    start: Start, make_segment: MakeSegment
) -> None:
    """Killed right after the commit point, before a single word was applied."""
    segment = make_segment()
    child = start(
        CHILD_SEGMENT
        + """
import signal
segment = attach()
class Plan(dict):
    def items(self):
        if segment.words[L.LOG_N]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().items()
segment.transact(segment.commit, Plan({L.COUNT_FLUSHED: 11, L.COUNT_DROPPED: 22}))
"""
    )
    child.process.wait()
    assert child.process.returncode == -signal.SIGKILL
    assert segment.words[L.LOG_N] == 2
    assert segment.words[L.COUNT_FLUSHED] == 0
    assert segment.transact(lambda: segment.words[L.COUNT_FLUSHED]) == 11
    assert segment.words[L.COUNT_DROPPED] == 22
    assert segment.words[L.LOG_N] == 0


@pytest.mark.parametrize("count", [L.LOG_CAPACITY + 1, 1 << 33, 1 << 63, 2**64 - 1])
def test_a_log_of_impossible_length_is_refused(make_segment: MakeSegment, count: int) -> None:
    """Numbers in the log are input: checked before a word of it is believed."""
    segment = make_segment()
    write_word(path_of(segment), L.LOG_N, count)
    with pytest.raises(SegmentCorrupt, match="log"):
        segment.transact(lambda: None)


@pytest.mark.parametrize("key", [0, L.READY_WORD, L.SIZE_WORD, SIZE // 8, 2**63])
def test_a_log_that_names_forbidden_words_is_refused(make_segment: MakeSegment, key: int) -> None:
    """Neither the header nor anything outside is ever written by a replay."""
    segment = make_segment()
    segment.transact(lambda: segment.commit({L.COUNT_FLUSHED: 1}))
    write_word(path_of(segment), L.LOG, key)
    write_word(path_of(segment), L.LOG_N, 1)
    with pytest.raises(SegmentCorrupt, match="log"):
        segment.transact(lambda: None)


def test_a_reset_empties_heap_and_table(make_segment: MakeSegment) -> None:
    """With LOG_RESET a commit forgets every record and extent, and applies its words."""
    from asgi_ipc._store.queues import Queues

    segment = make_segment()
    queues = Queues(segment)

    def attempt() -> Plan:
        plan = Plan(segment.words)
        queues.create_channel(plan, "c")
        return plan

    def create() -> None:
        segment.commit(queues.heap.fit(attempt, lambda: None))

    segment.transact(create)
    assert segment.transact(lambda: queues.find_channel(Plan(segment.words), "c"))
    segment.transact(segment.commit, {L.COUNT_FLUSHED: 3}, L.LOG_RESET)
    assert not segment.transact(lambda: queues.find_channel(Plan(segment.words), "c"))
    assert segment.words[L.COUNT_FLUSHED] == 3
    segment.transact(create)


def test_an_epoch_that_changed_is_noticed_by_the_others(make_segment: MakeSegment) -> None:
    """Whoever takes the lock after a flush is told to forget what it remembered."""
    first, second = make_segment(), make_segment()
    told: list[int] = []
    second.on_epoch = lambda: told.append(1)
    second.transact(lambda: None)
    assert told == []
    first.transact(lambda: first.commit({L.EPOCH: first.words[L.EPOCH] + 1}))
    second.transact(lambda: None)
    second.transact(lambda: None)
    assert told == [1]


# -- forks -------------------------------------------------------------------------------

FORKING = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
if sys.argv[2] == "used":
    asyncio.run(layer.send("before", {"n": 0}))
pid = os.fork()
async def many(name):
    for n in range(300):
        await layer.send(name, {"n": n})
        assert (await layer.receive_async([name], block=False))[1] == {"n": n}
if pid == 0:
    asyncio.run(many("child"))
    say("child is done")
    os._exit(0)
asyncio.run(many("parent"))
assert os.waitpid(pid, 0)[1] == 0
say("parent is done")
"""


@pytest.mark.parametrize("use", ["used", "unused"])
def test_parent_and_child_of_a_fork_both_go_on(start: Start, use: str) -> None:
    """A layer made before a fork works on both sides of it, at the same time."""
    said = start(FORKING, use).end()
    assert sorted(said.splitlines()) == ["child is done", "parent is done"]


def test_a_fork_in_the_middle_of_a_transaction_does_not_free_the_lock(
    start: Start, make_segment: MakeSegment
) -> None:
    """The child's end does not unlock for the parent, which still holds it."""
    segment = make_segment()
    child = start(
        CHILD_SEGMENT
        + """
segment = attach()
def operation():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    say("holding")
    sys.stdin.readline()
import os as _os
_os.register_at_fork(after_in_child=segment.after_fork_in_child)
segment.transact(operation)
say("free")
sys.stdin.readline()
"""
    )
    child.expect("holding")
    with pytest.raises(LockBusy):
        segment.transact(lambda: None)
    child.tell()
    child.expect("free")
    assert segment.transact(lambda: 1) == 1
    child.tell()
    child.end()


def test_memory_is_backed_before_it_is_touched(make_segment: MakeSegment) -> None:
    """A new segment takes a few pages, not its size; backing adds what it says."""
    segment = make_segment(64 << 20)
    assert os.stat(path_of(segment)).st_blocks * 512 < 1 << 20
    start = segment.heap_start
    assert not segment.is_backed(start + 1000)
    segment.transact(segment.back, start, start + (2 << 20) // 8)
    assert os.stat(path_of(segment)).st_blocks * 512 >= 2 << 20
