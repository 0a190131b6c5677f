"""Bytes that no code of ours wrote: every operation ends, cleanly."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._shm import layout as L

if TYPE_CHECKING:
    from ..conftest import Child

Start = Callable[..., "Child"]
CASE_S = 20  # an operation on damaged memory may search for long, but it must end

# Builds a prefix with everything in it, remembers its bytes, and then for each case on its
# standard input restores them, damages some, and tries every operation. It says which case
# it is about to do, so that the parent knows which one hangs or crashes.
VICTIM = """
import json, random, resource
from asgi_ipc.exceptions import IPCError
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
logging = __import__("logging"); logging.disable(logging.CRITICAL)
SMALL = {"message_memory": 192 << 10, "group_memory": 96 << 10, "lock_timeout": 5.0}
PARTS = ("messages", "groups")

def drive(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it suspended: a lock was left behind")

def build():
    layer = AsyncIPCChannelLayer(PREFIX, capacity=1000, **SMALL)
    for n in range(12):
        for name in ("a", "b", f"reply?{n}", f"x!{n % 3}", "gone"):
            drive(layer.send(name, {"n": n, "pad": "p" * (n * 37 % 400)}))
        drive(layer.receive_async(["gone"], block=False))
    for name in ("a", "b", "x!0", "x!1", "y!0"):
        for group in ("g", "h"):
            drive(layer.group_add(group, name))
    drive(layer.group_send("g", {"to": "all", "pad": "q" * 300}))
    drive(layer.group_discard("h", "x!0"))
    drive(layer.receive_async(["a", "x!0"], block=False))
    async def park():
        try:
            await asyncio.wait_for(layer.receive_async(["parked", "z!1"]), 0.001)
        except TimeoutError:
            pass
    asyncio.run(park())
    layer.close_now()

def operations(layer, number):
    yield lambda: layer.send("a", {"n": number})
    yield lambda: layer.send("b", {"pad": "b" * 5000})
    yield lambda: layer.send("x!0", {"n": number})
    yield lambda: layer.send("parked", {})
    yield lambda: layer.send(f"new{number}", {})
    yield lambda: layer.group_send("g", {"n": number})
    for name in ("a", "b", "x!0", "x!", "reply?3", "nothing", "parked"):
        for _ in range(3):
            yield lambda name=name: layer.receive_async([name], block=False)
    yield lambda: layer.group_channels("g")
    yield lambda: layer.group_add("g", f"n!{number}")
    yield lambda: layer.group_discard("g", "x!1")
    yield lambda: layer.group_discard("h", "b")
    yield lambda: layer.group_send("h", {"n": number})
    yield lambda: layer.global_statistics()
    yield lambda: layer.channel_statistics("x!1")
    yield lambda: layer.send("big", {"pad": bytes(100_000)})
    yield lambda: layer.flush()
    yield lambda: layer.send("a", {"n": number})
    yield lambda: layer.receive_async(["a"], block=False)

def attempt(number):
    outcome = {"works": 0, "clean": 0}
    for again in range(2):  # with nothing known, and with everything known
        try:
            layer = AsyncIPCChannelLayer(PREFIX, capacity=1000, **SMALL)
        except IPCError:
            outcome["clean"] += 1
            return outcome
        try:
            for operation in operations(layer, number):
                try:
                    drive(operation())
                    outcome["works"] += 1
                except IPCError:
                    outcome["clean"] += 1
        finally:
            layer.close_now()
    return outcome

build()
paths = [f"/dev/shm/{PREFIX}-{part}" for part in PARTS]
sound = [open(path, "rb").read() for path in paths]
say(json.dumps([len(one) for one in sound]))
for line in sys.stdin:
    case = json.loads(line)
    if not case:
        break
    for path, content in zip(paths, sound):
        with open(path, "r+b") as file:
            file.write(content)
    with open(paths[case["part"]], "r+b") as file:
        for offset, value in case["bytes"]:
            file.seek(offset)
            file.write(bytes([value]))
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    say(json.dumps(attempt(case["number"])))
faulthandler.cancel_dump_traceback_later()
"""


class Victims:
    """One child after the other, as long as none misbehaves."""

    def __init__(self, start: Start) -> None:
        self.child = start(VICTIM, str(CASE_S))
        self.sizes: list[int] = json.loads(self.child.line())
        self.clean = self.works = 0

    def suffer(self, number: int, part: int, changes: list[tuple[int, int]]) -> None:
        """Damage these bytes and try everything; the child must survive it."""
        self.child.tell(json.dumps({"number": number, "part": part, "bytes": changes}))
        line = self.child.line(CASE_S + 10)
        what = f"case {number}: bytes {changes} of {('messages', 'groups')[part]}"
        assert line, f"{what}: the child died ({self.child.process.wait()})"
        outcome = json.loads(line)
        self.clean += outcome["clean"]
        self.works += outcome["works"]

    def end(self) -> None:
        """Let it go."""
        self.child.tell("{}")
        self.child.end()


def used_words(path: str, header_words: int) -> list[int]:
    """Return the offsets of the header's bytes and of all words that are not zero."""
    with open(path, "rb") as file:
        content = file.read()
    return [
        word
        for word in range(len(content) // 8)
        if word < header_words or content[8 * word : 8 * word + 8] != bytes(8)
    ]


def word_bytes(word: int, value: int) -> list[tuple[int, int]]:
    return [(8 * word + byte, value >> 8 * byte & 0xFF) for byte in range(8)]


HEADER_WORDS = 320  # magic to the quick lists; the log and the slots are in the random part


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", [0, 1], ids=["messages", "groups"])
def test_every_byte_of_the_header(start: Start, prefix: str, part: int) -> None:
    """Each byte of each word in use turned into something else; of the first words, into much."""
    victims = Victims(start)
    path = f"/dev/shm/{prefix}-{('messages', 'groups')[part]}"
    with open(path, "rb") as file:
        sound = file.read(8 * HEADER_WORDS)
    number = 0
    for word in range(HEADER_WORDS):
        in_use = word < 32 or sound[8 * word : 8 * word + 8] != bytes(8)
        for byte in range(8) if in_use else (0,):
            offset = 8 * word + byte
            flips = (
                (0xFF, 0x01, 0x80, sound[offset]) if word < 32 else ((0xFF, 0x01, 0x80)[byte % 3],)
            )
            for flip in flips:
                number += 1
                victims.suffer(number, part, [(offset, sound[offset] ^ flip)])
    victims.end()
    assert victims.clean > 100
    assert victims.works > 100


def random_damage(start: Start, prefix: str, count: int, seed: int) -> None:
    chance = random.Random(seed)
    victims = Victims(start)
    words = [
        used_words(f"/dev/shm/{prefix}-{part}", HEADER_WORDS) for part in ("messages", "groups")
    ]
    for number in range(count):
        part = int(chance.random() < 0.3)
        changes = []
        if chance.random() < 0.05:  # a commit that nobody made
            entries = chance.randrange(1, 20)
            changes += word_bytes(L.LOG_N, entries | chance.choice((0, 0, 0, L.LOG_RESET)))
            for entry in range(entries):
                key = chance.choice((*words[part], chance.getrandbits(64)))
                changes += word_bytes(L.LOG + 2 * entry, key)
                changes += word_bytes(L.LOG + 2 * entry + 1, chance.getrandbits(64))
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            word = chance.choice(words[part])
            if chance.random() < 0.3:  # a whole word: zero, a neighbour's, nonsense
                other = chance.choice(words[part]) if chance.random() < 0.5 else 0
                value = chance.choice((0, other, chance.getrandbits(64), 2**64 - 1))
                changes += word_bytes(word, value)
            else:
                changes.append((8 * word + chance.randrange(8), chance.randrange(256)))
        victims.suffer(number, part, changes)
    victims.end()
    assert victims.clean > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_damage(start: Start, prefix: str, seed: int) -> None:
    """Ten thousand corruptions anywhere in what is in use, five thousand from each seed."""
    random_damage(start, prefix, 5000, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3, 9))
def test_much_random_damage(start: Start, prefix: str, seed: int) -> None:
    """Sixty thousand more."""
    random_damage(start, prefix, 10_000, seed)
