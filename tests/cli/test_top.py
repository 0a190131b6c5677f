"""``top`` in a real pseudo-terminal, beside a load: what is on the screen, what keys do."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._cli.terminal import keys_in

from .conftest import COMMAND, validate
from .screens import Screen
from .test_looking import RECEIVER

if TYPE_CHECKING:
    from ..conftest import Child
    from .conftest import Run

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]
Open = Callable[..., Screen]

LOAD = """
layer = IPCChannelLayer(PREFIX, capacity=50, **SIZES)
layer.group_add("crowd", "load.fast")
say("ready")
n = 0
while True:
    try:
        layer.send("load.fast", {"n": n})
        layer.send("load.stuck", {"n": n})
    except ChannelFull:
        layer.receive(["load.fast"])
    n += 1
    time.sleep(0.001)
"""


@pytest.fixture
def open_top(prefix: str) -> Iterator[Open]:
    screens: list[Screen] = []

    def open_one(*arguments: str, columns: int = 110, lines: int = 40) -> Screen:
        command = [*COMMAND, "top", "--interval", "0.2", *arguments]
        screens.append(Screen(command, {"ASGI_IPC_PREFIX": prefix}, columns, lines))
        return screens[-1]

    yield open_one
    for screen in screens:
        screen.close()


def names(text: str) -> list[str]:
    """Return the names of the channels that are shown."""
    lines = text.splitlines()
    at = next((n for n, line in enumerate(lines) if line.startswith("channels ")), len(lines))
    found = []
    for line in lines[at + 3 :]:
        if not line or line.startswith(("groups", "no groups", "processes")):
            break
        found.append(line.split()[0])
    return found or [""]


def is_given_back(screen: Screen) -> bool:
    """Whether settings, screen and cursor are as they were."""
    tail = screen.raw[screen.raw.rindex(b"\x1b[?1049l") :]
    return (
        screen.settings() == screen.before
        and b"\x1b[?1049h" not in tail
        and screen.raw.rindex(b"\x1b[?25h") > screen.raw.rindex(b"\x1b[?25l")
    )


def test_everything_is_on_the_screen_while_a_load_runs(
    make_layer: MakeLayer, start: Start, open_top: Open
) -> None:
    """Channels with depth and rate, groups, processes with loops, memory, drops by cause."""
    make_layer()
    load, receiver = start(LOAD), start(RECEIVER)
    load.expect("ready")
    receiver.line()
    screen = open_top()
    for pattern in (
        r"load\.fast +\d+ +[\d.]+/s",  # there are rates once there are two readings
        r"sent [\d,]+ [\d.,]+/s",
        r"channel full [1-9]\d*",
        r"load\.stuck +50 ",
        r"crowd +1 ",
        rf"(?m)^ *{load.pid} +alive +0 ",
        rf"(?m)^ *{receiver.pid} +alive +\d+ .*work",
        r"messages +8\.0 MiB +\d\.\d MiB",
        r"groups +4\.0 MiB +\d\.\d MiB",
    ):
        screen.until(re.compile(pattern))
    screen.type("q")
    assert screen.end() == 0
    assert is_given_back(screen)


def test_the_window_is_used_as_far_as_it_reaches(
    make_layer: MakeLayer, start: Start, open_top: Open
) -> None:
    """What channels and groups do not need, processes get; both segments are told apart."""
    layer = make_layer()
    children = [start(RECEIVER) for _ in range(6)]
    for child in children:
        child.line()
    layer.sync.send("jobs", {})
    screen = open_top(columns=120, lines=40)
    text = screen.until(
        lambda text: (
            "processes 1-7 of 7" in text
            and all(re.search(rf"(?m)^ *{child.pid} +alive +1 .*\S$", text) for child in children)
        )
    )
    assert re.search(r"(?m)^work .*\d+, \d+, \d+ and 3 more$", text), text
    screen.resize(80, 24)
    text = screen.until(
        lambda text: (
            "processes 1-7" not in text
            and "processes 1-" in text
            and all(re.search(rf"(?m)^{name} +\d.* \d+%$", text) for name in ("messages", "groups"))
        )
    )
    assert "jobs" in text and max(map(len, text.splitlines())) <= 80
    screen.type("q")
    assert screen.end() == 0


def test_a_channel_that_grows_unread_is_marked(
    make_layer: MakeLayer, start: Start, open_top: Open
) -> None:
    """At once where it is watched; in a single look when its first message has waited for long."""
    make_layer()
    start(
        """
layer = IPCChannelLayer(PREFIX, capacity=1_000_000, **SIZES)
while True:
    layer.send("http.disconnect", {})
    layer.send("read.by.ourselves", {})
    layer.receive(["read.by.ourselves"])
    time.sleep(0.01)
