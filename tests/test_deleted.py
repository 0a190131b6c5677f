"""Somebody deletes a running site's segments or sockets: it says so, and goes on or fails loudly.

A sender looks once a second. A loop that waits is told at once, or looks every five where it
cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer
from asgi_ipc.exceptions import LayerClosed, SegmentMismatch

from .stepping import drive

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
MakeSync = Callable[..., IPCChannelLayer]
Start = Callable[..., "Child"]


def delete(prefix: str, *kinds: str) -> None:
    for kind in kinds or ("messages", "groups"):
        os.unlink(f"/dev/shm/{prefix}-{kind}")


def put_something_foreign(prefix: str) -> str:
    path = f"/dev/shm/{prefix}-messages"
    with open(f"{path}.new", "wb") as file:
        file.write(b"somebody else's " * 4096)
    os.chmod(file.name, 0o600)
    os.replace(file.name, path)  # in one step: whoever waits makes what is missing at once
    return path


def a_second_passes(*layers: AsyncIPCChannelLayer) -> None:
    for layer in layers:
        layer._site.watch_at_ns = 0


RECEIVERS = {
    "receive": "say(asyncio.run(ready(layer.receive('receive')))['n'])",
    "receive_async": "say(asyncio.run(ready(layer.receive_async(['receive_async'])))[1]['n'])",
    "specific": "say(asyncio.run(ready(layer.receive('specific.x!y')))['n'])",
    "twin": "say('ready'); say(layer.sync.receive('twin')['n'])",
    "blocking": """
sync = IPCChannelLayer(PREFIX, **SIZES, block_timeout=1.0)
say("ready")
message = None
while message is None:
    message = sync.receive(["blocking"], block=True)[1]
say(message["n"])
""",
    "short waits": """
async def wait():
    say("ready")
    while True:
        try:
            return await asyncio.wait_for(layer.receive("short"), 0.1)
        except TimeoutError:
            pass
say(asyncio.run(wait())["n"])
""",
    "channels": """
from asgi_ipc.channels import IPCChannelLayer as Channels4
layer = Channels4(PREFIX, **SIZES)
say(asyncio.run(ready(layer.receive("channels")))["n"])
""",
}
SENT_TO = {"specific": "specific.x!y", "short waits": "short"}

READY = """
import logging
logging.disable()
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def ready(receiving):
    task = asyncio.ensure_future(receiving)
    await asyncio.sleep(0)
    say("ready")
    return await task
"""

HOW = {
    "told": """
import asgi_ipc._wake.port
asgi_ipc._wake.port.SAFETY_S = 3600.0
""",
    "looking": """
import asgi_ipc._wake.port, asgi_ipc._wake.site
asgi_ipc._wake.port.SAFETY_S = 0.2
asgi_ipc._wake.site.open_inotify = lambda watches: None  # as where the kernel refuses it
""",
}


def test_every_way_to_wait_follows(start: Start, prefix: str) -> None:
    """Seven processes wait, each in its way; all find what is sent in the new segment."""
    children = {name: start(READY + code) for name, code in RECEIVERS.items()}
    for child in children.values():
        child.expect("ready")
    delete(prefix)
    newcomer = IPCChannelLayer(prefix, message_memory=8 << 20, group_memory=4 << 20)
    for number, name in enumerate(children):
        newcomer.send(SENT_TO.get(name, name), {"n": number})
    for number, child in enumerate(children.values()):
        child.expect(str(number))
        child.end()
    newcomer.close()


def test_who_asks_without_waiting_follows(make_sync: MakeSync, prefix: str) -> None:
    """A poller neither sends nor waits, and looks all the same."""
    poller, other = make_sync(), make_sync()
    assert poller.receive(["c"]) == (None, None)
    delete(prefix)
    a_second_passes(other.core)
    other.send("c", {"n": 1})
    a_second_passes(poller.core)
    assert poller.receive(["c"]) == ("c", {"n": 1})


SENDERS: dict[str, Callable[[AsyncIPCChannelLayer], Any]] = {
    "send": lambda layer: drive(layer.send("c", {"n": 1})),
    "send_many": lambda layer: drive(layer.send_many([("c", {"n": 1})])),
    "twin": lambda layer: layer.sync.send("c", {"n": 1}),
}


@pytest.mark.parametrize("how", SENDERS)
def test_every_way_to_send_follows(
    make_layer: MakeLayer, prefix: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a second, with one error in the log; and what was queued is gone."""
    layer = make_layer()
    drive(layer.send("c", {"n": 0}))
    delete(prefix)
    newcomer = make_layer()
    a_second_passes(layer)
    with caplog.at_level(logging.ERROR, "asgi_ipc"):
        SENDERS[how](layer)
    assert caplog.text.count("deleted underneath") == 1
    assert drive(newcomer.receive_async(["c"], block=False)) == ("c", {"n": 1})
    assert drive(newcomer.receive_async(["c"], block=False)) == (None, None)


def test_groups_follow_and_their_members_are_gone(make_layer: MakeLayer, prefix: str) -> None:
    """A group is empty until its members are added again, by whichever process."""
    layer = make_layer()
    drive(layer.group_add("g", "c"))
    delete(prefix)
    newcomer = make_layer()
    a_second_passes(layer)
    assert drive(layer.group_channels("g")) == []
    drive(layer.group_send("g", {"n": 1}))
    drive(layer.group_add("g", "c"))
    drive(newcomer.group_send("g", {"n": 2}))
    assert drive(layer.receive_async(["c"], block=False)) == ("c", {"n": 2})


