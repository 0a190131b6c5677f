"""Messages to bytes and back: what survives, what is refused, and what the refusal says."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import uuid
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc._store.codec import PLAIN, RESERVED_KEY
from asgi_ipc.exceptions import InvalidMessage, SegmentCorrupt, UnserialisableValue


class SafeText(str):
    """As Django marks safe strings."""

    __slots__ = ()


class Colour(enum.IntEnum):
    RED = 1


class Headers(dict[str, Any]):
    pass


def there_and_back(message: dict[Any, Any]) -> dict[Any, Any]:
    return PLAIN.decode(PLAIN.encode(message))


KEYS = st.one_of(
    st.text(), st.binary(), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.none()
).filter(lambda key: key != RESERVED_KEY)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner)),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, VALUES))
def test_what_goes_in_comes_out(message: dict[Any, Any]) -> None:
    """Every message of the plain types survives, its key order included."""
    back = there_and_back(message)
    assert back == message
    assert list(back) == list(message)
    assert type(back) is dict


@pytest.mark.parametrize(
    "value",
    [
        "",
        "é\0\U0001f600",
        b"",
        bytes(range(256)),
        0,
        -(2**63),
        2**63,
        2**64 - 1,
        1.5,
        -0.0,
        math.inf,
        -math.inf,
        5e-324,
        None,
        True,
        False,
        [],
        {},
        [[[]]],
        {"a": {"b": [1, {"c": b"d"}]}},
    ],
)
def test_a_plain_value_keeps_its_type(value: Any) -> None:
    """A value comes back equal and of the same type."""
    back = there_and_back({"value": value})["value"]
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_nan_comes_back() -> None:
    """Not a number stays not a number."""
    assert math.isnan(there_and_back({"value": math.nan})["value"])


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (SafeText("<b>"), "<b>"),
        (Colour.RED, 1),
        (Headers(a=1), {"a": 1}),
        ([(1,), SafeText("x")], [[1], "x"]),
    ],
)
def test_a_relative_becomes_its_base_type(value: Any, becomes: Any) -> None:
    """Tuples become lists, buffers bytes, subclasses what they are subclasses of."""
    back = there_and_back({"value": value})["value"]
    assert back == becomes
    assert type(back) is type(becomes)


@pytest.mark.parametrize("text", ["\udcff", "name-\udce9.txt"])
def test_lone_surrogates_survive(text: str) -> None:
    """A file name from the operating system is carried as a value, a key, and deep inside."""
    message = {"name": text, text: [text, {"x": (text,)}], "plain": "é"}
    assert there_and_back(message) == {"name": text, text: [text, {"x": [text]}], "plain": "é"}


@pytest.mark.parametrize("key", [3, -1, 2.5, None, True, b"raw", ("a", 1), ((1, ("b",)), b"c"), ()])
def test_a_key_need_not_be_a_str(key: Any) -> None:
    """Whatever is hashable and has a msgpack form is a key, tuples included."""
    assert there_and_back({key: 1, "nested": {key: 2}}) == {key: 1, "nested": {key: 2}}


def test_the_message_is_neither_changed_nor_kept() -> None:
    """What comes back shares nothing with what went in."""
    inner = [1, 2]
    message = {"list": inner}
    back = there_and_back(message)
    inner.append(3)
    assert back == {"list": [1, 2]}
    assert message == {"list": [1, 2, 3]}


@pytest.mark.parametrize("message", [None, [], "text", b"", 3, [("a", 1)], object()])
def test_only_a_dict_is_a_message(message: Any) -> None:
    """Anything else is refused as upstream did, by an AssertionError."""
    with pytest.raises(InvalidMessage, match="must be a dict") as caught:
        PLAIN.encode(message)
    assert isinstance(caught.value, AssertionError)


def test_the_reserved_key_is_refused() -> None:
    """``__asgi_channel__`` belongs to the layers."""
    with pytest.raises(InvalidMessage, match="__asgi_channel__"):
        PLAIN.encode({RESERVED_KEY: "x"})
    assert there_and_back({"inner": {RESERVED_KEY: 1}})  # only at the top


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"a": {1, 2}}, r"message\['a'\]: set"),
        ({"user": {"joined": datetime.datetime(2026, 1, 1)}}, r"\['user'\]\['joined'\]: datetime"),
        ({"prices": [1, decimal.Decimal("1.5")]}, r"\['prices'\]\[1\]: Decimal"),
        ({"id": uuid.UUID(int=1)}, r"\['id'\]: UUID"),
        ({"big": [[2**64]]}, r"\['big'\]\[0\]\[0\]: the integer 18446744073709551616"),
        ({"small": -(2**63) - 1}, r"\['small'\]: the integer"),
        ({"f": lambda: 0}, r"\['f'\]: function"),
        ({"o": ({"deep": object()},)}, r"\['o'\]\[0\]\['deep'\]: object"),
        ({frozenset({1}): 1}, r"frozenset"),
        ({"c": 1j}, r"\['c'\]: complex"),
        ({"r": range(3)}, r"\['r'\]: range"),
        ({"g": (x for x in "ab")}, r"\['g'\]: generator"),
        ({"s": "\udcff", "bad": {1}}, r"\['bad'\]: set"),
    ],
)
def test_a_value_with_no_form_is_refused_by_its_path(message: Any, path: str) -> None:
    """The refusal is a TypeError that leads to the value."""
    with pytest.raises(UnserialisableValue, match=path) as caught:
        PLAIN.encode(message)
    assert isinstance(caught.value, TypeError)


def test_a_message_inside_itself_is_refused() -> None:
    """A cycle ends in an error, at once, however it branches."""
    loop: list[Any] = []
    loop.extend([loop, loop, loop])
    with pytest.raises(UnserialisableValue, match="deep"):
        PLAIN.encode({"a": loop})


def test_deep_nesting_is_carried_or_refused_but_never_lost() -> None:
    """What is accepted can be read back."""
    for depth in (100, 400, 500, 505, 509, 510, 511, 512, 600, *range(1020, 1028), 2000):
        value: Any = 1
        for _ in range(depth):
            value = [value]
        try:
            body = PLAIN.encode({"v": value})
        except UnserialisableValue:
            assert depth > 400
        else:
            assert PLAIN.encode(PLAIN.decode(body)) == body  # to compare the values goes too deep


@given(st.dictionaries(st.one_of(KEYS, st.tuples(KEYS, KEYS)), st.text(st.characters())))
def test_surrogates_and_tuple_keys_together_survive(message: dict[Any, Any]) -> None:
    """The slow path carries what the fast one cannot, for any mixture."""
    assert there_and_back(message) == message


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x81", msgpack.packb([1]), b"\x80\x80", b"\x93", b"\x81\x90\x80\x80"]
)
def test_bytes_that_are_no_message_are_an_error(body: bytes) -> None:
    """Damaged bytes end in SegmentCorrupt, never in something that is not a dict."""
    with pytest.raises(SegmentCorrupt):
        PLAIN.decode(body)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_dict_or_the_one_error(body: bytes) -> None:
    """No bytes whatever get more out of the decoder than that."""
    try:
        message = PLAIN.decode(body)
    except SegmentCorrupt:
        return
    assert isinstance(message, dict)


def test_a_deep_tuple_is_a_key() -> None:
    """Nested as deeply as msgpack packs it."""
    key: Any = ()
    for _ in range(200):
        key = (key, 1)
    assert there_and_back({key: 1}) == {key: 1}


@pytest.mark.parametrize(
    "value", [msgpack.Timestamp(-5, 7), msgpack.ExtType(3, b"x"), [msgpack.Timestamp(2**40, 0)]]
)
def test_msgpacks_own_types_are_carried(value: Any) -> None:
    """Neither is of the specification; both come back as they were."""
    assert there_and_back({"value": value, (value if type(value) is not list else 1): 1}) == {
        "value": value,
        (value if type(value) is not list else 1): 1,
    }


def test_a_message_in_itself_is_refused_with_its_path() -> None:
    """However often it is in itself."""
    message: dict[str, Any] = {}
    message["a"] = message["b"] = message
    with pytest.raises(UnserialisableValue, match=r"message\['a'\]\['a'\].*nesting deeper"):
        PLAIN.encode(message)
