"""``listen``: hears what goes by, and takes it from nobody."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer

from .conftest import COMMAND, validate

if TYPE_CHECKING:
    from .conftest import Run

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Listen = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def listen(prefix: str) -> Iterator[Listen]:
    """Start a listener, and return when it listens."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "listen", "-p", prefix, *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def documents(process: subprocess.Popen[str]) -> list[Any]:
    """Return what a listener has printed until its end."""
    found = [json.loads(line) for line in process.communicate(timeout=30)[0].splitlines()]
    for one in found:
        validate(one, "listen")
    return found


def test_a_group_is_heard_like_by_a_member(make_layer: MakeLayer, listen: Listen) -> None:
    """All of it, beside the others, from several groups; it leaves them at the end."""
    layer = make_layer()
    layer.sync.group_add("chat", "home!a")
    process = listen("--group", "chat", "-g", "staff", "--count", "3", "--json")
    assert layer.sync.group_count("chat") == 2
    for n in range(2):
        layer.sync.group_send("chat", {"n": n, "raw": b"hi"})
    layer.sync.group_send("staff", {"n": 2})
    heard = documents(process)
    assert process.returncode == 0
    by_group = [(one["group"], one["channel"], one["message"]["n"]) for one in heard]
    assert sorted(by_group) == [("chat", None, 0), ("chat", None, 1), ("staff", None, 2)]
    assert heard[0]["message"].get("raw") in ({"$bytes": "aGk="}, None)
    assert layer.sync.group_channels("chat") == ["home!a"]
    assert layer.sync.group_count("staff") == 0
    first, second = (layer.sync.receive("home!a", 0) for _ in range(2))
    assert first == {"n": 0, "raw": b"hi"} and second == {"n": 1, "raw": b"hi"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_listener_that_is_stopped_leaves_its_group(
    number: int, code: int, make_layer: MakeLayer, listen: Listen
) -> None:
    """Ctrl-C ends it in the ordinary case."""
    layer = make_layer()
    process = listen("--group", "chat")
    layer.sync.group_send("chat", {"text": "hello"})
    assert process.stdout is not None
    assert process.stdout.readline().endswith('  chat  {"text": "hello"}\n')
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert layer.sync.group_count("chat") == 0


def test_a_channel_is_seen_and_nothing_is_taken(make_layer: MakeLayer, listen: Listen) -> None:
    """What waited before is old; what comes is printed and stays, process-specific names too."""
    layer = make_layer(capacity=1000)
    layer.sync.send("jobs", {"old": True})
    layer.sync.send("home!a", {"old": True})
    process = listen("jobs", "home!b", "late", "--json", "--count", "203")
    for n in range(200):
        layer.sync.send("jobs", {"n": n})
    layer.sync.send("home!a", {"n": "not this"})
    layer.sync.send("home!b", {"n": "b"})
    layer.sync.send("late", {"n": "late"})
    layer.sync.group_add("chat", "jobs")
    layer.sync.group_send("chat", {"n": "group"})
    heard = documents(process)
    assert process.returncode == 0 and not any("missed" in one for one in heard)
    of_jobs = [one["message"]["n"] for one in heard if one["channel"] == "jobs"]
    assert of_jobs == [*range(200), "group"]
    assert [one["message"]["n"] for one in heard if one["channel"] == "home!b"] == ["b"]
    assert [one["message"]["n"] for one in heard if one["channel"] == "late"] == ["late"]
    assert layer.sync.channel_statistics("jobs")["messages_pending"] == 202
    assert layer.sync.global_statistics()["received_count"] == 0


def test_what_was_taken_at_once_is_counted(make_layer: MakeLayer, listen: Listen) -> None:
    """Seen or missed, every message is accounted for."""
    layer = make_layer()
    process = listen("jobs", "--json", "--count", "1")
    for n in range(100):
        layer.sync.send("jobs", {"n": n})
        layer.sync.receive("jobs", 0)
    layer.sync.send("jobs", {"n": "last"})
    heard = documents(process)
    seen = [one["message"]["n"] for one in heard if "message" in one]
    missed = sum(one.get("missed", 0) for one in heard)
    assert len(seen) == 1
    assert missed == 100 if seen == ["last"] else missed <= 100


def test_it_says_when_nothing_was_sent(make_layer: MakeLayer, run: Run) -> None:
    """Code 6; 2 without anything to listen to; 3 without a site."""
    make_layer()
    for arguments in (["jobs"], ["--group", "chat"], ["jobs", "-g", "chat"]):
        done = run("listen", *arguments, "--for", "0.05", "--json", code=6)
        assert done.document("error")["error"]["code"] == "nothing"
    run("listen", code=2)
    run("listen", "a b", code=2)
    run("listen", "jobs", "-p", "no-such", code=3)


def test_a_flush_and_a_new_site_are_followed(make_layer: MakeLayer, listen: Listen) -> None:
    """Records made anew are counted from their beginning."""
    layer = make_layer()
    layer.sync.send("jobs", {"n": 0})
    process = listen("jobs", "--count", "2", "--json")
    layer.sync.flush()
    layer.sync.send("jobs", {"n": 1})
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["message"] == {"n": 1}
    layer.unlink()
    again = make_layer()
    again.sync.send("jobs", {"n": 2})
    (one,) = documents(process)
    assert one["message"] == {"n": 2}
