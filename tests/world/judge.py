"""Says what does not add up in the journals of a site.

What is promised: a message that was accepted is received once, or still lies there at the
end, or has expired, or was lost with a process that had taken it: one for each receive that
was going on when its process ended or was interrupted, and for a process-specific home what
the process had drained. A call that was killed, cancelled or interrupted was done or not
done. Nobody else's luck is an excuse.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .groups import judge_groups
from .journal import Fact
from .plan import LEAVES, SLOTS, SMALL, SMALL_CAPACITY, home_of_slot

__all__ = ["Call", "Records", "judge"]

_LATE_NS = 10_000_000_000
_FOREVER = 1 << 62


@dataclass
class Call:
    """One call of a layer; ``outcome`` is ``open`` if nobody wrote down its end."""

    who: str
    number: int
    what: str
    stream: int
    arguments: list[Any]
    begun_ns: int
    ended_ns: int = _FOREVER
    outcome: str = "open"
    result: list[Any] = field(default_factory=list)

    def may_be_done(self) -> bool:
        """Whether its effect may be seen."""
        return self.outcome != "refused"


Key = tuple[str, str, int, int]  # channel, and who sent it in which stream and call


class Records:
    """The journals of a site, put in order.

    Attributes:
        ended_ns: when each process had ended, by its parent's word.
        settled: processes that ended when all was over, and had taken what was theirs.
        received: for each message of a channel, the receives that returned it.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.calls: dict[tuple[str, int], Call] = {}
        self.ended_ns: dict[str, int] = {}
        self.born: set[str] = set()
        self.killed: set[str] = set()
        self.names: dict[int, str] = {}  # of forked children, by pid
        self.settled: set[str] = set()
        self.daemonised: set[str] = set()
        self.errors: list[str] = []
        self.drops: list[Fact] = []
        self.census: dict[str, set[str]] = {}
        self.census_ns = 0
        self.rest_streams: set[tuple[str, int]] = set()
        self.statistics: dict[str, float] = {}
        self.drain_begun_ns = _FOREVER
        for fact in sorted(facts, key=lambda fact: fact.at_ns):
            self._add(fact)
        self.received: dict[Key, list[Call]] = defaultdict(list)
        for call in self.of("receive"):
            if call.outcome == "got" and call.result[0] is not None:
                who, stream, number = call.result[1]
                self.received[call.result[0], who, stream, number].append(call)

    def of(self, *what: str) -> Iterator[Call]:
        """Return all calls of some kinds."""
        return (call for call in self.calls.values() if call.what in what)

    def _add(self, fact: Fact) -> None:
        more = fact.more
        if fact.kind == "do":
            call = Call(fact.who, fact.call, more[0], more[1], more[2:], fact.at_ns)
            self.calls[fact.who, fact.call] = call
        elif fact.kind == "end":
            ended = self.calls.get((fact.who, fact.call))
            if ended is None:
                return  # a forked child that throws away a call of its parent's
            ended.ended_ns, ended.outcome, ended.result = fact.at_ns, more[0], more[1:]
        elif fact.kind == "forked":
            self.names[more[1]] = more[0]
        elif fact.kind == "gone":
            self._end(fact)
        elif fact.kind == "event" and more[0] == "kill":
            self.killed.add(more[1])
        elif fact.kind == "killed":
            self.killed.add(more[0])
        elif fact.kind == "settled":
            self.settled.add(fact.who)
        elif fact.kind == "drop":
            self.drops.append(fact)
        elif fact.kind == "census":
            self.census[more[0]] = set(more[1])
            self.census_ns = self.census_ns or fact.at_ns
        elif fact.kind == "rest":
            self.rest_streams.add((fact.who, more[0]))
        elif fact.kind == "statistics":
            self.statistics = more[0]
        elif fact.kind == "born":
            self.born.add(fact.who)
            self.names[more[0]] = fact.who  # its parent may be killed before it can say so
            if more[1] == "drain":
                self.drain_begun_ns = fact.at_ns
        elif fact.kind in ("error", "left"):
            self.errors.append(f"{fact.who}: {fact.kind} {more[0]}")
        elif fact.kind == "daemonised":
            self.daemonised.add(fact.who)
        elif (
            fact.kind == "log"
            and more[0] in ("ERROR", "CRITICAL")
            and ".".join(fact.who.split(".")[:2]) not in self.daemonised  # which is told of it
        ):
            self.errors.append(f"{fact.who} logged: {more[1]}")

    def _end(self, fact: Fact) -> None:
        name, status = fact.more[:2]
        name = name or self.names.get(fact.more[2], "")  # an orphan, whom its parent knew by name
        self.ended_ns[name] = fact.at_ns
        allowed = {0, -9} if name in self.killed else {0}
        if name not in self.born:
            allowed.add(-15)  # asked to end before it could know of that
        if status not in allowed:
            self.errors.append(f"{name or fact.more[2:]} ended with status {status}")

    def end_of(self, who: str) -> int:
        """When a process had ended at the latest."""
        return self.ended_ns.get(who, self.drain_begun_ns)


