"""Group messages in a straight line: the same words, rings and answers as the general case."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._memory import table
from asgi_ipc._shm import layout as L
from asgi_ipc._store.fanout import Envelope, Fanout, GroupMessage
from asgi_ipc._store.messages import MessageStore
from asgi_ipc.exceptions import ChannelFull
from asgi_ipc.names import home_of

from .bells import WrittenBells
from .twins import Twin

if TYPE_CHECKING:
    from tests.conftest import Clock

HOUR_NS = 3600 * 10**9
HOMES = ("a!", "b!", "c!", "d!")
SLOTS = 3


class Idents:
    """Idents that follow from how often they were asked for since ``begin``."""

    def __init__(self) -> None:
        self._next = 0

    def begin(self, step: int) -> None:
        """Start a step: every segment gets the same ones."""
        self._next = 1000 * (step + 1)

    def __call__(self) -> int:
        """Return the next."""
        self._next += 1
        return self._next


class Site(Twin):
    """A messages segment and a few loops that wait."""

    def __init__(self, name: str, size: int, *, straight: bool) -> None:
        super().__init__(name, L.KIND_MESSAGES, size)
        self.bells = WrittenBells()
        self.bells.process = 1 << 40  # the same for both twins
        self.rings = self.bells.rings
        self.stores = [MessageStore(one, self.bells, lambda *_: ["m"]) for one in self.segments]
        self.ways: Counter[bool] = Counter()
        for store in self.stores:
            self._watch(store._fanout, straight)

    def _watch(self, fanout: Fanout, straight: bool) -> None:
        send = fanout._send_straight

        def send_straight(message: GroupMessage, now: int) -> list[str] | None:
            dead = send(message, now) if straight else None
            self.ways[dead is not None] += 1
            return dead

        fanout._send_straight = send_straight  # type: ignore[method-assign]

    def stock(self, message: GroupMessage) -> None:
        """Have memory in stock: each way asks for it at another moment."""
        self.segments[0].transact(self.stores[0]._fanout._stock, message)


MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(prefix: str) -> Iterator[MakeSite]:
    made: list[Site] = []

    def make(size: int = 1 << 20, *, straight: bool = True) -> Site:
        made.append(Site(f"/{prefix}-messages{len(made)}", size, straight=straight))
        return made[-1]

    yield make
    for twin in made:
        twin.close()


def random_message(dice: random.Random) -> GroupMessage:
    homes = dice.sample(HOMES, dice.randint(0, len(HOMES)))
    envelopes = [
        Envelope(home, 7, 3, dice.choice((b"", b"", b"", b"\0" + home.encode() + b"m")))
        for home in homes
    ]
    if dice.random() < 0.1:
        envelopes.append(Envelope("normal", 0, 1))
    size = dice.choice((0, 20, 20, 41, 150, 700, 5000, 20_000, 250_000))
    capacity = dice.choice((1, 100, 100, 100))
    expiry_ns = dice.choice((1, 20)) * 10**9
    group = dice.choice(("g", "g", "a-group-with-a-longer-name"))
    return GroupMessage(group, dice.randbytes(size), envelopes, lambda _: capacity, expiry_ns)


def do_something(twin: Site, dice: random.Random) -> object:
    """One operation that is no group message: the same one for the same dice."""
    store = twin.stores[int(dice.random() < 0.2)]
    home = dice.choice((*HOMES, "normal"))
    slot = dice.randrange(SLOTS)
    base = L.SLOTS + L.SLOT_WORDS * slot
    token = twin.segments[0].words[base + L.SLOT_TOKEN]
    process = twin.segments[0].words[base + L.SLOT_PROCESS]
    what = dice.random()
    if what < 0.15:
        name = home + "m" * (home[-1] == "!")
        body = bytes(dice.choice((20, 150, 5000)))
        try:
            store.send(name, home_of(name), body, 20, HOUR_NS, by_name=True)
        except ChannelFull:
            return "full"
    elif what < 0.65:
        return store.take([home], limit=dice.choice((1, 64)))
    elif what < 0.92:
        return store.take([home], slot=slot, token=process) if token else None
    elif what < 0.94 and token:
        store.slots.withdraw(slot, HOMES)
    elif what < 0.96:
        twin.bells.dead.add(process)
    elif what < 0.99:
        number = dice.getrandbits(40)
        return None if token else store.slots.claim(number, process=number)
    elif what < 0.993:
        store.flush()
    return None


@pytest.mark.parametrize("seed", range(6))
def test_both_ways_write_the_same_words(
    make_site: MakeSite, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever happens in whatever order, memory is the same, who is rung, and every answer."""
    idents = Idents()
    monkeypatch.setattr(table, "new_ident", idents)
    twins = make_site(), make_site(straight=False)
    chance = random.Random(seed)
    for step in range(1200):
        choice, seed_of_step = chance.random(), chance.random()
        answers: list[object] = []
        for twin in twins:
            idents.begin(step)
            dice = random.Random(seed_of_step)
            twin.rings.clear()
            if choice < 0.4:
                message = random_message(dice)
                twin.stock(message)
                store = twin.stores[int(dice.random() < 0.2)]
                dead, drops = store.send_group(message)
                answers.append((sorted(dead), sorted(drops)))
            else:
                answers.append(do_something(twin, dice))
        if choice > 0.98:
            clock.advance(chance.choice((0.5, 3, 80)))
        assert answers[0] == answers[1], f"after step {step}"
        assert set(twins[0].rings) == set(twins[1].rings), f"after step {step}"
        assert twins[0].content() == twins[1].content(), f"after step {step}"
    assert not twins[0].problems()
    assert twins[0].ways[True] > 60, twins[0].ways
    assert not twins[1].ways[True]


