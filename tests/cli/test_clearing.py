"""``flush`` and ``unlink``: what goes, what stays, and who is asked first."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.exceptions import SegmentMismatch

from .conftest import COMMAND
from .screens import Screen
from .test_looking import RECEIVER

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]


def names_left(prefix: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def test_flush_empties_a_whole_site(make_layer: MakeLayer, read: Read) -> None:
    """Every message and every group is gone, for whoever is attached."""
    layer = make_layer()
    layer.sync.send("jobs", {})
    layer.sync.group_add("chat", "jobs")
    assert read("flush", "--yes")["messages"] == 1
    assert layer.sync.global_statistics()["messages_pending"] == 0
    assert layer.sync.group_channels("chat") == []


def test_flush_asks_first_on_a_terminal(make_layer: MakeLayer, prefix: str) -> None:
    """No leaves everything as it is, yes goes on; --yes does not ask."""
    layer = make_layer()
    layer.sync.send("jobs", {})
    for answer, code, left in (("n", 1, 1), ("y", 0, 0)):
        screen = Screen([*COMMAND, "flush", "-p", prefix], {})
        try:
            screen.until("Drop every message")
            screen.type(f"{answer}\n")
            assert screen.end() == code
        finally:
            screen.close()
        assert layer.sync.global_statistics()["messages_pending"] == left


@pytest.mark.parametrize("answer", ["", "n\n", "y\n"])
def test_flush_off_a_terminal_needs_its_option(
    answer: str, make_layer: MakeLayer, run: Run
) -> None:
    """From cron, ssh or docker exec nobody can be asked: code 2, and nothing is dropped."""
    layer = make_layer()
    layer.sync.send("jobs", {})
    assert "--yes" in run("flush", code=2, stdin=answer).err
    assert layer.sync.receive("jobs", 0) == {}


@pytest.mark.parametrize("command", ["flush", "top", "send jobs -", "stats", "unlink"])
def test_a_standard_input_that_is_closed_is_none(
    command: str, make_layer: MakeLayer, prefix: str
) -> None:
    """No command meets it with a traceback."""
    make_layer().sync.send("jobs", {})
    words = " ".join([*COMMAND, command, "-p", prefix])
    done = subprocess.run(["sh", "-c", f"{words} <&-"], capture_output=True, text=True)
    assert done.returncode in (0, 2, 8) and "Traceback" not in done.stderr
    if command in ("flush", "top", "send jobs -"):
        assert done.returncode == 2


def test_flush_of_channels_leaves_the_others(make_layer: MakeLayer, read: Read) -> None:
    """The named queues are empty, and have room again; other queues and groups are whole."""
    layer = make_layer(capacity=100)
    layer.sync.group_add("chat", "home!a")
    for n in range(100):
        layer.sync.send("jobs", {"n": n})
        layer.sync.send("keep", {"n": n})
        layer.sync.send("home!a", {"n": n})
        layer.sync.send("home!b", {"n": n})
    layer.sync.group_send("chat", {})
    document = read("flush", "--channel", "jobs", "--channel", "home!")
    assert document["messages"] == 301
    assert layer.sync.receive("jobs", 0) is None
    for n in range(100):
        layer.sync.send("home!a", {"n": n})  # its capacity is free again
        assert layer.sync.receive("keep", 0) == {"n": n}
    assert layer.sync.group_channels("chat") == ["home!a"]


def test_a_flush_that_is_killed_leaves_the_rest(make_layer: MakeLayer, prefix: str) -> None:
    """What it has not come to is all there, in order, and the segment is sound."""
    layer = make_layer(capacity=100_000)
    for n in range(5000):
        layer.sync.send("jobs", {"n": n})
    process = subprocess.Popen([*COMMAND, "flush", "-p", prefix, "--channel", "jobs"])

    def has_begun() -> bool:
        return layer.sync.channel_statistics("jobs")["messages_pending"] < 5000

    while not has_begun():  # it may begin, and even end, between the two looks
        assert process.poll() is None or has_begun()
    process.kill()
    process.wait()
    left = []
    while (message := layer.sync.receive("jobs", 0)) is not None:
        left.append(message["n"])
    assert left == list(range(5000 - len(left), 5000))
    assert layer.sync.global_statistics()["received_count"] == 5000


def test_one_name_of_a_shared_queue_cannot_be_flushed(make_layer: MakeLayer, run: Run) -> None:
    """Its messages are in the middle of the queue of its process: code 2 says which one."""
    layer = make_layer()
    layer.sync.send("home!a", {})
    assert "flush 'home!'" in run("flush", "--channel", "home!a", code=2).err
    assert layer.sync.receive("home!a", 0) == {}


def test_flush_of_a_group_ends_its_memberships(make_layer: MakeLayer, read: Read) -> None:
    """What was sent to the members before is still theirs."""
    layer = make_layer()
    for member in ("one", "home!a"):
        layer.sync.group_add("chat", member)
        layer.sync.group_add("other", member)
    layer.sync.group_send("chat", {"before": 1})
    assert read("flush", "--group", "chat")["memberships"] == 2
    layer.sync.group_send("chat", {"after": 1})
    assert layer.sync.group_count("other") == 2
    for member in ("one", "home!a"):
        assert layer.sync.receive(member, 0) == {"before": 1}
        assert layer.sync.receive(member, 0) is None


def test_unlink_refuses_while_somebody_is_attached(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read, run: Run, prefix: str
) -> None:
    """Code 8, and who it is: a loop that waits, a process that only sends, a stopped one."""
    receiver, stopped = start(RECEIVER), start(RECEIVER)
    receiver.line(), stopped.line()
    stopped.signal(signal.SIGSTOP)
    stopped.wait_for_state("T")
    layer = make_layer()
    layer.sync.send("jobs", {})
    error = read("unlink", code=8)["error"]
    assert error["code"] == "attached"
    by_pid = {process["pid"]: process for process in error["processes"]}
    assert by_pid.keys() == {receiver.pid, stopped.pid, os.getpid()}
    assert by_pid[receiver.pid]["loops"] and not by_pid[os.getpid()]["loops"]
    assert len(names_left(prefix)) == 3
    assert layer.sync.receive("jobs", 0) == {}
    assert str(receiver.pid) in run("unlink", code=8).out


def test_unlink_removes_what_nobody_uses(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read, prefix: str
) -> None:
    """Slots of processes that were killed do not count as attached."""
    receiver = start(RECEIVER)
    receiver.line()
    receiver.kill()
    make_layer().close_now()
    document = read("unlink")
    assert document["processes"] == []
    assert len(document["removed"]) == 3
    assert names_left(prefix) == []


def test_who_only_looks_is_not_attached(
    make_layer: MakeLayer, prefix: str, read: Read, start: Callable[..., Child]
) -> None:
    """``top`` beside a stopped site does not keep it from being removed, and goes on."""
    make_layer().close_now()
    looker = start("""