def judge(facts: Iterable[Fact]) -> list[str]:
    """Return what does not add up, in plain words; empty when all is well."""
    records = Records(facts)
    problems = list(_each_once(records.errors))
    problems += _judge_receives(records)
    problems += _judge_order(records)
    problems += _judge_losses(records)
    problems += _judge_rest(records)
    problems += judge_groups(records)
    return problems


def _each_once(errors: list[str]) -> Iterator[str]:
    """One error may come a thousand times; the last line of a traceback says which it is."""
    counts = Counter(error.rstrip().rpartition("\n")[2] for error in errors)
    for error in errors:
        if count := counts.pop(error.rstrip().rpartition("\n")[2], 0):
            yield f"{count} times: {error}"


def _judge_receives(records: Records) -> Iterator[str]:
    """Nothing comes twice, nothing comes that was not sent, nothing lies beside who waits."""
    for (channel, who, stream, number), gots in records.received.items():
        sent = records.calls.get((who, number))
        where = f"{channel}: message {number} of {who} ({sent.what if sent else 'no call'})"
        if len(gots) > 1:
            yield f"{where} came {len(gots)} times, to {[got.who for got in gots]}"
        if sent is None or sent.stream != stream:
            yield f"{where} came, and nobody sent it"
            continue
        if not sent.may_be_done():
            yield f"{where} came, and its sender was told {sent.outcome}"
        if sent.what == "send" and channel != sent.arguments[0]:
            yield f"{where} was sent to {sent.arguments[0]}"
        if sent.what == "send_many" and channel not in sent.arguments[0]:
            yield f"{where} was sent to {sent.arguments[0]}"
        first = gots[0]
        lay_ns = first.ended_ns - max(sent.ended_ns, first.begun_ns)
        if sent.outcome == "ok" and lay_ns > _LATE_NS:
            yield f"{where} came {lay_ns / 1e9:.1f} s late to {first.who}, which was waiting for it"


def _judge_order(records: Records) -> Iterator[str]:
    """What one sender sent to one channel comes to one reader in its order."""
    last: dict[tuple[Any, ...], int] = {}
    gots = [call for call in records.of("receive") if call.outcome == "got" and call.result[0]]
    for got in sorted(gots, key=lambda call: call.ended_ns):
        who, stream, number = got.result[1]
        key = (got.who, got.stream, got.result[0], who, stream)
        if number < last.get(key, 0):
            yield f"{got.result[0]}: {number} of {who}/{stream} after {last[key]} in {got.who}"
        last[key] = number


# -- losses ------------------------------------------------------------------------------


