"""The judge sees every kind of broken promise in a journal, and none in one that is sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .journal import Fact
from .judge import judge
from .plan import GROUPS

SECOND = 1_000_000_000


class Story:
    """Facts of a small site: ``a`` sends, ``b`` reads, both live to the end."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.now_ns = SECOND
        self.calls = 0

    def say(self, who: str, kind: str, *more: Any, call: int = 0) -> None:
        """Add a fact."""
        self.now_ns += 1000
        self.facts.append(Fact(self.now_ns, who, kind, call, list(more)))

    def call(self, who: str, what: str, *arguments: Any, end: tuple[Any, ...] = ("ok",)) -> int:
        """Add a call and its end, unless that is empty."""
        self.calls += 1
        self.say(who, "do", what, 1, *arguments, call=self.calls)
        if end:
            self.say(who, "end", *end, call=self.calls)
        return self.calls

    def send(self, channel: str, expiry: float | None = None, outcome: str = "ok") -> int:
        """Let ``a`` send."""
        return self.call("a", "send", channel, expiry, end=(outcome,))

    def get(self, channel: str, number: int, who: str = "b") -> None:
        """Let somebody receive what ``a`` sent."""
        self.call(who, "receive", [channel], None, end=("got", channel, ["a", 1, number]))

    def judge(self) -> list[str]:
        """End all that live, and judge."""
        dead = {fact.more[0] for fact in self.facts if fact.kind == "gone"}
        if not any(fact.kind == "census" for fact in self.facts):
            for group in GROUPS:
                self.say("census", "census", group, [])
        for who in {"a", "b"} - dead:
            self.say(who, "settled")
            self.say("site", "gone", who, 0)
        self.now_ns += 60 * SECOND
        self.say("drain", "born", 1, "drain")
        self.now_ns += SECOND
        self.call("drain", "receive", ["h!"], 0, end=("got", None, None))
        counts = ("messages_pending", "messages_count", "received_count", "expired_count")
        self.say("drain", "statistics", dict.fromkeys((*counts, "flushed_count"), 0))
        return judge(self.facts)

    def kill(self, who: str) -> None:
        """Kill a process."""
        self.say("site", "event", "kill", who)
        self.say("site", "gone", who, -9)

    def census(self, *members: str) -> None:
        """Have members in the first group when all have settled."""
        for group in GROUPS:
            self.say("census", "census", group, members if group == GROUPS[0] else [])


def a_sound_site(story: Story) -> None:
    story.get("c", story.send("c"))
    story.send("c", 0.1)  # expires
    story.send("c", outcome="refused")
    story.send("c", outcome="interrupted")


def a_message_still_queued(story: Story) -> None:
    story.get("c", story.send("c"), who="drain")


def a_reader_killed_with_one_in_hand(story: Story) -> None:
    story.send("c")
    story.call("b", "receive", ["c"], None, end=())
    story.kill("b")


def an_inbox_that_died_with_its_process(story: Story) -> None:
    story.get("h!x", story.send("h!x"))
    for _ in range(9):
        story.send("h!x")
    story.kill("b")


def a_member_that_gets_everything(story: Story) -> None:
    story.call("b", "join", "g0", "h!x")
    story.get("h!x", story.call("a", "send_group", "g0", []))
    story.census("h!x")


def a_member_that_left(story: Story) -> None:
    story.call("b", "join", "g0", "h!x")
    story.call("b", "leave", "g0", "h!x")
    story.call("a", "send_group", "g0", [])


def a_member_that_joined_while_its_layer_was_closed(story: Story) -> None:
    story.say("a", "do", "close", 2, call=100)
    story.call("a", "join", GROUPS[0], "h!a")
    story.say("a", "end", "ok", call=100)
    story.call("b", "members", GROUPS[0], end=("ok", []))
    story.census()


def a_layer_closed_after_the_last_change(story: Story) -> None:
    story.call("a", "join", GROUPS[0], "h!a")
    story.call("a", "close")
    story.census()


def an_orphan_that_has_ended(story: Story) -> None:
    story.say("c", "born", 77, "os")  # its parent was killed before it wrote down the fork
    story.call("c", "join", "g0", "h!x")
    story.say("site", "gone", "", 0, 77)
    story.census()


def a_message_that_expires_while_channels_are_emptied(story: Story) -> None:
    story.send("c", 60.5)