from asgi_ipc._operator.inspect import Inspector
inspector = Inspector(PREFIX)
say("looks")
sys.stdin.readline()
inspector.close()
""")
    looker.expect("looks")
    assert looker.pid not in [one["pid"] for one in read("processes")["processes"]]
    assert looker.pid not in [one["pid"] for one in read("unlink", "--force")["processes"]]
    assert names_left(prefix) == []
    looker.tell()
    looker.end()


def test_who_has_closed_its_layer_is_not_attached(
    prefix: str, read: Read, start: Callable[..., Child]
) -> None:
    """Closed from each face, after sends, receives and groups: nothing of it stays mapped."""
    closed = start("""
from asgi_ipc.channels import IPCChannelLayer as Face
async def use_async():
    layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.group_send("g", {})
    await layer.receive(channel)
    waits = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.wait([waits])
    await layer.close()
    return layer
async def use_channels():
    layer = Face(prefix=PREFIX, **SIZES)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "x"})
    await layer.receive(channel)
    await layer.close_pools()
    return layer
def use_sync():
    layer = IPCChannelLayer(PREFIX, **SIZES)
    layer.send("c", {})
    layer.receive(["c"])
    layer.close()
    return layer
kept = [asyncio.run(use_async()), asyncio.run(use_channels()), use_sync()]
say("closed")
sys.stdin.readline()
""")
    closed.expect("closed")
    assert len(names_left(prefix)) == 3
    assert read("unlink")["processes"] == []
    assert names_left(prefix) == []
    closed.tell()
    closed.end()


def test_unlink_by_force_says_who_was_attached(
    make_layer: MakeLayer, read: Read, prefix: str
) -> None:
    """Those who are attached go on with what they have."""
    layer = make_layer()
    layer.sync.send("jobs", {"n": 1})
    document = read("unlink", "--force")
    assert [process["pid"] for process in document["processes"]] == [os.getpid()]
    assert names_left(prefix) == []
    assert layer._site.messages.segment.is_deleted()
    layer.close_now()


def test_unlink_removes_what_is_no_site_any_more(run: Run, prefix: str) -> None:
    """Half a site, or bytes that no version understands: they can be removed all the same."""
    with open(f"/dev/shm/{prefix}-messages", "wb") as file:
        file.write(b"not a segment of anybody")
    run("unlink")
    assert names_left(prefix) == []


def test_unlink_does_not_follow_what_a_neighbour_put_there(
    make_layer: MakeLayer, read: Read, prefix: str, tmp_path: Path
) -> None:
    """A symlink in the place of the sockets' directory: code 5, and nothing behind it goes."""
    make_layer().close_now()
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "0123456789ab").touch()
    os.symlink(behind, f"/dev/shm/{prefix}-bells")
    assert "is no directory" in read("unlink", code=5)["error"]["message"]
    assert "is no directory" in read("repair", code=5)["error"]["message"]
    assert os.listdir(behind) == ["0123456789ab"]
    os.unlink(f"/dev/shm/{prefix}-bells")


