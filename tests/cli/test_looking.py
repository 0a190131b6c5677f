"""``stats``, ``channels``, ``groups``, ``processes`` and ``peek``: they look and change nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import (
    AsyncIPCChannelLayer,
    ChannelFull,
)
from asgi_ipc._operator import peek
from asgi_ipc._operator.inspect import Inspector

from ..doctor.grounds import ground, needs_mount, shm
from .conftest import COMMAND
from .screens import Screen

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

RECEIVER = """
async def main():
    layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
    mine = await layer.new_channel("worker")
    await layer.group_add("chat", mine)
    tasks = [asyncio.create_task(layer.receive(name)) for name in (mine, "work")]
    for _ in range(3):
        await asyncio.sleep(0)
    say(mine)
    await asyncio.wait(tasks)
asyncio.run(main())
"""


def test_stats_counts_everything_with_its_cause(make_layer: MakeLayer, read: Read) -> None:
    """Totals, drops by cause, memory and the busiest channels come out of one reading."""
    layer = make_layer(capacity=3)
    for n in range(3):
        layer.sync.send("jobs", {"n": n})
    with pytest.raises(ChannelFull):
        layer.sync.send("jobs", {"n": 3})
    layer.sync.send("mail", {})
    layer.sync.receive("mail")
    layer.sync.group_add("chat", "jobs")
    layer.sync.group_send("chat", {"to": "all"})  # jobs is full
    document = read("stats")
    totals = document["totals"]
    assert (totals["sent"], totals["received"], totals["pending"]) == (4, 1, 3)
    assert document["drops"] == {
        "channel_full": 1,
        "memory_full": 0,
        "group_member_full": 1,
        "expired": 0,
        "flushed": 0,
    }
    assert totals["oldest_age_s"] > 0
    assert document["channels"][0]["name"] == "jobs"
    assert document["channels"][0]["full"] == 1
    assert [memory["size_bytes"] for memory in document["memory"]] == [8 << 20, 4 << 20]
    assert document["groups"][0]["members"] == 1
    assert document["processes"][0]["pid"] == os.getpid()
    assert document["per_second"] is None
    assert not document["pending_log"]


def test_messages_to_groups_count_once_and_their_deliveries_for_each_member(
    make_layer: MakeLayer, read: Read, run: Run
) -> None:
    """Three sends to twenty members in two processes are three messages and sixty deliveries."""
    layer = make_layer()
    for n in range(20):
        layer.sync.group_add("chat", f"home{n % 2}!{n}")
    for _ in range(3):
        layer.sync.group_send("chat", {})
    totals = read("stats")["totals"]
    assert (totals["messages"], totals["deliveries"], totals["sent"]) == (3, 60, 6)
    layer.sync.group_add("chat", "ordinary")
    layer.sync.group_send("chat", {}, exclude=["home0!0"])
    layer.sync.send("ordinary", {})
    totals = read("stats")["totals"]
    assert (totals["messages"], totals["deliveries"], totals["sent"]) == (
        5,
        81,
        10,
    )  # who is excluded is no delivery
    assert re.search(r"messages sent +5\b", run("stats").out)
    for n in range(60):  # more homes than go into one transaction
        layer.sync.group_add("large", f"large{n}!a")
    layer.sync.group_send("large", {})
    totals = read("stats")["totals"]
    assert (totals["messages"], totals["deliveries"], totals["sent"]) == (6, 141, 70)


def test_what_is_counted_adds_up_with_the_layers_own_statistics(
    make_layer: MakeLayer, read: Read
) -> None:
    """The command and ``global_statistics`` read the same counters."""
    layer = make_layer()
    for n in range(50):
        layer.sync.send(f"c{n % 7}", {"n": n})
        layer.sync.send(f"home!{n % 3}", {"n": n})
    for n in range(7):
        layer.sync.receive(f"c{n}")
    totals = read("stats")["totals"]
    own = layer.sync.global_statistics()
    assert totals["sent"] == own["messages_count"] == 100
    assert totals["received"] == own["received_count"] == 7
    assert totals["pending"] == own["messages_pending"] == 93
    assert totals["channels"] == own["channels_count"] == 8


def test_watching_gives_rates(make_layer: MakeLayer, run: Run) -> None:
    """Every reading is one line of JSON; from the second on there are rates per second."""
    layer = make_layer(capacity=10)
    layer.sync.send("jobs", {})
    done = run("stats", "--json", "--watch", "0.05", "--count", "3")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == 3
    assert lines[0]["per_second"] is None
    assert lines[1]["per_second"]["sent"] == 0
    assert lines[2]["channels"][0]["sent_per_second"] == 0


def test_channels_are_sorted_and_filtered(make_layer: MakeLayer, read: Read) -> None:
    """Largest depth first, unless told otherwise; a glob chooses, a limit ends."""
    layer = make_layer()
    for name, depth in (("http.a", 1), ("http.b", 3), ("ws", 2)):
        for _ in range(depth):
            layer.sync.send(name, {})

    def names(*arguments: str) -> list[str]:
        return [channel["name"] for channel in read("channels", *arguments)["channels"]]

    assert names() == ["http.b", "ws", "http.a"]
    assert names("--filter", "http.*", "--limit", "1") == ["http.b"]
    assert names("--sort", "name") == ["http.a", "http.b", "ws"]
    assert names("--sort", "age")[0] == "http.a"


def test_leaves_are_told_below_their_home(make_layer: MakeLayer, read: Read) -> None:
    """A process-specific queue says how much waits for each full name."""
    layer = make_layer()
    for name in ("home!a", "home!a", "home!b"):
        layer.sync.send(name, {})
    (channel,) = read("channels")["channels"]
    assert (channel["name"], channel["depth"]) == ("home!", 3)
    leaves = {leaf["name"]: leaf["depth"] for leaf in channel["leaves"]}
    assert leaves == {"home!a": 2, "home!b": 1}


def test_groups_and_their_members(make_layer: MakeLayer, read: Read) -> None:
    """Groups by size; one group with its members and when they expire."""
    layer = make_layer()
    for member in ("one", "home!a", "home!b"):
        layer.sync.group_add("large", member)
    layer.sync.group_add("small", "one")
    groups = read("groups")["groups"]
    assert [(group["name"], group["members"]) for group in groups] == [("large", 3), ("small", 1)]
    assert {home["name"]: home["members"] for home in groups[0]["homes"]} == {"one": 1, "home!": 2}
    document = read("groups", "large", definition="members")
    assert {member["channel"] for member in document["members"]} == {"one", "home!a", "home!b"}
    assert all(86000 < member["expires_in_s"] <= 86400 for member in document["members"])
    assert not document["truncated"]
    assert read("groups", "nobody", definition="members")["members"] == []


def test_processes_say_what_they_wait_for(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read
) -> None:
    """A loop's slot, pid and channels; a process without a loop; one that was killed."""
    make_layer().sync.send("other", {})  # attached, and no loop
    child = start(RECEIVER)
    mine = child.line()
    child.wait_for_state("S")
    home = mine.partition("!")[0] + "!"
    by_pid = {process["pid"]: process for process in read("processes")["processes"]}
    assert by_pid[os.getpid()]["loops"] == []
    receiver = by_pid[child.pid]
    assert receiver["alive"] and receiver["attached"] and receiver["state"] == "S"
    assert sorted(receiver["loops"][0]["parked_on"]) == sorted([home, "work"])
    assert "asyncio" in receiver["command"]
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    by_pid = {process["pid"]: process for process in read("processes")["processes"]}
    assert by_pid[child.pid]["state"] == "T"
    child.kill()
    by_pid = {process["pid"]: process for process in read("processes")["processes"]}
    assert by_pid[child.pid]["alive"] is False and not by_pid[child.pid]["attached"]


