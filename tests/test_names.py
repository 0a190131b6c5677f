"""Channel and group names: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import enum
import re
import subprocess
import sys
from collections import UserString

import pytest
from django.db.models import TextChoices
from django.utils.functional import lazystr
from django.utils.safestring import SafeString
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.exceptions import InvalidName
from asgi_ipc.names import (
    GROUP_NAME,
    MAX_NAME_LENGTH,
    check_channel,
    check_group,
    home_of,
    name_for,
    text_of,
)

PLAIN = ["a", "websocket.connect", "a-b_c.D9", "-", "x" * 99]
SINGLE = ["reply?abc", "a?b.c-d_e"]
SPECIFIC = ["daphne.response.abc!", "specific.x!abc", "a!b.c-d_9"]


@pytest.mark.parametrize("name", [*PLAIN, *SINGLE, *SPECIFIC])
def test_a_valid_channel_name_comes_back(name: str) -> None:
    """A name that keeps the rules is returned as it is."""
    assert check_channel(name) == name


@pytest.mark.parametrize("name", PLAIN)
def test_a_valid_group_name_comes_back(name: str) -> None:
    """A group's name is a channel's without the marks."""
    assert check_group(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("x" * 100, "100 characters"),
        ("a b", "' ' at position 1"),
        ("a\n", r"'\\n' at position 1"),
        ("a!٣", "position 2"),
        ("é", "position 0"),
        ("?a", "must not begin"),
        ("!a", "must not begin"),
        ("a?b?c", "second"),
        ("a!b!c", "second"),
        ("a?b!c", "second"),
        ("reply?", "new_channel"),
        ("a/b", "position 1"),
    ],
)
def test_a_bad_channel_name_is_refused_with_its_reason(name: str, says: str) -> None:
    """The refusal is a TypeError that says which rule was broken, and where."""
    with pytest.raises(InvalidName, match=says) as caught:
        check_channel(name)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", ["", "x" * 100, "a!", "a?b", "a b", "a\n", "ü"])
def test_a_bad_group_name_is_refused(name: str) -> None:
    """A group's name has no marks and the same alphabet."""
    with pytest.raises(InvalidName, match="group name"):
        check_group(name)


class Queue(str, enum.Enum):  # noqa: UP042 - what people wrote before StrEnum, and still do
    """``str()`` of a member of it is ``"Queue.THUMBS"``."""

    THUMBS = "thumbs"


class Modern(enum.StrEnum):
    """``str()`` of a member of it is its value."""

    THUMBS = "thumbs"


class Choices(TextChoices):  # type: ignore[misc]  # Django has no types here
    """Django's."""

    THUMBS = "thumbs", "Thumbnails"


class Named(str):
    """A str that prints as something else, and is cut to something else again."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"

    def find(self, *_: object) -> int:
        """Find nothing."""
        return -1


THUMBS = [
    Queue.THUMBS,
    Modern.THUMBS,
    Choices.THUMBS,
    Named("thumbs"),
    SafeString("thumbs"),
    lazystr("thumbs"),
    UserString("thumbs"),
]


@pytest.mark.parametrize("name", THUMBS, ids=lambda name: type(name).__name__)
def test_a_name_is_what_its_value_says(name: object) -> None:
    """A plain str of the value, whatever ``str()`` makes of it; a lazy string's text."""
    for named in (check_channel(name), check_group(name), name_for(name)):  # type: ignore[arg-type]
        assert named == "thumbs"
        assert type(named) is str


def test_the_value_of_a_name_is_held_to_the_rules() -> None:
    """And the refusal shows it."""
    with pytest.raises(InvalidName, match="channel name 'a b' has ' '"):
        check_channel(lazystr("a b"))
    with pytest.raises(InvalidName, match="group name 'a b' has ' '"):
        check_group(Named("a b"))


@pytest.mark.parametrize("name", [None, 3, b"a", ["a"], enum.Enum("Kind", "A")])
def test_what_is_no_text_has_none(name: object) -> None:
    """Nothing is made a name by what ``str()`` says of it."""
    assert text_of(name) is None


