"""Segments: missing, foreign, half made, damaged, of the wrong owner; and who uses them."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc._operator.doctor import examine
from asgi_ipc._shm import layout as L
from asgi_ipc.exceptions import SegmentError, SegmentPermission

from ..conftest import PATIENCE_S
from ..stepping import drive
from ..test_segment import write_word
from .grounds import (
    EXAMINE,
    SIZES,
    as_root,
    commands,
    cure,
    ground,
    heard,
    look,
    needs_mount,
    of,
    shm,
    trouble,
)

if TYPE_CHECKING:
    from ..conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

WAIT = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def wait():
    task = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    say("waits")
    say(await task)
asyncio.run(wait())
"""


def path_of(prefix: str, kind: str = "messages") -> str:
    return f"/dev/shm/{prefix}-{kind}"


def test_a_site_that_is_not_there_is_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """It has not started yet, or the prefix is another one: which there are is said."""
    make_layer()
    findings = look(f"{prefix}-mistyped")
    assert trouble(findings) == ["site-missing"]
    finding = of(findings, "site-missing")
    assert isinstance(finding.numbers["prefixes"], list)
    assert prefix in finding.numbers["prefixes"]
    assert "$ asgi-ipc sites" in finding.remedy


def test_a_site_at_rest_is_green(prefix: str, make_layer: MakeLayer) -> None:
    """Segments that nobody is attached to wait for the next start."""
    layer = make_layer()
    drive(layer.send("c", {}))
    layer.close_now()
    findings = look(prefix)
    assert trouble(findings) == []
    assert of(findings, "segment").numbers["size_bytes"] == 8 << 20
    assert of(findings, "segment").numbers["layout_version"] == L.LAYOUT_VERSION
    assert of(findings, "processes").what == "nobody is attached"


def test_who_is_attached_is_said(prefix: str, start: Start) -> None:
    """By process id and command."""
    children = [start(WAIT), start(WAIT)]
    for child in children:
        child.expect("waits")
    finding = of(look(prefix), "processes")
    assert finding.numbers["pids"] == sorted(child.pid for child in children)
    assert f"{children[0].pid} (" in finding.detail


@pytest.mark.parametrize("kind", ["messages", "groups"])
def test_one_of_two_segments_missing_is_a_warning(
    prefix: str, make_layer: MakeLayer, kind: str
) -> None:
    """They are made together, so somebody deleted it."""
    make_layer().close_now()
    os.unlink(path_of(prefix, kind))
    findings = look(prefix)
    assert trouble(findings) == ["segment-missing"]
    assert of(findings, "segment-missing").numbers["name"] == f"{prefix}-{kind}"


def test_something_foreign_in_its_place_is_an_error(prefix: str) -> None:
    """Neither a segment nor empty."""
    with open(path_of(prefix), "wb") as file:
        file.write(b"somebody else's " * 4096)
    finding = of(look(prefix), "segment-not-ours")
    assert finding.severity == "error"
    cure(finding)
    assert trouble(look(prefix)) == ["site-missing"]


def test_a_directory_in_its_place_is_an_error(prefix: str) -> None:
    """No file at all; nor does looking hang at a FIFO."""
    os.mkdir(path_of(prefix))
    os.mkfifo(path_of(prefix, "groups"))
    codes = [one.code for one in look(prefix) if one.severity == "error"]
    assert codes == ["segment-not-ours"] * 2


def test_what_the_original_left_is_recognised(prefix: str) -> None:
    """asgi_ipc 1.x kept pickles under the same names; the remedy removes all it left."""
    for name in ("-messages", "-groups"):
        with open(f"/dev/shm/{prefix}{name}", "wb") as file:
            file.write(pickle.dumps({}, 2).ljust(1 << 16, b"\0"))
    findings = look(prefix)
    assert trouble(findings) == ["segment-original"] * 2
    cure(of(findings, "segment-original"))
    assert not [name for name in os.listdir("/dev/shm") if prefix in name]


def test_a_creator_that_was_killed_leaves_a_warning(prefix: str, start: Start) -> None:
    """Half made; the next process makes it whole, as the remedy says."""
    creator = start(
        """
import asgi_ipc._shm.segment as module
module.Segment._map = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
AsyncIPCChannelLayer(PREFIX, **SIZES)
"""
    )
    assert creator.process.wait() == -signal.SIGKILL
    assert "segment-unfinished" in trouble(look(prefix))
    layer = IPCChannelLayer(prefix, **SIZES)
    assert trouble(look(prefix)) == []
    layer.unlink()


def test_another_layout_version_is_an_error(prefix: str, make_layer: MakeLayer) -> None:
    """Both versions are named; the remedy makes room for the new one."""
    make_layer().close_now()
    for kind in ("messages", "groups"):
        write_word(path_of(prefix, kind), L.VERSION_WORD, 1999)
    finding = of(look(prefix), "segment-layout")
    assert finding.severity == "error"
    assert "1999" in finding.detail
    assert str(L.LAYOUT_VERSION) in finding.detail
    cure(finding)
    assert trouble(look(prefix)) == ["site-missing"]