def test_peek_does_not_take(make_layer: MakeLayer, read: Read) -> None:
    """What was looked at is still there, in order, with its bytes told in JSON."""
    layer = make_layer()
    messages = [{"n": n, "raw": b"\xff\x00", "nan": float("inf")} for n in range(5)]
    for message in messages:
        layer.sync.send("jobs", message)
    document = read("peek", "jobs", "--limit", "3")
    assert document["depth"] == 5 and document["searched"] == 3 and document["truncated"]
    first = document["messages"][0]
    assert first["message"] == {"n": 0, "raw": {"$bytes": "/wA="}, "nan": {"$float": "inf"}}
    assert 0 < first["expires_in_s"] <= 60 and first["age_s"] >= 0
    assert len(read("peek", "jobs", "--limit", "0")["messages"]) == 5
    assert [layer.sync.receive("jobs") for _ in range(5)] == messages
    assert read("peek", "jobs")["messages"] == []


def test_peek_sees_group_messages_and_full_names(make_layer: MakeLayer, read: Read) -> None:
    """A queue of a process shows each message's own channel, or its group."""
    layer = make_layer()
    layer.sync.group_add("chat", "home!a")
    layer.sync.send("home!b", {"to": "b"})
    layer.sync.group_send("chat", {"to": "all"})
    layer.sync.send("home!a", {"to": "a"})
    seen = read("peek", "home!")["messages"]
    assert [(one["channel"], one["group"]) for one in seen] == [
        ("home!b", None),
        ("home!", "chat"),
        ("home!a", None),
    ]
    assert [one["message"]["to"] for one in seen] == ["b", "all", "a"]
    (only,) = read("peek", "home!a")["messages"]
    assert only["message"] == {"to": "a"} and only["position"] == 3