@pytest.mark.parametrize("name", [None, 3, b"a", ["a"]])
def test_a_name_that_is_no_str_is_refused_by_type(name: object) -> None:
    """Bytes, numbers and lists are no names."""
    for check in (check_channel, check_group):
        with pytest.raises(InvalidName, match=type(name).__name__):
            check(name)


def test_a_specific_name_is_received_from_its_home() -> None:
    """The Channels 1 receive takes ``a!`` and not ``a!b``; it names what to receive from."""
    assert check_channel("a!", receive=True) == "a!"
    assert check_channel("a!b") == "a!b"
    with pytest.raises(InvalidName, match="'a!'"):
        check_channel("a!b", receive=True)


@pytest.mark.parametrize(
    ("name", "home"), [("a", "a"), ("a?b", "a?b"), ("a!", "a!"), ("a!b", "a!"), ("a.b!c.d", "a.b!")]
)
def test_the_home_ends_at_the_exclamation_mark(name: str, home: str) -> None:
    """Only process-specific names live in a queue of another name."""
    assert home_of(name) == home


@given(st.text(st.characters(codec="utf-8"), max_size=110))
def test_the_rule_is_the_specifications(name: str) -> None:
    """A name is accepted if and only if the specification's pattern takes all of it."""
    rule = re.compile(r"[a-zA-Z0-9\-_.]+((\?|!)[a-zA-Z0-9\-_.]*)?")
    allowed = bool(rule.fullmatch(name)) and len(name) < 100 and not name.endswith("?")
    try:
        check_channel(name)
    except InvalidName:
        assert not allowed
    else:
        assert allowed


@given(st.from_regex(r"[a-c?!]{1,6}", fullmatch=True))
def test_every_arrangement_of_marks_is_judged_by_the_rule(name: str) -> None:
    """Marks may stand once, inside, and an interrogation mark not at the end."""
    allowed = bool(re.fullmatch(r"[a-c]+([?!][a-c]*)?", name)) and not name.endswith("?")
    try:
        check_channel(name)
    except InvalidName:
        assert not allowed
    else:
        assert allowed


# -- names for any text ------------------------------------------------------------------

NAMES = {
    "room 1": "room_1..A4A-n",
    "büro": "b_ro..",
    "chat/ä": "chat_..",
    "日本": "_..",
    "": "..",
    "a!b": "a_b..",
    "a..b": "a..b..",
    "x" * 100: "x" * 75 + "..",
    "\udcff": "_..",
}


@pytest.mark.parametrize("topic", PLAIN)
def test_a_topic_that_is_a_name_stays_as_it_is(topic: str) -> None:
    """Readable where it can be."""
    assert name_for(topic) == topic


@pytest.mark.parametrize("topic", NAMES)
def test_a_topic_that_is_no_name_gets_one(topic: str) -> None:
    """What can be read of it, and a digest."""
    name = name_for(topic)
    assert name.startswith(NAMES[topic])
    assert check_group(name) == check_channel(name) == name
    assert len(name.rpartition("..")[2]) == 22


def test_a_topics_name_is_the_same_in_another_process() -> None:
    """Whatever its hash seed; and in the next release, so it is written out here."""
    code = "from asgi_ipc.names import name_for; print(name_for('room 1'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name_for("room 1") == "room_1..A4A-nOXnnsApXYTDFSfL3g"


TOPICS = st.one_of(
    st.text(max_size=120), st.text(max_size=120).map(name_for), st.from_regex(r"[a ._]{0,6}")
)


@given(TOPICS, TOPICS)
def test_two_topics_never_share_a_name(one: str, other: str) -> None:
    """Not even if one of them is the name of the other; and every name is valid."""
    names = name_for(one), name_for(other)
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert GROUP_NAME.match(name)
        assert len(name) <= MAX_NAME_LENGTH


def test_a_topic_is_a_text() -> None:
    """Nothing else has a name."""
    with pytest.raises(InvalidName, match="topic must be a str, not int: 7"):
        name_for(7)  # type: ignore[arg-type]