"""
    )
    screen = open_top()
    screen.until(re.compile(r"(?m)^http\.disconnect .*nobody$"))
    assert not re.search(r"(?m)^read\.by\.ourselves .*nobody$", screen.text())
    screen.type("?")
    screen.until("nobody: that is why it grows")
    screen.type("xq")
    assert screen.end() == 0


def test_keys_sort_filter_pause_and_leaf(make_layer: MakeLayer, open_top: Open) -> None:
    """Each does what the help says."""
    layer = make_layer(capacity=1000)
    for n in range(60):
        for _ in range(60 - n):
            layer.sync.send(f"c.{n:02d}", {})
    layer.sync.send("other", {})
    screen = open_top(lines=30)
    screen.until(lambda text: names(text)[:3] == ["c.00", "c.01", "c.02"])
    screen.type("n")
    screen.until("sort name")
    screen.type("d2")
    screen.until(lambda text: "sort depth" in text and "processes 1-" not in text)
    title = re.search(r"channels 1-(\d+) of 61", screen.text())
    assert title is not None
    page = int(title[1])
    screen.type("\x1b[6~")
    screen.until(f"channels {page + 1}-")
    screen.until(lambda text: names(text)[0] == f"c.{page:02d}")
    screen.type("\x1b[A")
    screen.until(f"channels {page}-")
    screen.type("/oth")
    screen.until("channels 1-1 of 1")
    screen.until(lambda text: "filter oth_" in text and names(text) == ["other"])
    screen.type("\r")
    screen.until("filter oth ")
    screen.type("\x1b")
    screen.until("of 61")
    screen.type(" ")
    screen.until("paused")
    layer.sync.send("late", {})
    screen.type("n")
    assert "of 61" in screen.until("sort name")
    screen.type(" ")
    screen.until("of 62")
    screen.type("?")
    screen.until("leaf through")
    screen.type("x-")
    screen.until("every 0.4 s")
    screen.type("q")
    assert screen.end() == 0


def test_it_fits_every_window(make_layer: MakeLayer, start: Start, open_top: Open) -> None:
    """A resized window is drawn anew at once, paused or not; a tiny one shows what it can."""
    layer = make_layer()
    for n in range(40):
        layer.sync.send(f"channel.{n}", {})
        layer.sync.group_add(f"group.{n}", "channel.1")
    screen = open_top(columns=120, lines=50)
    screen.until("groups 1-")
    screen.type(" ")
    screen.until("paused")
    screen.resize(60, 12)
    text = screen.until(lambda text: "paused" in text and "groups 1-" not in text)
    assert len(text.splitlines()) <= 12 and max(map(len, text.splitlines())) <= 60
    screen.resize(100, 30)
    screen.until("groups 1-")
    screen.type("q")
    assert screen.end() == 0


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_the_terminal_is_given_back_when_it_is_stopped(
    number: int, code: int, make_layer: MakeLayer, open_top: Open
) -> None:
    """A signal ends it as q does, but for the exit code."""
    make_layer()
    screen = open_top()
    screen.until("sent 0")
    assert screen.settings() != screen.before
    screen.process.send_signal(number)
    assert screen.end() == code
    assert is_given_back(screen)


def test_the_terminal_is_given_back_on_ctrl_c(make_layer: MakeLayer, open_top: Open) -> None:
    """Typed at the terminal."""
    make_layer()
    screen = open_top()
    screen.until("sent 0")
    screen.type("\x03")
    assert screen.end() == 130
    assert is_given_back(screen)


def test_ctrl_z_and_fg(make_layer: MakeLayer, prefix: str) -> None:
    """In a shell: stopped it gives the terminal back, in the foreground it takes it again."""
    layer = make_layer()
    screen = Screen(["bash", "--norc", "--noprofile", "-i"], {"PS1": "prompt> "})
    try:
        screen.until("prompt>")
        screen.type(f"{' '.join(COMMAND)} top -p {prefix} --interval 0.2\n")
        screen.until("sent 0")
        screen.type("\x1a")
        screen.until("Stopped")
        assert screen.raw.rindex(b"\x1b[?1049l") > screen.raw.rindex(b"\x1b[?1049h")
        layer.sync.send("jobs", {})
        screen.type("fg\n")
        screen.until("sent 1")
        assert screen.raw.rindex(b"\x1b[?1049l") < screen.raw.rindex(b"\x1b[?1049h")
        screen.type("q")
        screen.until(lambda _: screen.raw.endswith(b"prompt> "))
        screen.type("exit\n")
        assert screen.end() == 0
    finally:
        screen.close()


def test_a_stopped_holder_is_on_the_screen(
    make_layer: MakeLayer, stopped_holder: Callable[[str], Child], open_top: Open
) -> None:
    """Who it is, while keys still work; it is gone from the screen when it has let go."""
    make_layer()
    screen = open_top()
    screen.until("sent 0")
    holder = stopped_holder("messages")
    screen.until(f"kill -CONT {holder.pid}")
    screen.type("n")
    screen.until("sort name")
    holder.signal(signal.SIGCONT)
    holder.end()
    screen.until(lambda text: "kill -CONT" not in text)
    screen.type("q")
    assert screen.end() == 0


def test_a_site_that_is_made_anew_is_followed(make_layer: MakeLayer, open_top: Open) -> None:
    """Deleted segments are told, and the new ones are shown when there are some."""
    layer = make_layer()
    layer.sync.send("before", {})
    screen = open_top()
    screen.until("before")
    layer.unlink()
    screen.until("there is no segment")
    again = make_layer()
    again.sync.send("after", {})
    screen.until(lambda text: "after " in text and "there is no segment" not in text)
    screen.type("q")
    assert screen.end() == 0


def test_without_a_terminal_it_says_what_to_use(make_layer: MakeLayer, run: Run) -> None:
    """In a pipe there is ``stats --watch``."""
    make_layer()
    assert "stats --watch" in run("top", code=2).err


def test_in_json_it_is_stats(make_layer: MakeLayer, prefix: str) -> None:
    """One document a line, until it is stopped."""
    make_layer()
    command = [*COMMAND, "top", "--json", "--interval", "0.1", "-p", prefix]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(2):
        validate(json.loads(process.stdout.readline()), "stats")
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait() == 130
    process.stdout.close()


def test_keys_are_told_apart() -> None:
    """Named keys, characters, and sequences that mean nothing here."""
    assert list(keys_in("a\x1b[Aé\x1b[6~ \t\x1b[15~q\x1b")) == [
        "a", "up", "é", "page down", "space", "tab", "q", "escape"
    ]  # fmt: skip
