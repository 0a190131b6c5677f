"""``check`` finds damage without stopping anybody; ``repair`` does what the next one would."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._shm import layout as L

from .test_looking import RECEIVER

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

KILLED_IN_COMMIT = """
layer = IPCChannelLayer(PREFIX, **SIZES)
from asgi_ipc._shm import layout as L
store = layer.core._site.messages
segment = store.segment
layer.send("jobs", {"n": 1})
sent = store.records.known["jobs"][0] + L.CH_SENT
class Dying:
    # The words of the segment; the process dies right after the commit point of the send.
    def __init__(self, words): self.words = words
    def __getitem__(self, word): return self.words[word]
    def __setitem__(self, word, value):
        self.words[word] = value
        if word == L.LOG_N and sent in self.words[L.LOG : L.LOG + 2 * value : 2].tolist():
            say("committed")
            os.kill(os.getpid(), signal.SIGKILL)
segment.words = Dying(segment.words)
layer.send("jobs", {"n": 2})
"""


def test_a_sound_site_is_sound(make_layer: MakeLayer, read: Read, run: Run) -> None:
    """Code 0 and an empty list for each segment."""
    layer = make_layer()
    layer.sync.send("jobs", {})
    document = read("check")
    assert document["sound"]
    assert list(document["problems"].values()) == [[], []]
    assert run("check").out.count("sound") == 2


def test_damage_is_found_and_named(make_layer: MakeLayer, read: Read, run: Run) -> None:
    """Code 1 with what is wrong, in the list or already in the header."""
    layer = make_layer()
    layer.sync.send("jobs", {})
    words = layer._site.messages.segment.words
    record = layer._site.messages.records.known["jobs"][0]
    tail = words[record + L.CH_TAIL]
    words[record + L.CH_TAIL] = 0
    document = read("check", code=1)
    assert not document["sound"]
    assert "its tail" in document["problems"][f"/{layer.prefix}-messages"][0]
    words[record + L.CH_TAIL] = tail
    end, words[L.HEAP_END] = words[L.HEAP_END], 3
    assert "heap ends at word 3" in run("check", code=1).out
    words[L.HEAP_END] = end
    run("check")


def test_an_operation_cut_off_by_a_kill(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read
) -> None:
    """Those who look see it finished and leave it; ``repair`` finishes it."""
    layer = make_layer()
    layer.close_now()
    child = start(KILLED_IN_COMMIT)
    child.expect("committed")
    child.process.wait()
    for _ in range(2):
        document = read("stats")
        assert document["pending_log"]
        assert document["totals"]["pending"] == 2
        assert document["channels"][0]["depth"] == 2
    assert [one["message"]["n"] for one in read("peek", "jobs")["messages"]] == [1, 2]
    checked = read("check")
    assert checked["sound"] and checked["pending_log"] == [f"/{layer.prefix}-messages"]
    assert read("repair")["replayed"] == [f"/{layer.prefix}-messages"]
    assert not read("stats")["pending_log"]
    assert [layer.sync.receive("jobs", 0) for _ in range(3)] == [{"n": 1}, {"n": 2}, None]


def test_repair_frees_what_the_dead_left(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read
) -> None:
    """Slots of killed processes go, those of living ones stay; a second run finds nothing."""
    make_layer()
    dead, living = start(RECEIVER), start(RECEIVER)
    dead.line(), living.line()
    living.signal(signal.SIGSTOP)  # or it would free them itself
    living.wait_for_state("T")
    dead.kill()
    reaped = read("repair")["reaped"]
    assert [one["pid"] for one in reaped] == [dead.pid]
    assert read("repair")["reaped"] == []
    processes = {process["pid"] for process in read("processes")["processes"]}
    assert living.pid in processes and dead.pid not in processes


def test_repair_drops_what_has_expired(make_layer: MakeLayer, read: Read) -> None:
    """Nobody has to meet the messages; all free memory is in one piece again."""
    layer = make_layer()
    for n in range(200):
        layer.sync.send(f"c{n % 20}", {"n": n}, expiry=0.001)
    layer.sync.send("jobs", {}, expiry=1000)
    document = read("repair")
    totals = read("stats")["totals"]
    assert totals["pending"] == 1 and totals["expired"] == 200
    assert 0 < document["expired"] <= 200
    assert document["memory_merged"]
    assert not read("repair")["memory_merged"]
