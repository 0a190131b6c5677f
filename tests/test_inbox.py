"""Inboxes: messages drained from a home, waiting under their full names."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc._receive import inbox
from asgi_ipc._receive.inbox import Entry, Inboxes

from .interrupting import interrupted

NEVER_NS = 1 << 62


@pytest.fixture
def inboxes() -> Inboxes:
    return Inboxes()


def put(
    inboxes: Inboxes,
    name: str,
    body: bytes = b"",
    deadline_ns: int = NEVER_NS,
    *,
    is_counted: bool = False,
) -> None:
    inboxes.put(Entry(name[: name.index("!") + 1], body, deadline_ns, is_counted), [name])


def pop(inboxes: Inboxes, key: str, now_ns: int) -> Entry | None:
    """Take from a full name or a home."""
    if key.endswith("!"):
        found = inboxes.pop_home(key, now_ns)
        return None if found is None else found[1]
    return inboxes.pop(key, now_ns)


def bodies(inboxes: Inboxes, name: str, now_ns: int = 0) -> list[bytes]:
    found = []
    while (one := pop(inboxes, name, now_ns)) is not None:
        found.append(one.body)
    return found


def test_a_name_gives_its_messages_in_order() -> None:
    """First in, first out, and only its own."""
    inboxes = Inboxes()
    for name, body in (("a!x", b"1"), ("a!y", b"2"), ("a!x", b"3")):
        put(inboxes, name, body)
    assert (inboxes.count, inboxes.depth("a!x"), inboxes.depth("a!z")) == (3, 2, 0)
    assert bodies(inboxes, "a!x") == [b"1", b"3"]
    assert bodies(inboxes, "a!y") == [b"2"]
    assert inboxes.count == 0


def test_a_home_gives_everything_below_it_in_order() -> None:
    """``a!`` stands for all of its names, in the order the messages came."""
    inboxes = Inboxes()
    for name, body in (("a!x", b"1"), ("b!x", b"2"), ("a!y", b"3"), ("a!x", b"4")):
        put(inboxes, name, body)
    assert bodies(inboxes, "a!x")[:1] == [b"1"]
    for name, body in (("a!x", b"5"), ("a!y", b"6")):
        put(inboxes, name, body)
    assert bodies(inboxes, "a!") == [b"3", b"5", b"6"]
    assert bodies(inboxes, "b!") == [b"2"]


def test_what_a_counted_message_left_is_said(inboxes: Inboxes) -> None:
    """Read, by name or through the home, or expired: its name has to be settled, a group's not."""
    for name, deadline_ns in (("a!x", 5), ("a!x", 50), ("a!y", 50), ("a!z", 7), ("a!z", 60)):
        put(inboxes, name, deadline_ns=deadline_ns, is_counted=True)
    put(inboxes, "a!group", deadline_ns=5)
    assert (inboxes.held("a!x"), inboxes.held("a!group"), inboxes.due_ns) == (2, 0, 5)
    assert inboxes.pop("a!x", 6) is not None
    assert (inboxes.read, inboxes.held("a!x")) == (["a!x", "a!x"], 0)
    assert inboxes.pop_home("a!", 6) is not None
    assert inboxes.read == ["a!x", "a!x", "a!y"]
    inboxes.read.clear()
    inboxes.expire(8)
    assert (inboxes.read, inboxes.held("a!z")) == (["a!z"], 1)
    assert 60 <= inboxes.due_ns < 10_000
    put(inboxes, "a!alone", is_counted=True)
    assert inboxes.pop_alone("a!", "a!alone", 8) is not None
    assert inboxes.read == ["a!z", "a!alone"]


def test_group_messages_are_counted_by_name(inboxes: Inboxes) -> None:
    """Those that live, and none that was sent directly, whatever it counts on."""
    assert inboxes.group_depth("a!x", 0) == 0
    for deadline_ns in (5, 50, 50):
        inboxes.put(Entry("a!", b"group", deadline_ns, is_group=True), ["a!x"])
    put(inboxes, "a!x", is_counted=True)
    put(inboxes, "a!x")
    inboxes.put(Entry("a!", b"group", 50, is_group=True), ["a!y"])
    assert inboxes.group_depth("a!x", 6) == 2
    assert inboxes.group_depth("a!y", 6) == 1


