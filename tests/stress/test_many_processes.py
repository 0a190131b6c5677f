"""Producers and consumers, each its own interpreter: every message is accounted for.

A consumer writes down what it has received before it asks for more; killed, it can take
one message with it, popped and not yet written down. Nothing else may be lost, nothing may
come twice, and what one producer sent to one channel arrives in its order.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer

from ..conftest import ONLY_RINGS

if TYPE_CHECKING:
    from ..conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

RECORD = struct.Struct("<3I")  # producer, channel, number
CHANNELS = ["c0", "c1", "home!a", "home!b"]

PRODUCER = """
import struct
who, path = int(sys.argv[2]), sys.argv[3]
channels = sys.argv[4].split(",")
layer = AsyncIPCChannelLayer(PREFIX, capacity=200, **SIZES)
record = struct.Struct("<3I").pack
fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
async def main():
    number = 0
    say("ready")
    while True:
        which = number % len(channels)
        # Written down before it is sent: killed in between, it may or may not be there.
        os.write(fd, record(who, which, number))
        while True:
            try:
                pad = "x" * (number % 700)
                await layer.send(channels[which], {"who": who, "n": number, "pad": pad})
                break
            except layer.ChannelFull:
                await asyncio.sleep(0.001)
        number += 1
        if number % 20 == 0:
            await asyncio.sleep(0)
asyncio.run(main())
"""

CONSUMER = """
import struct
path, mine = sys.argv[2], sys.argv[3].split(",")
channels = sys.argv[4].split(",")
kind = sys.argv[5]
record = struct.Struct("<3I").pack
fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(channel, message):
    os.write(fd, record(message["who"], channels.index(channel), message["n"]))
if kind == "sync":
    layer = IPCChannelLayer(PREFIX, capacity=200, **SIZES)
    say("ready")
    while True:
        channel, message = layer.receive(mine, block=True)
        if channel is not None:
            note(channel, message)
else:
    layer = AsyncIPCChannelLayer(PREFIX, capacity=200, **SIZES)
    async def one(names):
        while True:
            try:
                note(*await asyncio.wait_for(layer.receive_async(names), 0.5))
            except TimeoutError:
                pass
    async def main():
        tasks = [asyncio.create_task(one([name])) for name in mine]
        tasks.append(asyncio.create_task(one(mine)))
        await asyncio.sleep(0)
        say("ready")
        await asyncio.gather(*tasks)
    asyncio.run(main())