def one_asked_to_end_before_it_could_know(story: Story) -> None:
    story.say("site", "gone", "c", -15)


def lost(story: Story) -> None:
    story.send("c")


def lost_before_the_reader_that_died_had_begun(story: Story) -> None:
    story.call("b", "receive", ["c"], None, end=())
    story.kill("b")
    story.send("c")


def two_lost_with_one_reader(story: Story) -> None:
    story.send("c")
    story.send("c")
    story.call("b", "receive", ["c"], None, end=())
    story.kill("b")


def lost_by_a_cancel(story: Story) -> None:
    story.send("c")
    story.call("b", "receive", ["c"], None, end=("cancelled",))


def doubled(story: Story) -> None:
    number = story.send("c")
    story.get("c", number)
    story.get("c", number)


def refused_and_yet_sent(story: Story) -> None:
    story.get("c", story.send("c", outcome="refused"))


def out_of_nowhere(story: Story) -> None:
    story.get("c", 77)


def to_the_wrong_channel(story: Story) -> None:
    story.get("d", story.send("c"))


def out_of_order(story: Story) -> None:
    first, second = story.send("c"), story.send("c")
    story.get("c", second)
    story.get("c", first)


def late(story: Story) -> None:
    story.calls += 1
    receive = story.calls
    story.say("b", "do", "receive", 1, ["c"], None, call=receive)
    number = story.send("c")
    story.now_ns += 29 * SECOND
    story.say("b", "end", "got", "c", ["a", 1, number], call=receive)


def a_member_dropped(story: Story) -> None:
    story.call("b", "join", "g0", "h!x")
    story.census()


def a_dead_member_kept(story: Story) -> None:
    story.calls += 1
    story.say("b", "do", "receive", 1, ["h!x"], None, call=story.calls)
    story.now_ns += SECOND
    story.say("b", "end", "cancelled", call=story.calls)
    story.call("b", "join", "g0", "h!x")
    story.kill("b")
    story.now_ns += 5 * SECOND
    story.call("a", "members", "g0", end=("ok", ["h!x"]))


def a_member_left_out(story: Story) -> None:
    story.call("b", "join", "g0", "h!x")
    story.call("a", "send_group", "g0", [])
    story.census("h!x")


def a_stranger_served(story: Story) -> None:
    story.get("h!x", story.call("a", "send_group", "g0", []))


def the_excluded_served(story: Story) -> None:
    story.call("b", "join", "g0", "h!x")
    story.get("h!x", story.call("a", "send_group", "g0", ["h!x"]))
    story.census("h!x")


def a_crash(story: Story) -> None:
    story.say("site", "gone", "b", -11)


def an_error(story: Story) -> None:
    story.say("b", "error", "Traceback: SegmentCorrupt")


SOUND: list[Callable[[Story], None]] = [
    a_sound_site,
    a_message_still_queued,
    a_reader_killed_with_one_in_hand,
    an_inbox_that_died_with_its_process,
    a_member_that_gets_everything,
    a_member_that_left,
    a_member_that_joined_while_its_layer_was_closed,
    a_layer_closed_after_the_last_change,
    an_orphan_that_has_ended,
    a_message_that_expires_while_channels_are_emptied,
    one_asked_to_end_before_it_could_know,
]
BROKEN: list[Callable[[Story], None]] = [
    lost,
    lost_before_the_reader_that_died_had_begun,
    two_lost_with_one_reader,
    lost_by_a_cancel,
    doubled,
    refused_and_yet_sent,
    out_of_nowhere,
    to_the_wrong_channel,
    out_of_order,
    late,
    a_member_dropped,
    a_dead_member_kept,
    a_member_left_out,
    a_stranger_served,
    the_excluded_served,
    a_crash,
    an_error,
]


@pytest.mark.parametrize("happen", SOUND)
def test_nothing_is_said_of_a_sound_site(happen: Callable[[Story], None]) -> None:
    """What the promises allow is no problem."""
    story = Story()
    happen(story)
    assert story.judge() == []


@pytest.mark.parametrize("happen", BROKEN)
def test_a_broken_promise_is_seen(happen: Callable[[Story], None]) -> None:
    """No story of a broken promise goes through."""
    story = Story()
    happen(story)
    assert story.judge() != []