def test_looking_changes_nothing(make_layer: MakeLayer, run: Run) -> None:
    """Not one byte of either segment is another one after every command that looks."""
    layer = make_layer()
    for n in range(30):
        layer.sync.send(f"c{n % 4}", {"n": n})
        layer.sync.group_add("chat", f"home!{n}")
    segments = (layer._site.messages.segment, layer._site.groups.segment)
    before = [segment.memory[:] for segment in segments]
    for command in ("stats", "channels", "groups", "processes", "check", "peek c0", "groups chat"):
        run(*command.split())
    assert [segment.memory[:] for segment in segments] == before


def test_colours_are_for_terminals(make_layer: MakeLayer, prefix: str) -> None:
    """There the same table is coloured, and fits the window; $NO_COLOR is heeded."""
    layer = make_layer()
    layer.sync.send("a.channel.with.a.name.that.is.rather.long", {})
    for environment, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        screen = Screen([*COMMAND, "stats", "-p", prefix], environment, columns=90, lines=60)
        try:
            assert screen.end() == 0
        finally:
            screen.close()
        assert (b"\x1b[32m" in screen.raw) == is_coloured  # green, a memory bar
        assert all(len(line) <= 90 for line in screen.text().splitlines())
        assert "a.channel.with.a" in screen.text() and "0%" in screen.text()


def test_tables_are_for_people(make_layer: MakeLayer, run: Run) -> None:
    """Without --json the same is printed as plain text, without colours where no terminal is."""
    layer = make_layer()
    layer.sync.send("jobs", {"hello": "world"})
    layer.sync.group_add("chat", "jobs")
    text = run("stats").out
    for word in ("jobs", "chat", "message waiting", "refused: channel full", "largest"):
        assert word in text
    assert "\x1b" not in text
    assert "hello" in run("peek", "jobs").out
    layer.sync.send("nasty", {"text": "\x1b[2J\x9b2J\u202e"})
    assert r"\u001b[2J\u009b2J\u202e" in run("peek", "nasty").out
    assert "no message waits" in run("peek", "empty").err


def test_peek_looks_at_some_whatever_the_time(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that loses the processor at once has still looked at a hundred messages."""
    layer = make_layer(capacity=1000)
    for n in range(150):
        layer.sync.send("jobs", {"n": n})
        layer.sync.group_add("chat", f"home!{n}")
    monkeypatch.setattr(peek, "HOLD_S", 0.0)
    with Inspector(layer.prefix) as inspector:
        assert peek.peek(inspector.messages, "jobs", 1000).searched == 100
        found = peek.members(inspector.groups, "chat", 1000)
    assert found is not None and len(found[0]) == 100 and not found[1]


@needs_mount
def test_memory_is_what_the_filesystem_has(start: Callable[..., Child]) -> None:
    """Where /dev/shm is full there is nothing left to grow by, whatever the segment's size."""
    child = start(
        """
import subprocess
layer = IPCChannelLayer(PREFIX, message_memory=100 << 20, group_memory=20 << 20)
layer.send("jobs", {})
room = os.statvfs("/dev/shm")
with open("/dev/shm/fill", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, (room.f_bavail - 8) * room.f_frsize)
command = [sys.executable, "-m", "asgi_ipc", "stats", "-p", PREFIX, "--json"]
print(subprocess.run(command, capture_output=True, text=True).stdout)
""",
        wrapper=ground(shm("size=4m")),
    )
    messages, groups = json.loads(child.end())["memory"]
    assert messages["growth_bytes"] == groups["growth_bytes"] == 8 * 4096
    assert 900_000 < messages["free_bytes"] < 2 << 20
    assert messages["largest_free_bytes"] < 2 << 20


def test_workers_of_multiprocessing_have_their_parents_command(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read
) -> None:
    """Their own, as uvicorn's workers have it, says nothing."""
    layer = make_layer()
    child = start(
        """
import subprocess
program = '''
import multiprocessing, sys, time
from asgi_ipc import IPCChannelLayer
def work(prefix, ready):
    layer = IPCChannelLayer(prefix, message_memory=8 << 20, group_memory=4 << 20)
    ready.send(1)
    time.sleep(600)
if __name__ == "__main__":
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1], theirs))
    worker.start()
    ours.recv()
    print(worker.pid, flush=True)
    sys.stdin.readline()
    worker.kill()
    worker.join()
'''
import tempfile
with tempfile.TemporaryDirectory() as directory:
    with open(f"{directory}/my_server.py", "w") as file:
        file.write(program)
    server = subprocess.Popen([sys.executable, f"{directory}/my_server.py", PREFIX],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    say(server.stdout.readline().strip())
    sys.stdin.readline()
    server.communicate("")
"""
    )
    pid = int(child.line())
    processes = {process["pid"]: process for process in read("processes")["processes"]}
    assert processes[pid]["command"].endswith(f"my_server.py {layer.prefix} (child)")
    child.tell()
    child.end()
