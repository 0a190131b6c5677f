"""Memory that runs full, fragments, leaks: none of it hurts for good."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, IPCChannelLayer

from ..stepping import drive

if TYPE_CHECKING:
    from ..conftest import Child, Clock

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]


def small_shm(size: str) -> tuple[str, ...]:
    """Return the words that start a program with a small /dev/shm of its own."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return ("unshare", "-m", "sh", "-c", mount, "sh")


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*small_shm("1m"), "true"], capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(
    not _can_mount(), reason="a /dev/shm of its own needs unshare and the right to mount"
)

FILL = """
def fill():
    taken = []
    try:
        while True:
            fd = os.open(f"/dev/shm/fill-{len(taken)}", os.O_RDWR | os.O_CREAT)
            taken.append(fd)
            while os.write(fd, bytes(4096)):
                pass
    except OSError as exc:
        assert exc.errno == 28
    return taken
def empty(taken):
    for number, fd in enumerate(taken):
        os.close(fd)
        os.unlink(f"/dev/shm/fill-{number}")
"""


@needs_mount
def test_no_room_for_a_segment_is_a_clear_error(start: Start) -> None:
    """SharedMemoryFull, with what to do about it, and no half segment left."""
    child = start(
        FILL
        + """
from asgi_ipc.exceptions import SharedMemoryFull
taken = fill()
try:
    AsyncIPCChannelLayer(PREFIX, **SIZES)
except SharedMemoryFull as exc:
    say(exc.errno, exc)
empty(taken)
say(os.listdir("/dev/shm"))
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
asyncio.run(layer.send("c", {}))
say("works")
""",
        wrapper=small_shm("3m"),
    )
    said = child.line()
    assert said.startswith("28 ")
    assert "--shm-size" in said
    child.expect("[]")
    child.expect("works")
    child.end()


@needs_mount
@pytest.mark.parametrize("face", ["AsyncIPCChannelLayer", "IPCChannelLayer"])
def test_a_full_filesystem_is_channel_full_and_never_sigbus(start: Start, face: str) -> None:
    """Docker's /dev/shm, smaller than message_memory: said as such, and over once there is room."""
    child = start(
        FILL
        + f"""
layer = {face}(PREFIX, capacity=10**9)
def send(channel, message):
    done = layer.send(channel, message)
    if done is not None:
        asyncio.run(done)
def receive(channel):
    done = layer.core if hasattr(layer, "core") else layer
    return asyncio.run(done.receive_async([channel], block=False))
count = 0
group = layer.group_add("g", "c")
if group is not None:
    asyncio.run(group)
try:
    while True:
        send("c", {{"body": b"x" * 100_000}})
        count += 1
except ChannelFull as exc:
    say("full", count, exc)
taken = fill()
for size in (10, 1000, 50_000, 500_000):
    try:
        for number in range(100_000):
            send(f"d{{number % 50}}", {{"body": b"x" * size}})
    except ChannelFull as exc:
        assert "shared-memory filesystem is full" in str(exc), exc
done = (layer.send_group if hasattr(layer, "send_group") else layer.group_send)("g", {{"n": 1}})
if done is not None:
    asyncio.run(done)
say("still alive")
empty(taken)
for _ in range(count):
    assert len(receive("c")[1].get("body", "")) in (0, 100_000)
send("e", {{"body": b"x" * 500_000}})
assert len(receive("e")[1]["body"]) == 500_000
say("works again")
""",
        wrapper=small_shm("8m"),
    )
    said = child.expect("full ")
    assert int(said.split()[1]) > 40
    assert "--shm-size" in said
    child.expect("still alive")
    child.expect("works again")
    child.end()


@needs_mount
@pytest.mark.parametrize("part", ["messages", "groups"])
def test_a_creators_death_on_a_full_filesystem_is_a_clear_error(start: Start, part: str) -> None:
    """A segment that was given its size and no memory is not read from."""
    child = start(
        FILL
        + """
from asgi_ipc.exceptions import SharedMemoryFull
from asgi_ipc._process.shm import shm_open
fd = shm_open(f"/{PREFIX}-{sys.argv[2]}", os.O_CREAT | os.O_EXCL, 0o600)
os.ftruncate(fd, 8 << 20)
taken = fill()
try:
    AsyncIPCChannelLayer(PREFIX, **SIZES)
except SharedMemoryFull as exc:
    say("refused")
empty(taken)
AsyncIPCChannelLayer(PREFIX, **SIZES)
say("works")
""",
        part,
        wrapper=small_shm("2m"),
    )
    child.expect("refused")
    child.expect("works")
    child.end()


# -- fragmentation -----------------------------------------------------------------------