def _truncate(path: str) -> None:
    os.truncate(path, 1 << 20)


def _break_heap(path: str) -> None:
    write_word(path, L.HEAP_END, 3)


def _break_log(path: str) -> None:
    write_word(path, L.LOG_N, 5000)


def _break_ready(path: str) -> None:
    write_word(path, L.READY_WORD, 4711)


def _break_kind(path: str) -> None:
    write_word(path, L.KIND_WORD, L.KIND_GROUPS)


@pytest.mark.parametrize("damage", [_truncate, _break_heap, _break_log, _break_ready, _break_kind])
def test_a_damaged_header_is_an_error(
    prefix: str, make_layer: MakeLayer, damage: Callable[[str], None]
) -> None:
    """A header that contradicts itself is said to, and nothing more is read."""
    make_layer().close_now()
    damage(path_of(prefix))
    finding = of(look(prefix), "segment-damaged")
    assert finding.severity == "error"
    cure(finding)
    assert trouble(look(prefix)) == ["site-missing"]


def test_damage_inside_is_an_error(prefix: str, make_layer: MakeLayer) -> None:
    """A chain of the table that leads nowhere is met, and said."""
    layer = make_layer()
    drive(layer.send("c", {}))
    words = layer._site.messages.segment.words
    bucket = next(word for word in range(L.BUCKETS, L.heap_start(8 << 20)) if words[word])
    layer.close_now()
    write_word(path_of(prefix), bucket, 3)
    finding = of(look(prefix), "segment-damaged")
    assert finding.severity == "error"
    assert "asgi-ipc check" in finding.remedy
    layer.unlink()


def test_a_wider_mode_is_an_error(prefix: str, make_layer: MakeLayer) -> None:
    """Others could read it, and processes that start refuse it; chmod cures both."""
    make_layer().close_now()
    os.chmod(path_of(prefix), 0o666)
    with pytest.raises(SegmentPermission):
        make_layer()
    finding = of(look(prefix), "segment-mode")
    assert finding.severity == "error"
    assert "0o666" in finding.detail
    cure(finding)
    assert trouble(look(prefix)) == []


def test_a_narrower_mode_is_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """One process was started without mode=0o660: the others' users stay out."""
    layer = make_layer()
    layer.close_now()
    findings = look(prefix, mode=0o660)
    assert trouble(findings) == ["segment-mode"] * 2
    for finding in findings:
        if finding.code == "segment-mode":
            cure(finding)
    assert trouble(look(prefix, mode=0o660)) == []
    layer.unlink()


def test_what_nobody_asked_for_is_not_compared(prefix: str, make_layer: MakeLayer) -> None:
    """A site of other sizes and another mode than the defaults is in order."""
    make_layer(mode=0o660).close_now()
    findings = examine(prefix, watch=PATIENCE_S)
    assert trouble(findings) == []
    assert of(findings, "segment").numbers["mode"] == 0o660


def test_segments_open_to_everybody_are_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """Unless that is what was asked for; chmod cures it."""
    make_layer(mode=0o666).close_now()
    assert trouble(look(prefix, mode=0o666)) == []
    findings = look(prefix)
    assert trouble(findings) == ["segment-mode"] * 2
    for finding in findings[:2]:
        cure(finding)
    assert trouble(look(prefix)) == []


def test_nothing_that_is_alive_is_to_be_removed(
    prefix: str, make_layer: MakeLayer, start: Start
) -> None:
    """The error stands first, and no remedy has the command while somebody is attached."""
    make_layer().close_now()
    child = start(WAIT)
    child.expect("waits")
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    os.chmod(path_of(prefix), 0o666)
    findings = look(prefix, message_memory=16 << 20)
    assert [one.severity for one in findings] == sorted(
        (one.severity for one in findings), key=["error", "warning", "ok"].index
    )
    assert {"segment-mode", "segment-size", "process-stopped"} <= set(trouble(findings))
    commands_ = [command for one in findings for command in commands(one)]
    assert not [command for command in commands_ if "rm " in command or "unlink" in command]
    assert f"asgi-ipc processes --prefix {prefix}" in commands_
    os.chmod(path_of(prefix), 0o600)
    child.signal(signal.SIGCONT)


def test_another_size_is_a_warning(prefix: str, make_layer: MakeLayer) -> None:
    """The segment keeps the size it was made with, whatever the settings say."""
    make_layer().close_now()
    finding = of(look(prefix, message_memory=16 << 20), "segment-size")
    assert finding.severity == "warning"
    assert finding.numbers["size_bytes"] == 8 << 20
    assert finding.numbers["asked_bytes"] == 16 << 20


@as_root
def test_another_users_segment_is_an_error(prefix: str, make_layer: MakeLayer) -> None:
    """A command of the site run as root: the site's user cannot use what it made."""
    make_layer().close_now()
    finding = of(look(prefix, user=12345), "segment-owner")
    assert finding.severity == "error"
    assert "user 0" in finding.detail
    assert "user 12345" in finding.detail
    cure(finding)
    assert trouble(look(prefix, user=12345)) == ["site-missing"]