def test_what_the_original_left_is_called_so_and_removed(
    make_layer: MakeLayer, run: Run, prefix: str
) -> None:
    """In one wording, by every command and by a layer, with the command that removes all of it."""
    names = [f"{kind}{prefix}-{name}" for kind in ("", "sem.") for name in ("messages", "groups")]
    for name in names:
        with open(f"/dev/shm/{name}", "wb") as file:
            file.write(pickle.dumps({}, 2).ljust(1 << 16, b"\0"))
        os.chmod(f"/dev/shm/{name}", 0o600)
    remedy = f"asgi-ipc unlink --prefix {prefix}"
    assert "was left by asgi_ipc 1.x" in run("stats", code=5).err
    assert remedy in run("stats", code=5).err
    with pytest.raises(SegmentMismatch, match=remedy):
        make_layer()
    doctor = run("doctor", "--quiet", code=1).out
    assert "was left by asgi_ipc 1.x" in doctor and remedy in doctor
    assert "left by asgi_ipc 1.x" in run("sites").out
    run("unlink")
    assert names_left(prefix) == [] and names_left("sem." + prefix) == []


def test_unlink_leaves_files_that_are_not_ours(read: Read, run: Run, prefix: str) -> None:
    """They are told, and their directory stays with them."""
    os.mkdir(f"/dev/shm/{prefix}-bells")
    stranger = f"/dev/shm/{prefix}-bells/notes.txt"
    open(stranger, "w").close()
    document = read("unlink")
    assert (document["removed"], document["strangers"]) == ([], [stranger])
    assert stranger in run("unlink").out


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)]
)
def test_what_is_no_file_is_told(make: Callable[[str], None], run: Run, prefix: str) -> None:
    """A FIFO is not waited at, a symlink not read: code 5 says what stands there."""
    path = f"/dev/shm/{prefix}-messages"
    make(path)
    assert "something that is no file stands in the place" in run("stats", code=5).err
    if os.path.isdir(path) and not os.path.islink(path):
        assert "a directory stands in the place" in run("unlink", code=5).err
        os.rmdir(path)
    else:
        run("unlink")
    assert names_left(prefix) == []