def churn(layer: AsyncIPCChannelLayer, count: int, seed: int) -> None:
    """Send and receive so many messages of mixed sizes, the memory nearly full all the time."""
    chance = random.Random(seed)
    bodies = [bytes(int(min(chance.lognormvariate(5.5, 2), 200_000))) for _ in range(500)]
    queues: dict[str, deque[int]] = {f"c{n}": deque() for n in range(40)}
    names = list(queues)
    sent = 0
    while sent < count:
        name = names[int(chance.random() * 40)]
        body = bodies[sent % 500]
        try:
            drive(layer.send(name, {"n": sent, "body": body}))
            queues[name].append(sent)
            sent += 1
        except layer.ChannelFull:
            for other in names:
                keep = int(chance.random() * 3)
                while len(queues[other]) > keep:
                    _take(layer, other, queues[other], bodies)
    for name, queue in queues.items():
        while queue:
            _take(layer, name, queue, bodies)


def _take(layer: AsyncIPCChannelLayer, name: str, queue: deque[int], bodies: list[bytes]) -> None:
    _, message = drive(layer.receive_async([name], block=False))
    assert message is not None
    assert message["n"] == queue.popleft()
    assert len(message["body"]) == len(bodies[message["n"] % 500])


def largest_fits(layer: AsyncIPCChannelLayer, size: int) -> None:
    drive(layer.send("large", {"b": bytes(size)}))
    _, message = drive(layer.receive_async(["large"], block=False))
    assert message == {"b": bytes(size)}


def fragmentation(make_layer: MakeLayer, count: int) -> None:
    layer = make_layer(message_memory=2 << 20, capacity=10**9, group_memory=1 << 20)
    largest = int(1.9 * (1 << 20))
    for name in [*(f"c{n}" for n in range(40)), "large"]:  # the records come first
        drive(layer.send(name, {}))
        drive(layer.receive_async([name], block=False))
    largest_fits(layer, largest)
    for part in range(5):
        churn(layer, count // 5, part)
        largest_fits(layer, largest)


def test_mixed_sizes_leave_the_largest_message_possible(make_layer: MakeLayer) -> None:
    """A hundred thousand messages through two megabytes, each one checked."""
    fragmentation(make_layer, 100_000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_million_messages_leave_the_largest_message_possible(make_layer: MakeLayer) -> None:
    """The same for long."""
    fragmentation(make_layer, 10_000_000)


def test_abandoned_channels_cost_bounded_memory(make_layer: MakeLayer, clock: Clock) -> None:
    """Reply channels that nobody ever reads come and go without anybody's help."""
    layer = make_layer(message_memory=2 << 20, expiry=5)
    for number in range(20_000):
        name = f"reply?{number}" if number % 2 else f"p.{number // 10}!{number}"
        drive(layer.send(name, {"body": b"x" * 200}))
        clock.advance(0.01)
    statistics = drive(layer.global_statistics())
    assert statistics["memory_full_count"] == 0
    assert statistics["channels_count"] < 3000


# -- descriptors -------------------------------------------------------------------------


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_ten_thousand_layers_leave_no_descriptor(prefix: str, make_layer: MakeLayer) -> None:
    """Made, used now and then, closed or just dropped."""
    keeper = make_layer(message_memory=1 << 20, group_memory=1 << 20)
    before = descriptor_count()
    for number in range(10_000):
        kind: Any = IPCChannelLayer if number % 3 == 0 else AsyncIPCChannelLayer
        layer = kind(prefix, message_memory=1 << 20, group_memory=1 << 20)
        if number % 100 == 0:
            core: AsyncIPCChannelLayer = getattr(layer, "core", layer)
            drive(core.send("c", {}))
            asyncio.run(_receive_twice(core))
        if number % 2:
            closing = layer.close()
            if closing is not None:
                drive(closing)
        if number % 1000 == 0:
            gc.collect()  # a layer that was dropped is in cycles
            assert descriptor_count() <= before + 20
    del layer, core
    gc.collect()
    assert descriptor_count() <= before
    assert drive(keeper.receive_async(["c"], block=False)) == (None, None)


async def _receive_twice(layer: AsyncIPCChannelLayer) -> None:
    await layer.receive("c")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(layer.receive("c"), 0.0001)


def test_async_to_sync_ten_thousand_times_leaves_nothing(make_layer: MakeLayer) -> None:
    """A loop for every call, from several threads: constant descriptors, no dead loops."""
    import threading

    from asgiref.sync import async_to_sync

    layer = make_layer(capacity=100_000)
    drive(layer.group_add("g", "c"))
    before = descriptor_count()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(500):
                async_to_sync(layer.group_send)("g", {"n": 1})
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert descriptor_count() <= before
    assert drive(layer.channel_statistics("c"))["messages_pending"] == 2000