def test_the_next_of_a_home_is_known_before_it_is_taken(inboxes: Inboxes) -> None:
    """Whose it is, whatever was read by name meanwhile."""
    assert inboxes.next_name("a!") is None
    inboxes.put(Entry("a!", b"group", NEVER_NS), ["a!x", "a!y"])
    put(inboxes, "a!z")
    assert inboxes.next_name("a!") == "a!x"
    inboxes.pop("a!x", 0)
    assert inboxes.next_name("a!") == "a!y"
    for name in ("a!y", "a!z"):
        assert inboxes.pop_home("a!", 0) is not None, name
    assert inboxes.next_name("a!") is None


def test_the_sweep_removes_the_expired_of_every_name() -> None:
    """Nobody need ever ask for a name again."""
    inboxes = Inboxes()
    for number in range(10):
        put(inboxes, f"a!{number % 3}", bytes([number]), 5 if number % 2 else 50)
    inboxes.expire(10)
    assert inboxes.count == 5
    assert bodies(inboxes, "a!", 10) == [bytes([number]) for number in (0, 2, 4, 6, 8)]


def test_clearing_forgets_everything() -> None:
    """After a flush nothing is left under any name."""
    inboxes = Inboxes()
    put(inboxes, "a!x")
    inboxes.clear()
    assert inboxes.count == 0
    assert bodies(inboxes, "a!") == bodies(inboxes, "a!x") == []


def test_a_home_nobody_asks_for_keeps_no_dead_entries() -> None:
    """What was read by its full name is let go of, also below a home that is read as a whole."""
    inboxes = Inboxes()
    for _ in range(100):
        put(inboxes, "a!stays", b"stays")
    inboxes.pop_home("a!", 0)
    for _ in range(100):
        inboxes.put(Entry("a!", b"gone", NEVER_NS), ["a!x", "a!y"])
        for name in ("a!x", "a!y"):
            inboxes.pop(name, 0)
    gc.collect()
    alive = [one.body for one in gc.get_objects() if type(one) is Entry]
    assert alive.count(b"gone") == 0
    assert alive.count(b"stays") == 99


def test_a_group_message_is_one_entry_under_all_its_names() -> None:
    """Each member gets it once, by its name or through the home, in the order of arrival."""
    inboxes = Inboxes()
    put(inboxes, "a!y", b"first")
    inboxes.put(Entry("a!", b"group", NEVER_NS), ["a!x", "a!y", "a!z"])
    put(inboxes, "a!x", b"last")
    assert (inboxes.count, inboxes.depth("a!x"), inboxes.depth("a!y")) == (5, 2, 2)
    assert bodies(inboxes, "a!x") == [b"group", b"last"]
    found = [inboxes.pop_home("a!", 0) for _ in range(4)]
    assert [one and (one[0], one[1].body) for one in found] == [
        ("a!y", b"first"),
        ("a!y", b"group"),
        ("a!z", b"group"),
        None,
    ]
    assert inboxes.count == 0


NAMES = st.sampled_from(["a!x", "a!y", "a!z", "b!x"])
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.integers(0, 9)),
    st.tuples(st.just("pop"), st.one_of(NAMES, st.sampled_from(["a!", "b!"])), st.just(0)),
    st.tuples(st.just("expire"), st.just(""), st.just(0)),
    st.tuples(st.just("tick"), st.just(""), st.integers(1, 4)),
)


