"""Statistics count exactly what happened, also when processes are killed in the middle of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer

if TYPE_CHECKING:
    from ..conftest import Child

Read = Callable[..., Any]
MakeLayer = Callable[..., AsyncIPCChannelLayer]

PRODUCER = """
layer = IPCChannelLayer(PREFIX, capacity=1_000_000, **SIZES)
say("ready")
sys.stdin.readline()  # so that none has filled the memory before all are ready
n = 0
while True:
    layer.send(sys.argv[2], {"n": n})
    n += 1
    if n % 100 == 0:
        say(n)
"""

CONSUMER = """
layer = IPCChannelLayer(PREFIX, capacity=1_000_000, **SIZES)
say("ready")
n = 0
while True:
    got = layer.receive([sys.argv[2]], block=True)
    if got[0] is not None:
        n += 1
        if n % 100 == 0:
            say(n)
"""

# What is refused, dropped and left to expire: its own number of each, told at the end.
LOSER = """
layer = IPCChannelLayer(PREFIX, capacity=5, expiry=0.01, **SIZES)
mine = sys.argv[2]
full = dropped = 0
layer.group_add(mine, f"group.{mine}")
for n in range(300):
    try:
        layer.send(f"full.{mine}", {})
    except ChannelFull:
        full += 1
for n in range(300):
    layer.group_send(mine, {})
say(full)
"""


PATIENTLY = ("--patience", "30")  # beside processes that never rest


def drain(layer: AsyncIPCChannelLayer, channel: str) -> list[int]:
    """Take everything there is; return the numbers of the messages."""
    found = []
    while (message := layer.sync.receive(channel, 0)) is not None:
        found.append(message["n"])
    return found


def assert_balanced(totals: dict[str, Any]) -> None:
    """What was sent was received, expired, flushed, or waits: at any moment."""
    gone = totals["received"] + totals["expired"] + totals["flushed"]
    assert totals["sent"] == gone + totals["pending"], totals


@pytest.mark.parametrize("rounds", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_counts_are_exact_after_kills(
    rounds: int, make_layer: MakeLayer, start: Callable[..., Child], read: Read
) -> None:
    """Producers and consumers are killed anywhere; every message is counted once.

    How much a killed producer has sent is what can be drained from its own channel; what a
    killed consumer has taken is what is missing there.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    layer = make_layer(capacity=1_000_000, expiry=1000)
    sent = received = 0
    for round_number in range(rounds):
        lost, kept = f"lost.{round_number}", f"kept.{round_number}"
        producers = [start(PRODUCER, kept), start(PRODUCER, lost)]
        consumer = start(CONSUMER, lost)
        for child in (*producers, consumer):
            child.expect("ready")
        for producer in producers:
            producer.tell()
        for child in (*producers, consumer):
            for _ in range(chance.randrange(1, 4)):
                child.line()
            child.kill()
            assert_balanced(read("stats", *PATIENTLY)["totals"])
        channels = {one["name"]: one for one in read("channels")["channels"]}
        for name in (kept, lost):
            numbers = drain(layer, name)
            last = numbers[-1] + 1 if numbers else 0
            count = channels[name]
            if name == kept:
                assert numbers == list(range(count["sent"])), f"seed {seed}"
                assert count["received"] == 0
            else:  # the consumer took the first ones, in order
                first = numbers[0] if numbers else count["sent"]
                assert numbers == list(range(first, count["sent"])), f"seed {seed}"
                assert count["received"] == first
                assert len(numbers) == count["depth"]
            sent += count["sent"]
            received += count["received"] + len(numbers)
            assert last in (0, count["sent"])
        totals = read("stats")["totals"]
        assert (totals["sent"], totals["received"]) == (sent, received), f"seed {seed}"
        assert totals["pending"] == 0


def test_refusals_and_drops_are_exact_beside_kills(
    make_layer: MakeLayer, start: Callable[..., Child], read: Read
) -> None:
    """Each cause has its own count, whoever else is killed meanwhile."""
    layer = make_layer()
    losers = [start(LOSER, f"loser{n}") for n in range(3)]
    victims = [start(PRODUCER, f"victim{n}") for n in range(3)]
    for victim in victims:
        victim.expect("ready")
        victim.tell()
        victim.line()
        victim.kill()
    full = 0
    for loser in losers:
        full += int(loser.line())
        loser.end()
    document = read("stats", "--limit", "0")
    drops, totals = document["drops"], document["totals"]
    assert full > 0
    assert drops["channel_full"] == full
    sent = {channel["name"]: channel["sent"] for channel in document["channels"]}
    in_groups = sum(sent[f"group.loser{n}"] for n in range(3))
    assert drops["group_member_full"] == 3 * 300 - in_groups
    assert sum(sent[f"full.loser{n}"] for n in range(3)) == 3 * 300 - full
    assert drops["memory_full"] == 0
    assert_balanced(totals)
    own = layer.sync.global_statistics()
    assert own["messages_count"] == totals["sent"]
    assert own["channel_full_count"] == full
    assert own["dropped_count"] == drops["group_member_full"]
    waiting = totals["pending"]
    layer.sync.flush()
    after = read("stats")
    assert after["totals"]["flushed"] == waiting
    assert after["drops"]["channel_full"] == full
    assert_balanced(after["totals"])


def test_counts_of_forgotten_channels_stay_in_the_totals(make_layer: MakeLayer, read: Read) -> None:
    """Thousands of single-use channels come and go; nothing is counted twice or lost."""
    layer = make_layer()
    before = 0
    for batch in range(4):
        for n in range(500):
            channel = f"reply?{batch}.{n}"
            layer.sync.send(channel, {})
            layer.sync.receive(channel, 0)
        totals = read("stats")["totals"]
        assert totals["sent"] == totals["received"] == 500 * (batch + 1)
        assert totals["sent"] >= before
        before = totals["sent"]