"""


class Site:
    """Processes of one prefix, and the files they write down what they do in."""

    def __init__(self, start: Start, folder: Path) -> None:
        self.start = start
        self.folder = folder
        self.producers: list[Child] = []
        self.consumers: dict[Child, tuple[str, str]] = {}
        self.made = 0
        self.kills = 0

    def add_producer(self) -> None:
        """Start one more."""
        self.made += 1
        path = str(self.folder / f"sent-{self.made}")
        child = self.start(PRODUCER, str(self.made), path, ",".join(CHANNELS))
        child.expect("ready")
        self.producers.append(child)

    def add_consumer(self, channels: str, kind: str) -> None:
        """Start one more."""
        self.made += 1
        path = str(self.folder / f"got-{self.made}")
        child = self.start(CONSUMER, path, channels, ",".join(CHANNELS), kind)
        child.expect("ready")
        self.consumers[child] = (channels, kind)

    def received(self) -> int:
        """Return how many messages the consumers have written down so far."""
        written = sum(path.stat().st_size for path in self.folder.glob("got-*"))
        return written // RECORD.size

    def records(self, kind: str) -> list[list[tuple[int, int, int]]]:
        """Return what each process wrote down."""
        found = []
        for path in sorted(self.folder.glob(f"{kind}-*")):
            data = path.read_bytes()
            found.append(list(RECORD.iter_unpack(data[: len(data) // 12 * 12])))
        return found


def run(site: Site, chance: random.Random, seconds: float) -> None:
    """Let them work, and kill, stop and continue some of them; longer where that is slow."""
    for _ in range(2):
        site.add_producer()
    site.add_consumer("c0,c1", "async")
    site.add_consumer("c0,c1", "sync")
    site.add_consumer("home!a,home!b", "async")
    end = time.monotonic() + seconds
    while time.monotonic() < end or site.received() <= 100 * seconds:
        time.sleep(chance.uniform(0.01, 0.3))  # the load itself, not synchronisation
        event = chance.choice(["producer", "consumer", "stop", "stop", "nothing"])
        if event == "producer":
            victim = chance.choice(site.producers)
            site.producers.remove(victim)
            victim.kill()
            site.kills += 1
            site.add_producer()
        elif event == "consumer":
            # The owner of a home takes its channels with it, so it is left alone.
            shared = [one for one, (names, _) in site.consumers.items() if "!" not in names]
            victim = chance.choice(shared)
            arguments = site.consumers.pop(victim)
            victim.kill()
            site.kills += 1
            site.add_consumer(*arguments)
        elif event == "stop":
            victim = chance.choice([*site.producers, *site.consumers])
            victim.signal(signal.SIGSTOP)
            time.sleep(chance.uniform(0, 0.1))
            victim.signal(signal.SIGCONT)


def check(site: Site, layer: AsyncIPCChannelLayer) -> str | None:
    """Stop everybody and say what does not add up."""
    for child in site.producers:
        child.kill()
    give_up = time.monotonic() + 60
    for channel in CHANNELS:  # the consumers finish what is there
        while layer.sync.channel_statistics(channel)["messages_pending"]:
            if time.monotonic() > give_up:
                return f"consumers sleep beside messages in {channel}"
            time.sleep(0.01)
    for child in site.consumers:
        child.signal(signal.SIGTERM)
    for child in site.consumers:
        child.process.wait(30)
        child.kill()
    got: dict[tuple[int, int], list[int]] = defaultdict(list)
    for records in site.records("got"):
        last: dict[tuple[int, int], int] = {}
        for who, which, number in records:
            if number <= last.get((who, which), -1):
                return f"{CHANNELS[which]}: {number} of {who} after {last[who, which]}"
            last[who, which] = number
            got[who, which].append(number)
    missing = 0
    for records in site.records("sent"):
        sent: dict[tuple[int, int], list[int]] = defaultdict(list)
        for who, which, number in records:
            sent[who, which].append(number)
        for key, numbers in sent.items():
            arrived = got.pop(key, [])
            if len(set(arrived)) != len(arrived):
                return f"{CHANNELS[key[1]]}: something of {key[0]} came twice"
            if not set(arrived) <= set(numbers):
                return f"{CHANNELS[key[1]]}: something came that {key[0]} never sent"
            lost = set(numbers) - set(arrived)
            lost.discard(records[-1][2])  # killed in the middle of sending it
            missing += len(lost)
    if got:
        return f"messages of nobody: {dict(got)}"
    if missing > 2 * site.kills + len(site.consumers) * 2:
        return f"{missing} messages lost in {site.kills} kills"
    return None


def choose_seed() -> int:
    """Return the seed of this run, which a failed test shows."""
    seed = int(os.environ.get("STRESS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"STRESS_SEED={seed}")
    return seed


def stress(start: Start, make_layer: MakeLayer, folder: Path, seconds: float) -> None:
    seed = choose_seed()
    layer = make_layer(capacity=200)
    site = Site(start, folder)
    run(site, random.Random(seed), seconds)
    problem = check(site, layer)
    assert problem is None, f"{problem} (STRESS_SEED={seed})"
    assert site.received() > 100 * seconds


def test_every_message_is_accounted_for(
    start: Start, make_layer: MakeLayer, tmp_path: Path
) -> None:
    """Five seconds of producers and consumers that are killed, stopped and continued."""
    stress(start, make_layer, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_message_is_accounted_for_for_a_minute(
    start: Start, make_layer: MakeLayer, tmp_path: Path
) -> None:
    """The same for long."""
    stress(start, make_layer, tmp_path, 60)


def test_blocked_readers_of_many_channels_never_sleep_beside_a_message(
    start: Start, make_layer: MakeLayer, only_rings: None
) -> None:
    """Three processes that wait for overlapping sets answer every message, however they race."""
    layer = make_layer(capacity=1000)
    readers = [
        start(
            ONLY_RINGS
            + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    say("ready")
    while True:
        channel, message = await layer.receive_async(sys.argv[2].split(","))
        if message["n"] < 0:
            break
        await layer.send("answers", {"n": message["n"]})
asyncio.run(main())
""",
            channels,
        )
        for channels in ("a,b,c", "b,c,d", "c,a")
    ]
    for reader in readers:
        reader.expect("ready")
    chance = random.Random(1)

    import asyncio

    async def ask() -> None:
        for number in range(1500):
            await layer.send(chance.choice("abcd"), {"n": number})
            if chance.random() < 0.5:  # one message alone: only a wake brings the answer
                waiting = number + 1 - answered
                for _ in range(waiting):
                    await asyncio.wait_for(layer.receive("answers"), 60)
                    count()
        while answered < 1500:
            await asyncio.wait_for(layer.receive("answers"), 60)
            count()

    answered = 0

    def count() -> None:
        nonlocal answered
        answered += 1

    asyncio.run(ask())
    for reader in readers:
        reader.kill()


