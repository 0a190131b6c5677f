"""The collector: exact numbers after a known load, few series, and no site disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer
from asgi_ipc.exceptions import InvalidName
from asgi_ipc.metrics import STATES, IPCCollector, exposition
from tests.conftest import PATIENCE_S, Child, Clock

from .scraping import Scrape, scrape

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., Child]


# -- exact counts ------------------------------------------------------------------------


def test_every_count_is_exact_after_a_known_load(make_layer: MakeLayer, clock: Clock) -> None:
    """Sent, received, expired, dropped by cause, refused by cause, pending, ages."""
    layer = make_layer(capacity=5)
    sync = layer.sync
    for number in range(5):
        sync.send("tasks", {"n": number})
    for _ in range(2):
        with pytest.raises(ChannelFull):
            sync.send("tasks", {})
    sync.receive("tasks", 0)
    sync.send("short", {}, expiry=1)
    clock.advance(3)
    assert sync.receive("short", 0) is None
    sync.group_add("g", "tasks")
    for _ in range(3):
        sync.group_send("g", {"to": "a full channel, but for the first"})
    found = scrape(layer.prefix)
    assert found["messages_sent_total"] == 7
    assert found["messages_received_total"] == 1
    assert found["messages_expired_total"] == 1
    assert found["messages_pending"] == 5
    assert found["oldest_message_age_seconds"] == 3
    assert found.by("messages_dropped_total", "cause") == {("group_send",): 2, ("flush",): 0}
    assert found.by("sends_refused_total", "cause") == {("channel_full",): 2, ("memory_full",): 0}
    sync.flush()
    found = scrape(layer.prefix)
    assert found["messages_sent_total"] == 7
    assert found["messages_pending"] == found["oldest_message_age_seconds"] == 0
    assert found.by("messages_dropped_total", "cause") == {("group_send",): 2, ("flush",): 5}


def test_channels_are_told_apart(make_layer: MakeLayer, clock: Clock) -> None:
    """Depth, age and counters of each."""
    layer = make_layer(capacity=3)
    for channel, count in (("a", 1), ("b", 3)):
        for _ in range(count):
            layer.sync.send(channel, {})
    with pytest.raises(ChannelFull):
        layer.sync.send("b", {})
    clock.advance(2)
    layer.sync.receive("a", 0)
    found = scrape(layer.prefix)
    assert found.of_channels("channel_depth") == {"a": 0, "b": 3}
    assert found.of_channels("channel_sent_total") == {"a": 1, "b": 3}
    assert found.of_channels("channel_received_total") == {"a": 1, "b": 0}
    assert found.of_channels("channel_refused_total") == {"a": 0, "b": 1}
    assert found.of_channels("channel_oldest_message_age_seconds") == {"a": 0, "b": 2}
    assert found["channels"] == 2


def test_memory_that_is_full_has_a_cause_of_its_own(make_layer: MakeLayer) -> None:
    """A refused send counts as memory_full, and the memory's states add up."""
    layer = make_layer(capacity=10_000, message_memory=1 << 20)
    refused = 0
    while not refused:
        try:
            layer.sync.send("big", {"payload": bytes(60_000)})
        except ChannelFull:
            refused = 1
    found = scrape(layer.prefix)
    assert found.by("sends_refused_total", "cause")[("memory_full",)] == 1
    memory = found.by("memory_bytes", "segment", "state")
    used = memory[("messages", "used")]
    assert used > 60_000 * found["messages_pending"]
    total = used + memory[("messages", "free")] + memory[("messages", "unbacked")]
    size = found.by("segment_size_bytes", "segment")[("messages",)]
    assert size == 1 << 20
    assert 0.9 * size < total < size
    assert found.by("largest_free_bytes", "segment")[("messages",)] < 60_100


async def test_groups_loops_and_waiters_are_counted(make_layer: MakeLayer) -> None:
    """Members of all groups and of the largest; this loop, which sleeps on one channel."""
    layer = make_layer()
    for number in range(3):
        await layer.group_add("large", f"member.{number}")
    await layer.group_add("small", "member.0")
    await layer.group_add("left", "member.0")
    await layer.group_discard("left", "member.0")
    waiting = asyncio.create_task(layer.receive("quiet"))
    while not layer._site.ports() or not scrape(layer.prefix)["loops"]:
        await asyncio.sleep(0)
    found = scrape(layer.prefix)
    assert (found["groups"], found["group_members"], found["largest_group_members"]) == (2, 4, 3)
    assert (found["loops"], found["processes"], found["loops_limit"]) == (1, 1, 256)
    assert found.of_channels("channel_waiting_loops") == {"quiet": 1}
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


