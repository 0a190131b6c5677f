"""Says what does not add up with the groups of a site: who is in them, and what came to whom."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .plan import GROUPS, SLOTS, home_of_slot

if TYPE_CHECKING:
    from .judge import Call, Records

__all__ = ["judge_groups"]

_INHERITED = {home_of_slot(slot) for slot in range(SLOTS)}
_WAITED_NS = 90_000_000  # long enough to have attached, had the lock, and gone to sleep
_SEEN_NS = 1_000_000_000  # so long a death may go unnoticed by who asks for the members


def judge_groups(records: Records) -> Iterator[str]:
    """Yield what does not add up."""
    memberships = _Memberships(records)
    yield from _judge_census(records, memberships)
    yield from _judge_snapshots(records, memberships)
    yield from _judge_deliveries(records, memberships)


class _Memberships:
    """Who has joined and left what, and when.

    Each name joins in one process at a time, call after call; a name below a home goes with
    the process that receives for the home.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self.changes: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in records.of("join", "leave"):
            if call.outcome != "refused":
                self.changes[call.arguments[0], call.arguments[1]].append(call)
        for changes in self.changes.values():
            changes.sort(key=lambda call: call.begun_ns)
        self.closings: dict[str, list[Call]] = defaultdict(list)
        for call in records.of("close"):
            self.closings[call.who].append(call)
        self.owners = set(self._owners())

    def _owners(self) -> Iterator[tuple[str, str]]:
        """Yield who has waited for which home, or polled it, in vain and since it attached last.

        Who has got something may have had it from another one of its channels.
        """
        for call in self.records.of("receive"):
            waited = call.ended_ns - call.begun_ns > _WAITED_NS and call.outcome != "open"
            names, timeout = call.arguments
            # The twin looks at the first name only.
            waited |= timeout == 0 and len(names) == 1 and call.outcome == "got"
            closings = self.closings[call.who]
            is_last = call.begun_ns > max((one.begun_ns for one in closings), default=0)
            if waited and is_last and not (call.result and call.result[0]):
                for name in names:
                    if "!" in name:
                        yield call.who, name.partition("!")[0]

    def during(self, group: str, channel: str, begun_ns: int, ended_ns: int) -> bool | None:
        """Whether a channel was a member all the time: yes, no, or cannot tell."""
        changes = self.changes[group, channel]
        position = bisect_right(changes, ended_ns, key=lambda call: call.begun_ns)
        if position == 0:
            return False
        latest = changes[position - 1]
        if latest.outcome != "ok" or latest.ended_ns >= begun_ns:
            return None  # it was changing, or nobody knows how that went
        if "!" in channel and self._may_have_ended(latest, begun_ns, ended_ns):
            dead_ns = self.records.end_of(latest.who)
            home = channel.partition("!")[0]
            # A home with a successor lives on, perhaps with what its last owner had joined.
            is_dead = (latest.who, home) in self.owners and home + "!" not in _INHERITED
            if latest.what == "join" and is_dead and dead_ns + _SEEN_NS < begun_ns:
                return False
            return None if latest.what == "join" else False
        return latest.what == "join"

    def _may_have_ended(self, latest: Call, begun_ns: int, ended_ns: int) -> bool:
        """Whether who had changed it may have ended, or closed its layer, by then."""
        # Being about to die is as good as dead: a kill is written down when it is over.
        dead_ns = self.records.end_of(latest.who)
        if latest.who not in self.records.settled and dead_ns <= ended_ns + _SEEN_NS:
            return True
        # A close takes what another thread has joined since it began.
        return any(
            latest.begun_ns <= one.ended_ns and one.begun_ns <= ended_ns
            for one in self.closings[latest.who]
        )


def _judge_census(records: Records, memberships: _Memberships) -> Iterator[str]:
    """When all have settled, members are exactly those that live."""
    if set(records.census) != set(GROUPS):
        yield "nobody looked at the groups"
        return
    at_ns = records.census_ns
    for (group, channel), changes in memberships.changes.items():
        expected = memberships.during(group, channel, at_ns, at_ns)
        if expected is not None and expected != (channel in records.census[group]):
            latest = changes[-1]
            yield (
                f"{group}: {channel} {'is no' if expected else 'is still a'} member when all have "
                f"settled; the latest: {latest.what} by {latest.who}, which ended "
                f"{'never' if latest.who in records.settled else records.end_of(latest.who)}"
            )


def _judge_snapshots(records: Records, memberships: _Memberships) -> Iterator[str]:
    """Whoever asks for the members is told of all who are, and of nobody who is not."""
    for call in records.of("members"):
        if call.outcome != "ok" or call.result[0] is None:
            continue
        found = set(call.result[0])
        for group, channel in memberships.changes:
            if group != call.arguments[0]:
                continue
            expected = memberships.during(group, channel, call.begun_ns, call.ended_ns)
            if expected is not None and expected != (channel in found):
                is_member = "is a member" if expected else "is none"
                yield f"{group}: {channel} {is_member}, and {call.who} was told otherwise"


def _judge_deliveries(records: Records, memberships: _Memberships) -> Iterator[str]:
    """A group message comes to all who lived as members throughout, and to no stranger."""
    receivers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for channel, who, _, number in records.received:
        receivers[who, number].add(channel)
    missing: Counter[str] = Counter()
    examples: dict[str, str] = {}
    due = 0
    for sent in records.of("send_group"):
        group, excluded = sent.arguments
        got = receivers[sent.who, sent.number]
        for channel in got:
            if memberships.during(group, channel, sent.begun_ns, sent.ended_ns) is False:
                yield f"{group}: message {sent.number} of {sent.who} came to {channel}, no member"
            if channel in excluded:
                yield f"{group}: message {sent.number} of {sent.who} came to {channel}, excluded"
        if sent.outcome != "ok":
            continue
        for (other, channel), changes in memberships.changes.items():
            if other != group or channel in excluded or "!" not in channel:
                continue
            if not memberships.during(group, channel, sent.begun_ns, sent.ended_ns):
                continue
            joined = [call for call in changes if call.begun_ns < sent.begun_ns][-1]
            if joined.who not in records.settled or _closes_later(memberships, joined.who, sent):
                continue  # what it had drained went with it
            due += 1
            if channel not in got:
                missing[channel] += 1
                examples[channel] = f"number {sent.number} of {sent.who} to {group}"
    for channel, count in missing.items():
        home = channel.partition("!")[0] + "!"
        skipped = sum(drop.more[1] for drop in records.drops if drop.more[0] in (channel, home))
        if count > skipped:
            yield (
                f"{channel}: {count} group messages of {due} due in all are missing and {skipped} "
                f"were reported as skipped; {examples[channel]} for one"
            )


def _closes_later(memberships: _Memberships, who: str, sent: Call) -> bool:
    return any(one.ended_ns >= sent.begun_ns for one in memberships.closings[who])