@as_root
def test_who_may_not_look_is_told_so(prefix: str, make_layer: MakeLayer, start: Start) -> None:
    """As another user the segments cannot be read, which is said and not raised."""
    make_layer().close_now()
    child = start(
        EXAMINE
        + """
show()  # imports what it needs while it may
os.setgroups([]); os.setgid(23456); os.setuid(23456)
show()
"""
    )
    assert trouble(heard(child)) == []
    findings = heard(child)
    child.end()
    finding = of(findings, "segment-unreadable")
    assert finding.severity == "error"
    assert "23456" in finding.detail
    assert isinstance(of(findings, "processes").numbers["hidden"], int)


def test_root_examines_a_site_as_its_user(prefix: str, start: Start) -> None:
    """Without a user given, root takes the one whose processes are attached."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    child = start("os.setgroups([]); os.setgid(23456); os.setuid(23456)" + WAIT)
    child.expect("waits")
    assert trouble(look(prefix)) == []


# -- who uses them -----------------------------------------------------------------------


def test_a_stopped_process_is_a_warning(prefix: str, start: Start) -> None:
    """SIGSTOP, a debugger: what it receives for waits. SIGCONT, as the remedy says, cures it."""
    child = start(WAIT)
    child.expect("waits")
    child.wait_for_state("S")
    child.signal(signal.SIGSTOP)
    child.wait_for_state("T")
    finding = of(look(prefix), "process-stopped")
    assert finding.severity == "warning"
    assert finding.numbers["pid"] == child.pid
    cure(finding, only="CONT")
    child.wait_for_state("S")
    assert trouble(look(prefix)) == []


def test_a_segment_deleted_underneath_is_an_error(prefix: str, start: Start) -> None:
    """The process that still maps it is named; once it has followed all is well."""
    child = start(
        """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
say("attached")
sys.stdin.readline()
layer._site.watch_at_ns = 0  # a second has passed
asyncio.run(layer.send("c", {}))
say("followed")
sys.stdin.readline()
"""
    )
    child.expect("attached")
    for kind in ("messages", "groups"):
        os.unlink(path_of(prefix, kind))
    finding = of(look(prefix), "segment-deleted")
    assert finding.severity == "error"
    assert finding.numbers["pid"] == child.pid
    assert finding.numbers["names"] == [f"{prefix}-groups", f"{prefix}-messages"]
    newcomer = IPCChannelLayer(prefix, **SIZES)
    assert "segment-deleted" in trouble(look(prefix))  # now the site is split
    child.tell()
    child.expect("followed")
    assert trouble(look(prefix)) == []
    child.tell()
    child.end()
    newcomer.close()


@needs_mount
def test_a_process_with_its_own_shared_memory_is_a_warning(prefix: str, start: Start) -> None:
    """TemporaryFileSystem=/dev/shm and the like: nothing passes between the two."""
    hidden = start(WAIT, wrapper=ground(shm("size=64m")))
    hidden.expect("waits")
    child = start(WAIT)
    child.expect("waits")
    findings = look(prefix)
    assert trouble(findings) == ["segment-elsewhere"]
    assert of(findings, "segment-elsewhere").numbers["pid"] == hidden.pid


@needs_mount
def test_other_sites_leftovers_are_a_line(start: Start) -> None:
    """All is well here; those that somebody uses are not among them."""
    child = start(
        EXAMINE
        + """
import subprocess
AsyncIPCChannelLayer("old-site", **SIZES).close_now()
with open("/dev/shm/foreign-messages", "w") as file:
    file.write("not ours at all")
used = subprocess.Popen([sys.executable, "-c", '''
import sys
from asgi_ipc import AsyncIPCChannelLayer
layer = AsyncIPCChannelLayer("busy-site", message_memory=1 << 20, group_memory=1 << 20)
print("attached", flush=True)
sys.stdin.readline()
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
used.stdout.readline()
from asgi_ipc._operator.doctor import sites
say(json.dumps([one[:3] + (one.state,) for one in sites()]))
say(used.pid)
show()
used.communicate(b"")
""",
        wrapper=ground(shm("size=64m")),
    )
    found = json.loads(child.line())
    pid = int(child.line())
    assert found == [["busy-site", 0, [pid], "alive"], ["old-site", 0, [], "stale"]]
    finding = of(heard(child), "stale-segments")
    assert finding.severity == "ok"
    assert finding.remedy == ""
    assert isinstance(finding.numbers["prefixes"], dict)
    assert list(finding.numbers["prefixes"]) == ["old-site"]
    child.end()


def test_an_unusable_segment_is_unusable_for_a_layer_too(
    prefix: str, make_layer: MakeLayer
) -> None:
    """What the doctor calls an error is one to the layer as well."""
    make_layer().close_now()
    write_word(path_of(prefix), L.HEAP_END, 3)
    assert "segment-damaged" in trouble(look(prefix))
    with pytest.raises(SegmentError):
        make_layer()
    os.unlink(path_of(prefix))