SENDER = """
layer = IPCChannelLayer(PREFIX, capacity=1_000_000, **SIZES)
number = 0
while True:
    layer.send("load", {"n": number})
    number += 1
    say(number)
"""


def test_counts_are_exact_with_kills_in_between(make_layer: MakeLayer, start: Start) -> None:
    """What killed senders had been told is sent is counted, and one more of each at most."""
    layer = make_layer(capacity=1_000_000)
    children = [start(SENDER) for _ in range(3)]
    for child in children:
        for _ in range(200):
            child.line()
    for child in children:
        child.signal(signal.SIGKILL)
        while child.line():
            pass  # what it had said before it died
    told = sum(int(child.lines[-2]) for child in children)
    sent = scrape(layer.prefix)["messages_sent_total"]
    assert told <= sent <= told + len(children)
    received = 0
    while layer.sync.receive("load", 0) is not None:
        received += 1
    found = scrape(layer.prefix)
    assert found["messages_received_total"] == received == sent
    assert found["messages_pending"] == 0


def test_counters_outlive_the_channels_that_counted(make_layer: MakeLayer, clock: Clock) -> None:
    """No total goes down while idle channels are forgotten, scrape after scrape."""
    layer = make_layer()
    for number in range(300):
        layer.sync.send(f"once.{number}", {})
        layer.sync.receive(f"once.{number}", 0)
    assert scrape(layer.prefix)["channels"] == 300
    channels = []
    for _ in range(200):
        clock.advance(5)
        for _ in range(16):
            layer.sync.send("other", {}, expiry=1)
        found = scrape(layer.prefix)
        channels.append(found["channels"])
        assert found["messages_received_total"] == 300
        sent = found["messages_sent_total"]
        assert sent == 300 + 16 * len(channels)
        assert sent == 300 + found["messages_expired_total"] + found["messages_pending"]
    assert channels[-1] < 10


BUSY = """
import random
layer = IPCChannelLayer(PREFIX, capacity=50, expiry=0.05, **SIZES)
say("up")
while True:
    channel = random.choice(["a", "b", "c", layer.new_channel("reply?"), "specific.me!x"])
    try:
        layer.send(channel, {"payload": bytes(random.randrange(2000))})
    except ChannelFull:
        pass
    layer.receive(["a", "b"])
"""


def test_a_busy_site_adds_up_in_every_scrape(make_layer: MakeLayer, start: Start) -> None:
    """While it is read in slices, channels come and go and one process is killed."""
    layer = make_layer()
    busy = [start(BUSY) for _ in range(3)]
    for child in busy:
        child.expect("up")
    registry = CollectorRegistry()
    registry.register(IPCCollector(layer.prefix, lock_timeout=PATIENCE_S))
    before: dict[str, float] = {}
    for number in itertools.count():
        if number == 20:
            busy[0].kill()
        if number == 40:
            layer.sync.flush()
        if number >= 60 and before["expired"] and before["received"]:
            break
        found = Scrape(generate_latest(registry).decode(), layer.prefix)
        now = {name: found[f"messages_{name}_total"] for name in ("sent", "received", "expired")}
        now["flushed"] = found.by("messages_dropped_total", "cause")[("flush",)]
        assert now["sent"] == sum(now.values()) - now["sent"] + found["messages_pending"]
        assert all(now[name] >= before.get(name, 0) for name in now)
        before = now


# -- sites that cannot be read -----------------------------------------------------------