def _judge_losses(records: Records) -> Iterator[str]:
    """Every message that was accepted and did not come has its excuse."""
    lost: dict[str, list[Call]] = defaultdict(list)
    drained_ns = max(  # the last look at any channel: until then a message may expire
        (
            call.ended_ns
            for call in records.of("receive")
            if call.who == "drain" and call.outcome != "open"
        ),
        default=records.drain_begun_ns,
    )
    for sent in records.of("send", "send_many"):
        if sent.outcome != "ok":
            continue
        expiry_s = sent.arguments[1] if sent.what == "send" else None
        if expiry_s is not None and sent.begun_ns + expiry_s * 1e9 < drained_ns:
            continue
        channels = sent.arguments[0] if sent.what == "send_many" else [sent.arguments[0]]
        for channel in channels:
            if (channel, sent.who, sent.stream, sent.number) not in records.received:
                lost[channel].append(sent)
    in_hand = _receives_in_hand(records)
    ends = _ends_of_homes(records)
    for channel, calls in lost.items():
        calls = [
            call
            for call in calls
            if not any(end_ns > call.begun_ns for end_ns in ends.get(_home(channel), ()))
        ]
        for call in calls:
            if not _excuse(call, channel, in_hand):
                yield (
                    f"{channel}: message {call.number} of {call.who}, accepted by {call.what} at "
                    f"{call.ended_ns / 1e9:.3f}, was lost"
                )


def _home(channel: str) -> str:
    name, mark, _ = channel.partition("!")
    return name + mark


def _receives_in_hand(records: Records) -> list[tuple[Call, int]]:
    """Receives that may have had a message that they never returned, and until when."""
    found = [
        (call, min(call.ended_ns, records.end_of(call.who)))
        for call in records.of("receive")
        if call.outcome in ("open", "interrupted")
    ]
    return sorted(found, key=lambda one: one[1])


def _excuse(call: Call, channel: str, in_hand: list[tuple[Call, int]]) -> bool:
    """Use up one receive that may have lost this message."""
    for position, (receive, until_ns) in enumerate(in_hand):
        names = receive.arguments[0]
        if (channel in names or _home(channel) in names) and until_ns >= call.begun_ns:
            del in_hand[position]
            return True
    return False


def _ends_of_homes(records: Records) -> dict[str, list[int]]:
    """For each home, when processes ended or closed their layer that had received for it."""
    readers: dict[str, set[str]] = defaultdict(set)
    for call in records.of("receive"):
        for name in call.arguments[0]:
            if "!" in name:
                readers[_home(name)].add(call.who)
    closings: dict[str, list[int]] = defaultdict(list)
    for call in records.of("close"):
        closings[call.who].append(min(call.ended_ns, records.end_of(call.who)))
    found: dict[str, list[int]] = {}
    for home, whos in readers.items():
        ends = [records.end_of(who) for who in whos - records.settled - {"drain"}]
        found[home] = ends + [at_ns for who in whos for at_ns in closings[who]]
    return found


# -- what is left at the end -------------------------------------------------------------


def _judge_rest(records: Records) -> Iterator[str]:
    """Readers leave nothing lying, no channel holds more than it promises, counts agree."""
    constant = {home_of_slot(slot) + leaf for slot in range(SLOTS) for leaf in LEAVES}
    held: Counter[tuple[str, bool]] = Counter()
    for (channel, who, _, number), gots in records.received.items():
        got = gots[0]
        if (got.who, got.stream) in records.rest_streams and channel in constant:
            yield f"{channel}: message {number} of {who} lay beside its reader in {got.who}"
        if got.who == "drain":
            held[channel, records.calls[who, number].what == "send_group"] += 1
    for channel in SMALL:
        for is_group in (False, True):
            if held[channel, is_group] > SMALL_CAPACITY:
                kind = "group messages" if is_group else "messages"
                yield f"{channel} held {held[channel, is_group]} {kind}, not {SMALL_CAPACITY}"
    counts = records.statistics
    if not counts:
        yield "nobody looked at the end"
        return
    if counts["messages_pending"]:
        yield f"{counts['messages_pending']:.0f} messages lie in channels that nobody knows"
    gone = counts["received_count"] + counts["expired_count"] + counts["flushed_count"]
    if counts["messages_count"] != gone + counts["messages_pending"]:
        yield f"the statistics do not add up: {counts}"
