"""Buffers for large bodies: nobody shares one, and what is given back is used again."""

from __future__ import annotations

import pytest

from asgi_ipc._memory import scratch
from asgi_ipc._memory.scratch import borrow, give_back


@pytest.fixture(autouse=True)
def no_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without what other tests gave back."""
    monkeypatch.setattr(scratch, "_spare", [])


def test_a_buffer_has_the_size_asked_for() -> None:
    """To the byte, whatever is behind it."""
    for size in (1, 65_536, 65_537, 3_000_000):
        assert len(borrow(size)) == size


def test_two_borrowers_never_share() -> None:
    """What one writes the other does not see, whatever lay ready."""
    give_back(borrow(70_000))
    one, other = borrow(70_000), borrow(70_000)
    one[:] = bytes([1]) * 70_000
    other[:] = bytes([2]) * 70_000
    assert set(one) == {1}
    assert set(other) == {2}


def test_what_was_given_back_is_used_again() -> None:
    """Also for a smaller body; a larger one gets memory of its own."""
    first = borrow(200_000)
    memory = first.obj
    give_back(first)
    again = borrow(1000)
    assert again.obj is memory
    give_back(again)
    assert borrow(1_000_000).obj is not memory


def test_what_was_given_back_cannot_be_touched() -> None:
    """A view that is used too late is an error, not somebody else's message."""
    view = borrow(100)
    give_back(view)
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_little_is_kept() -> None:
    """Two buffers at most, and none of a size that is needed once a day."""
    views = [borrow(100_000) for _ in range(5)]
    for view in [*views, borrow(scratch._LARGEST_KEPT + 1)]:
        give_back(view)
    assert len(scratch._spare) == 2
    give_back(borrow(scratch._LARGEST_KEPT + 1))
    assert all(len(one) <= scratch._LARGEST_KEPT for one in scratch._spare)
