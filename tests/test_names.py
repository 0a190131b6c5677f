"""Channel and group names: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.exceptions import InvalidName
from asgi_ipc.names import check_channel, check_group, home_of

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