def ordinary(size: int = 100, homes: int = 2) -> GroupMessage:
    envelopes = [Envelope(f"h{number}!", 7, 3) for number in range(homes)]
    return GroupMessage("g", bytes(size), envelopes, lambda _: 100, HOUR_NS)


def way_of(twin: Site, message: GroupMessage) -> bool:
    """Whether a message went straight, at the first try or with what was stocked for it."""
    before = twin.ways[True]
    assert twin.stores[0].send_group(message) == ([], [])
    return twin.ways[True] > before


@pytest.mark.parametrize("size", [0, 1, 24, 25, 4095, 4096, 200_000, L.LARGEST_QUICK * 32 - 40])
def test_bodies_of_every_size_go_straight(make_site: MakeSite, size: int) -> None:
    """What is received is what was sent. The first message makes records, the second finds them."""
    twin = make_site(4 << 20)
    for number in range(4):
        message = ordinary(size)._replace(body=bytes([number]) * size)
        assert way_of(twin, message) == (number > 1)
        for home in ("h0!", "h1!"):
            (popped,) = twin.stores[1].take([home]).messages
            assert (popped.name, popped.body) == ("g", message.body)
        assert not twin.problems()


def test_what_no_quick_list_holds_does_not(make_site: MakeSite) -> None:
    """A body that is one byte too large, and more homes than one plan takes."""
    twin = make_site(8 << 20)
    for message in (ordinary(L.LARGEST_QUICK * 32 - 39), ordinary(20, 25)):
        for _ in range(3):
            assert not way_of(twin, message)
            for envelope in message.envelopes:
                assert twin.stores[0].take([envelope.name]).messages
    assert way_of(twin, ordinary(20, 24))


def test_a_burst_is_stocked_for(make_site: MakeSite) -> None:
    """A hundred messages that nobody has taken yet: extents are cut by the dozen."""
    twin = make_site(4 << 20)
    assert sum(way_of(twin, ordinary()) for _ in range(100)) == 98
    assert not twin.problems()


def test_damage_is_left_to_the_general_case(make_site: MakeSite) -> None:
    """It says what is wrong; nothing is written where the damage points to."""
    twin = make_site()
    for _ in range(3):
        way_of(twin, ordinary())
    segment, store = twin.segments[0], twin.stores[0]
    words = segment.words
    quick = L.QUICK_FOR[(8 * L.BODY_DATA + 100 + 31) // 32]
    tail = store.records.known["h0!"][0] + L.CH_TAIL
    beyond = (0, L.HEAP_END, segment.heap_start + 1, segment.backed_end)
    for word, damaged in [
        *((quick, 1 << L.COUNT_SHIFT | extent) for extent in beyond),
        *((tail, extent) for extent in beyond),
    ]:
        good = words[word]
        words[word] = damaged
        assert segment.transact(store._fanout._send_straight, ordinary(), 1) is None
        words[word] = good
    assert not twin.problems()
    assert way_of(twin, ordinary())