@pytest.mark.parametrize("face", ["AsyncIPCChannelLayer", "IPCChannelLayer"])
def test_blocked_consumers_killed_one_after_the_other_leave_no_message_behind(
    start: Start, make_layer: MakeLayer, face: str
) -> None:
    """A message sent when the parked consumer has just been killed reaches the other one."""
    layer = make_layer()
    code = f"""
layer = {face}(PREFIX, **SIZES)
say("ready")
if {face} is IPCChannelLayer:
    while True:
        channel, message = layer.receive(["c"], block=True)
        if channel:
            layer.send("answers", message)
async def main():
    while True:
        await layer.send("answers", await layer.receive("c"))
asyncio.run(main())
"""
    keeper = start(code)
    keeper.expect("ready")

    import asyncio

    async def kill_and_ask() -> None:
        for number in range(8):
            victim = start(code)
            victim.expect("ready")
            victim.wait_for_state("S")
            victim.signal(signal.SIGKILL)
            for again in range(4):
                await layer.send("c", {"n": number, "again": again})
            answers = 0
            while answers < 3:  # the victim may have died with one in its hands
                try:
                    await asyncio.wait_for(layer.receive("answers"), 20)
                    answers += 1
                except TimeoutError:
                    raise AssertionError("a message was left beside a sleeping consumer") from None
            victim.kill()
            await layer.receive_async(["answers"], block=False)

    asyncio.run(kill_and_ask())


GIVES_UP = (
    ONLY_RINGS
    + """
import random
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
mine = sys.argv[2].split(",")
chance = random.Random(int(sys.argv[3]))
async def answer(names):
    channel, message = await layer.receive_async(names)
    await layer.send("answers", message)
async def stays(names):
    while True:
        await answer(names)
async def gives_up():
    while True:
        names = chance.sample(mine, chance.randint(1, len(mine)))
        task = asyncio.create_task(layer.receive_async(names))
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.003)))
        task.cancel()
        try:
            channel, message = await task
        except asyncio.CancelledError:
            continue
        await layer.send("answers", message)
async def main():
    tasks = [asyncio.create_task(stays([name])) for name in mine]
    tasks += [asyncio.create_task(gives_up()) for _ in range(6)]
    say("ready")
    await asyncio.gather(*tasks)
asyncio.run(main())
"""
)


def test_receives_that_give_up_never_put_others_to_sleep_beside_a_message(
    start: Start, make_layer: MakeLayer, only_rings: None
) -> None:
    """Cancellations at every moment, in three processes; each message is answered by a wake."""
    seed = choose_seed()
    layer = make_layer(capacity=1000)
    children = [
        start(GIVES_UP, names, str(seed + number))
        for number, names in enumerate(("a,b,c", "b,c", "c,h!1,h!2,a"))
    ]
    for child in children:
        child.expect("ready")
    chance = random.Random(seed)

    import asyncio

    async def ask() -> None:
        for number in range(0, 2000, 4):
            burst = chance.choice((1, 1, 2, 4))
            for again in range(burst):
                await layer.send(
                    chance.choice(("a", "b", "c", "h!1", "h!2")), {"n": number + again}
                )
            answers = [
                (await asyncio.wait_for(layer.receive("answers"), 30))["n"] for _ in range(burst)
            ]
            assert sorted(answers) == list(range(number, number + burst)), f"STRESS_SEED={seed}"

    asyncio.run(ask())