def test_a_site_that_does_not_exist_is_no_error(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """``up`` is 0, the state says why, the log says it once, and nothing is created."""
    collector = IPCCollector(prefix)
    registry = CollectorRegistry()
    registry.register(collector)
    with caplog.at_level(logging.WARNING, logger="asgi_ipc"):
        for _ in range(3):
            assert registry.get_sample_value("asgi_ipc_up", {"prefix": prefix}) == 0
    (record,) = caplog.records
    assert prefix in record.getMessage()
    assert scrape(prefix).state() == "missing"
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


STOPPED_HOLDER = """
import signal
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
def stop():
    say("stopping")
    os.kill(os.getpid(), signal.SIGSTOP)
layer._site.messages.segment.transact(stop)
say("continued")
"""


def test_a_stopped_lock_holder_is_a_state_and_not_waited_for(
    make_layer: MakeLayer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it; when it goes on, so do the metrics."""
    layer = make_layer()
    holder = start(STOPPED_HOLDER)
    holder.expect("stopping")
    holder.wait_for_state("T")
    with caplog.at_level(logging.WARNING, logger="asgi_ipc"):
        found = scrape(layer.prefix)
    assert (found["up"], found.state()) == (0, "locked")
    assert str(holder.pid) in caplog.text
    holder.signal(signal.SIGCONT)
    holder.expect("continued")
    holder.end()
    assert scrape(layer.prefix).state() == "ok"


def test_what_is_no_segment_of_ours_is_a_state(prefix: str) -> None:
    """A file of somebody else's, and one of another layout version."""
    with open(f"/dev/shm/{prefix}-messages", "wb") as file:
        file.write(b"something else altogether" * 4)
    assert scrape(prefix).state() == "mismatch"


def test_a_damaged_segment_is_a_state(prefix: str) -> None:
    """Bytes that contradict themselves end in neither an exception nor a wait."""
    layer = AsyncIPCChannelLayer(prefix, message_memory=1 << 20, group_memory=1 << 20)
    layer.sync.send("a", {})
    with open(f"/dev/shm/{prefix}-messages", "r+b") as file:
        file.seek(8 * 8)
        file.write(b"\xff" * 8)  # where the heap ends
    assert scrape(prefix).state() == "damaged"
    layer.unlink()


def test_what_the_system_refuses_is_a_state_too(make_layer: MakeLayer, start: Start) -> None:
    """No descriptor is left to attach with; the scrape goes on without that site."""
    make_layer()
    child = start(
        """
        import logging, resource
        from asgi_ipc.metrics import exposition
        exposition(PREFIX)
        opened = [os.open("/dev/null", os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened[0] + 1, opened[0] + 1))
        say(exposition(PREFIX).decode())
        """
    )
    found = Scrape(child.end(), make_layer().prefix)
    assert found.state() == "unreadable"


def test_every_state_is_told_each_time(make_layer: MakeLayer) -> None:
    """So that an alert on one of them never looks at a series that has gone stale."""
    layer = make_layer()
    assert set(scrape(layer.prefix).by("site_state", "state")) == {(state,) for state in STATES}


# -- in a registry -----------------------------------------------------------------------


def test_one_collector_tells_of_several_sites(
    make_layer: MakeLayer, make_sync: Callable[..., IPCChannelLayer], prefix: str
) -> None:
    """Given as layers of any face or as prefixes; each has its own label."""
    one, other = make_layer(), make_sync(prefix=f"{prefix}-b")
    one.sync.send("a", {})
    other.send("a", {})
    other.send("a", {})
    text = exposition(one, other, prefix).decode()
    assert Scrape(text, one.prefix)["messages_sent_total"] == 1
    assert Scrape(text, other.prefix)["messages_sent_total"] == 2


def test_registering_looks_at_no_site(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """A second collector of the same names is refused, as the registry does with any."""
    registry = CollectorRegistry(auto_describe=True)
    with caplog.at_level(logging.WARNING, logger="asgi_ipc"):
        registry.register(IPCCollector(prefix))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(IPCCollector("another"))
    assert not caplog.records


def test_wrong_arguments_are_refused_at_once(prefix: str) -> None:
    """Not when somebody scrapes."""
    with pytest.raises(InvalidName):
        IPCCollector("no spaces")
    with pytest.raises(ValueError, match="at least one"):
        IPCCollector()
    with pytest.raises(ValueError, match="top_channels"):
        IPCCollector(prefix, top_channels=-1)


def test_a_scrape_leaves_the_site_as_it_was(make_layer: MakeLayer) -> None:
    """Not one word of either segment changes, and the layer stays attached."""
    layer = make_layer()
    layer.sync.send("a", {})
    layer.sync.group_add("g", "a")
    segments = (layer._site.messages.segment, layer._site.groups.segment)
    before = [bytes(segment.memory[: 8 * segment.heap_end()]) for segment in segments]
    for _ in range(3):
        assert scrape(layer.prefix)["up"] == 1
    assert before == [bytes(segment.memory[: 8 * segment.heap_end()]) for segment in segments]


def test_the_machine_and_the_package_are_named(make_layer: MakeLayer) -> None:
    """Room in the filesystem of shared memory, and the version, without a prefix."""
    layer = make_layer()
    registry = CollectorRegistry()
    registry.register(IPCCollector(layer))
    size = registry.get_sample_value("asgi_ipc_filesystem_size_bytes")
    available = registry.get_sample_value("asgi_ipc_filesystem_available_bytes")
    assert size is not None
    assert available is not None
    assert 0 < available <= size
    (build,) = [metric for metric in registry.collect() if metric.name == "asgi_ipc_build"]
    assert set(build.samples[0].labels) == {"version", "layout"}
