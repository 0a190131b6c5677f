"""``send``, ``receive`` and ``group-send``: a script's way in and out of a site."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._cli.messages import from_json, to_json
from asgi_ipc._store.codec import PLAIN
from asgi_ipc.exceptions import InvalidMessage

from ..conftest import PATIENCE_S
from .conftest import COMMAND

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

UNUSUAL = {
    "bytes": b"\x00\xff",
    "nan": float("-inf"),
    "list": [1, None, True, {"deep": b""}],
    "numbers": {1: "one", 2: b"two"},
    "mark": {"$bytes": "text"},
    "text": "ünïcode",
    "when": msgpack.Timestamp(1_700_000_000, 5),
    "other": [msgpack.ExtType(5, b"\x00")],
}


def nested(levels: int) -> dict[str, Any]:
    """A dict in a dict, and so on."""
    message: dict[str, Any] = {}
    for _ in range(levels - 1):
        message = {"a": message}
    return message


def deepest() -> int:
    """How many levels of dicts this msgpack packs."""
    levels = 256
    try:
        while True:
            PLAIN.encode(nested(levels + 1))
            levels += 1
    except TypeError:
        return levels


@pytest.mark.parametrize("message", [{}, {"a": 1}, UNUSUAL, {"$float": 1}, {(1, 2): "pair"}])
def test_json_of_a_message_means_the_same_again(message: dict[Any, Any]) -> None:
    """Whatever a message may hold survives JSON, marks of its own included."""
    assert from_json(json.dumps(to_json(message), allow_nan=False)) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        '{"$timestamp": [1]}',
        '{"a": {"$ext": [200, ""]}}',
        "[" * 99999,
        "[]",
        '"text"',
        '{"a": {"$bytes": "*"}}',
        '{"$float": "x"}',
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    """The error says that it is the JSON which is wrong."""
    with pytest.raises(InvalidMessage, match="JSON"):
        from_json(text)


def test_what_can_be_sent_can_be_shown_and_taken(make_layer: MakeLayer, run: Run) -> None:
    """Nothing is taken and then lost for want of a way to print it, however deep or unusual."""
    layer = make_layer()
    messages: list[dict[Any, Any]] = [
        UNUSUAL,
        nested(505),
        nested(deepest()),
        {(1, (2,)): "\ud800"},
    ]
    for message in messages:
        layer.sync.send("jobs", message)
    assert run("peek", "jobs", "--json").out.count('"position"') == len(messages)
    assert '"$timestamp": [1700000000, 5]' in run("peek", "jobs").out
    for message in messages:
        taken = from_json(run("receive", "jobs", "--timeout", "0").out)
        assert PLAIN.encode(taken) == PLAIN.encode(message)  # to compare such depths goes too deep


def test_sent_messages_arrive(make_layer: MakeLayer, run: Run, read: Read) -> None:
    """From the argument, or from standard input."""
    layer = make_layer()
    run("send", "jobs", '{"n": 1, "raw": {"$bytes": "aGk="}}')
    assert layer.sync.receive("jobs", 0) == {"n": 1, "raw": b"hi"}
    run("send", "jobs", "-", stdin=json.dumps(to_json(UNUSUAL)))
    assert layer.sync.receive("jobs", 0) == UNUSUAL
    assert read("send", "home!x", "{}")["channel"] == "home!x"
    assert layer.sync.receive("home!x", 0) == {}


def test_a_full_channel_is_an_exit_code(make_layer: MakeLayer, run: Run, read: Read) -> None:
    """Code 7 with depth and capacity; nothing was sent."""
    layer = make_layer()
    run("send", "jobs", "{}", "--capacity", "1")
    error = read("send", "jobs", "{}", "--capacity", "1", code=7)["error"]
    assert error["code"] == "full" and "1 of 1" in error["message"]
    assert layer.sync.global_statistics()["messages_pending"] == 1


def test_receive_takes_and_prints(make_layer: MakeLayer, run: Run, read: Read) -> None:
    """One JSON object a line, with the channel in --json; code 6 when nothing came in time."""
    layer = make_layer()
    layer.sync.send("home!x", UNUSUAL)
    layer.sync.send("jobs", {"n": 1})
    layer.sync.send("jobs", {"n": 2})
    document = read("receive", "home!")
    assert document["channel"] == "home!x"
    assert from_json(json.dumps(document["message"])) == UNUSUAL
    assert run("receive", "jobs", "--count", "2").out == '{"n": 1}\n{"n": 2}\n'
    assert read("receive", "jobs", "--timeout", "0", code=6)["error"]["code"] == "nothing"
    assert "within 0.01 s" in run("receive", "jobs", "--timeout", "0.01", code=6).err


def test_receive_waits_until_one_comes(
    make_layer: MakeLayer, start: Callable[..., Child], prefix: str
) -> None:
    """It sleeps until the message is there; stopped by a signal, it gives its slot back."""
    layer = make_layer()
    code = """
import runpy
sys.argv = ["asgi-ipc", "receive", "-p", PREFIX, *sys.argv[2:]]
runpy.run_module("asgi_ipc", run_name="__main__")
"""
    waiting = start(code, "jobs")
    while not _slots(layer):
        pass
    waiting.wait_for_state("S")
    layer.sync.send("jobs", {"n": 1})
    assert waiting.line() == '{"n": 1}'
    waiting.end()
    for number, ends in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stopped = start(code, "jobs")
        while not _slots(layer):
            pass
        stopped.wait_for_state("S")
        stopped.signal(number)
        assert stopped.process.wait(30) == ends
        assert not _slots(layer)


def _slots(layer: AsyncIPCChannelLayer) -> list[int]:
    from asgi_ipc._operator.inspect import Inspector

    with Inspector(layer.prefix, patience=PATIENCE_S) as inspector:
        return [loop.slot for loop in inspector.read().loops]


def test_group_send_reaches_members(make_layer: MakeLayer, run: Run, read: Read) -> None:
    """Every member gets it, those that are full are counted as skipped."""
    layer = make_layer()
    for member in ("one", "home!a", "home!b", "full"):
        layer.sync.group_add("chat", member)
    layer.sync.send("full", {})
    document = read("group-send", "chat", '{"hello": 1}', "--capacity", "1")
    assert (document["members"], document["skipped"]) == (4, 1)
    for member in ("one", "home!a", "home!b"):
        assert layer.sync.receive(member, 0) == {"hello": 1}


def test_a_pipe_that_is_closed_early_is_no_error(make_layer: MakeLayer, prefix: str) -> None:
    """``asgi-ipc stats | head -1`` ends quietly."""
    import subprocess

    layer = make_layer()
    for n in range(500):
        layer.sync.send(f"c.{n}", {})
    shell = f"{' '.join(COMMAND)} channels -p {prefix} | head -1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_what_cannot_be_written_is_not_lost(make_layer: MakeLayer, prefix: str) -> None:
    """A full disk: the message is told on standard error. A closed output: nothing is taken."""
    layer = make_layer()
    layer.sync.send("jobs", {"n": 1})
    words = " ".join([*COMMAND, "receive", "jobs", "-p", prefix, "--timeout", "0"])
    done = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, text=True)
    assert done.returncode == 2 and "closed" in done.stderr
    done = subprocess.run(["sh", "-c", f"{words} > /dev/full"], capture_output=True, text=True)
    assert done.returncode == 1 and 'not written: {"n": 1}' in done.stderr
    assert layer.sync.receive("jobs", 0) is None