@given(st.lists(STEPS, max_size=80))
def test_any_sequence_agrees_with_one_list(steps: list[tuple[str, str, int]]) -> None:
    """Inboxes behave as one list of messages that is searched from the front."""
    inboxes, model, now = Inboxes(), list[tuple[str, bytes, int]](), 0
    for number, (verb, name, amount) in enumerate(steps):
        body = str(number).encode()
        if verb == "put":
            put(inboxes, name, body, now + amount)
            model.append((name, body, now + amount))
        elif verb == "tick":
            now += amount
        elif verb == "expire":
            inboxes.expire(now)
            model = [one for one in model if one[2] > now]
        else:
            wanted = [
                one
                for one in model
                if (one[0].startswith(name) if name.endswith("!") else one[0] == name)
            ]
            live = [one for one in wanted if one[2] > now]
            found = pop(inboxes, name, now)
            assert (found and found.body) == (live[0][1] if live else None)
            met = wanted if not live else wanted[: wanted.index(live[0]) + 1]
            model = [one for one in model if one not in met]
        assert inboxes.count == len(model)


def filled() -> Inboxes:
    """Make inboxes with something of every kind: alone, several, of a group, expired."""
    inboxes = Inboxes()
    put(inboxes, "a!x", b"old", 5, is_counted=True)
    put(inboxes, "a!x", b"1", is_counted=True)
    put(inboxes, "a!y", b"2")
    inboxes.put(Entry("a!", b"3", NEVER_NS), ["a!x", "a!y", "a!z"])
    put(inboxes, "b!x", b"4", is_counted=True)
    return inboxes


def contents(inboxes: Inboxes) -> list[tuple[str, bytes]]:
    """Take everything out by full name, in order."""
    return [
        (name, body)
        for name in sorted(inboxes.names())
        for body in bodies(inboxes, name, now_ns=10)
    ]


TAKES: dict[str, Callable[[Inboxes], object]] = {
    "alone": lambda inboxes: inboxes.pop_alone("a!", "a!z", 10),
    "the last of its home": lambda inboxes: inboxes.pop_alone("b!", "b!x", 10),
    "first": lambda inboxes: inboxes.pop("a!x", 10),
    "second": lambda inboxes: (inboxes.pop_home("a!", 10), inboxes.pop("a!x", 10))[1],
    "of a home": lambda inboxes: inboxes.pop_home("a!", 10),
    "the only one of a home": lambda inboxes: inboxes.pop_home("b!", 10),
    "expired": lambda inboxes: inboxes.expire(10),
}


@pytest.mark.parametrize("take", TAKES)
def test_an_interrupt_loses_the_message_in_hand_alone(take: str) -> None:
    """Wherever it comes while one is taken, the others are there, in order, and count."""
    for place in range(1000):
        inboxes = filled()
        before = contents(filled())
        with interrupted(place, [inbox]) as interrupt:
            TAKES[take](inboxes)
        if not interrupt.where:
            break
        for name, held in {"a!x": 2, "b!x": 1}.items():  # a settlement says what is here
            assert inboxes.held(name) == held or name in inboxes.read, interrupt.where
        count = inboxes.count
        left = contents(inboxes)
        lost = list(before)
        for one in left:
            lost.remove(one)
        assert len(lost) <= (2 if take == "second" else 1), interrupt.where
        assert [one for one in before if one not in lost] == left, interrupt.where
        assert count - len(left) in (0, 1), interrupt.where  # what is expired counts till it goes
        assert not inboxes.names(), interrupt.where
        assert not any(inboxes.has(key) for key in ("a!", "b!", "a!x", "b!x")), interrupt.where
        put(inboxes, "a!x", b"next")
        assert bodies(inboxes, "a!") == [b"next"]
    assert place > 5


def test_putting_goes_on_after_an_interrupt() -> None:
    """What is put again is put once."""
    names = ["a!x", "a!y", "a!z", "a!new"]
    done = filled()
    done.put(Entry("a!", b"put", NEVER_NS), names)
    expected = contents(done)
    for place in range(1000):
        inboxes = filled()
        entry = Entry("a!", b"put", NEVER_NS)
        with interrupted(place, [inbox]) as interrupt:
            inboxes.put(entry, names)
        if not interrupt.where:
            break
        inboxes.put(entry, names)
        assert contents(inboxes) == expected, interrupt.where
    assert place > 10