def test_adding_to_a_group_follows(make_layer: MakeLayer, prefix: str) -> None:
    """A process that does nothing else meets the others in the new segment, too."""
    layer = make_layer()
    delete(prefix)
    newcomer = make_layer()
    a_second_passes(layer)
    drive(layer.group_add("g", "c"))
    assert drive(newcomer.group_channels("g")) == ["c"]


@pytest.mark.parametrize(("deleted", "kept"), [("messages", "groups"), ("groups", "messages")])
def test_what_was_not_deleted_is_kept(
    make_layer: MakeLayer, prefix: str, deleted: str, kept: str
) -> None:
    """One segment of the two: only that one starts anew."""
    layer = make_layer()
    drive(layer.send("c", {"n": 1}))
    drive(layer.group_add("g", "c"))
    delete(prefix, deleted)
    a_second_passes(layer)
    members = drive(layer.group_channels("g"))
    message = drive(layer.receive_async(["c"], block=False))
    assert members == (["c"] if kept == "groups" else [])
    assert message == (("c", {"n": 1}) if kept == "messages" else (None, None))


def test_taking_a_site_down_takes_it_from_the_others(make_layer: MakeLayer) -> None:
    """``unlink`` in one process is a deletion for those that run: they start anew."""
    layer, other = make_layer(), make_layer()
    drive(layer.send("c", {"n": 1}))
    other.unlink()
    a_second_passes(layer)
    drive(layer.send("c", {"n": 2}))
    assert drive(layer.receive_async(["c"], block=False)) == ("c", {"n": 2})


def test_what_cannot_be_attached_to_is_an_error_each_time(
    make_layer: MakeLayer, prefix: str
) -> None:
    """Something foreign came in its place: every operation says so until it is gone."""
    layer = make_layer()
    delete(prefix)
    path = put_something_foreign(prefix)
    a_second_passes(layer)
    for _ in range(3):
        with pytest.raises(SegmentMismatch):
            drive(layer.send("c", {}))
        with pytest.raises(SegmentMismatch):
            drive(layer.receive_async(["c"], block=False))
        with pytest.raises(SegmentMismatch):
            drive(layer.group_channels("g"))
    os.unlink(path)
    drive(layer.send("c", {"n": 1}))
    assert drive(layer.receive_async(["c"], block=False)) == ("c", {"n": 1})


@pytest.mark.parametrize("how", HOW)
def test_a_waiting_receive_gets_that_error_too(start: Start, prefix: str, how: str) -> None:
    """It neither hangs nor spins: what it waited on is gone, and nothing can take its place."""
    child = start(
        READY
        + HOW[how]
        + """
from asgi_ipc.exceptions import SegmentError
try:
    asyncio.run(ready(layer.receive("c")))
except SegmentError as exc:
    say(type(exc).__name__)
"""
    )
    child.expect("ready")
    put_something_foreign(prefix)
    child.expect("SegmentMismatch")
    child.end()


@pytest.mark.parametrize("how", HOW)
def test_deleted_sockets_are_made_anew(
    start: Start, prefix: str, make_layer: MakeLayer, how: str
) -> None:
    """A loop nobody can wake finds out, and is rung again from then on."""
    child = start(
        READY
        + HOW[how]
        + """
async def serve():
    first = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    say("ready")
    say((await first)["n"])
    site = layer._site
    second = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    say(len(os.listdir(f"/dev/shm/{PREFIX}-bells")), "doors")
    say((await second)["n"])
asyncio.run(serve())
"""
    )
    child.expect("ready")
    shutil.rmtree(f"/dev/shm/{prefix}-bells")
    layer = make_layer()
    layer.sync.send("c", {"n": 1})
    child.expect("1")
    child.expect("2 doors")
    layer.sync.send("c", {"n": 2})
    child.expect("2")
    child.end()


# -- a layer that is closed --------------------------------------------------------------


async def test_closing_ends_every_wait_with_layer_closed(make_layer: MakeLayer) -> None:
    """Not with silence: whoever waits on a closed layer would wait for ever."""
    layer = make_layer()
    waits = [
        asyncio.ensure_future(one)
        for one in (
            layer.receive("c"),
            layer.receive_async(["a", "b"]),
            layer.receive("specific.x!y"),
            layer.receive_within("d", None),
        )
    ]
    await asyncio.sleep(0.01)
    await layer.close()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [LayerClosed] * 4
    await layer.send("c", {"n": 1})  # and it attaches again
    assert await layer.receive("c") == {"n": 1}


def test_closing_ends_a_blocking_wait_with_layer_closed(make_layer: MakeLayer) -> None:
    """In another thread, through the twin."""
    layer = make_layer()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            layer.sync.receive("c")
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    while not layer._site.ports():
        os.sched_yield()
    layer.close_now()
    thread.join()
    assert [type(error) for error in errors] == [LayerClosed]


async def test_a_deletion_is_no_closing(make_layer: MakeLayer, prefix: str) -> None:
    """A wait outlives it: LayerClosed is for who closed the layer."""
    layer = make_layer()
    wait = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0.01)
    delete(prefix)
    a_second_passes(layer)
    await layer.send("c", {"n": 1})
    assert await wait == {"n": 1}
