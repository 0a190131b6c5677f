"""What an operator is told of a site: plain tuples, without any behaviour.

Times are seconds, sizes bytes. Nothing here refers to shared memory.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Channel", "Group", "Home", "Leaf", "Loop", "Memory", "Process", "Reading", "Totals"]


class Totals(NamedTuple):
    """What the messages segment has counted since it was made.

    Attributes:
        sent: messages accepted; a group message counts once for each process or channel.
        received: messages taken by a reader.
        expired: dropped unread because their time was over.
        full: sends refused with ``ChannelFull`` because the channel was full.
        memory_full: sends refused with ``ChannelFull`` because the memory was full.
        dropped: members that did not get a group message because there was no room.
        flushed: messages dropped by a flush.
        copies: places beyond the first that group messages were queued at.
        shared: members of groups beyond one a place that they were for.
        pending: messages that wait now.
        channels: queues that have a record now.
        oldest_age_s: how long the oldest waiting message has waited; 0: none waits.
    """

    sent: int
    received: int
    expired: int
    full: int
    memory_full: int
    dropped: int
    flushed: int
    copies: int
    shared: int
    pending: int
    channels: int
    oldest_age_s: float

    @property
    def messages(self) -> int:
        """Messages sent: one to a group counts once. While some are sent it is a little behind."""
        return max(0, self.sent - self.copies)

    @property
    def deliveries(self) -> int:
        """Channels that messages were for: of a group its members, those excluded as well."""
        return self.sent + self.shared


class Leaf(NamedTuple):
    """A full process-specific name, or a group, that is counted below its home.

    Attributes:
        name: the channel's full name; a group's name for messages to its members.
        depth: messages that wait, in the queue or already taken by the process.
        full: sends refused because it was full.
    """

    name: str
    depth: int
    full: int


class Channel(NamedTuple):
    """One queue: an ordinary channel, or the home of process-specific ones (``a!``).

    Attributes:
        sent, received, expired, full: since its record was made; see ``Totals``.
        depth: messages that wait now.
        oldest_age_s: how long the first of them has waited; 0: none waits.
        parked: slots of the loops that sleep until a message comes.
        loop: slot of the loop that receives for it; ``None``: anybody, or its process.
        leaves: what is counted below a home.
    """

    name: str
    depth: int
    sent: int
    received: int
    expired: int
    full: int
    oldest_age_s: float
    parked: tuple[int, ...]
    loop: int | None
    leaves: tuple[Leaf, ...]


class Home(NamedTuple):
    """The members of a group that live in one queue; see ``Group``."""

    name: str
    members: int
    version: int


class Group(NamedTuple):
    """One group.

    Attributes:
        members: memberships, those included whose time is over and that nobody has met yet.
        version: number of the latest change, one sequence for all groups.
        homes: the queues its members live in.
    """

    name: str
    members: int
    version: int
    homes: tuple[Home, ...]


class Loop(NamedTuple):
    """An event loop (or blocking thread) that has waited for messages.

    Attributes:
        slot: its number.
        token: names its socket.
        pid: its process, in that process's own PID namespace.
        since: wall clock when it took its slot, seconds.
        parked_on: the channels it sleeps on.
        process: token of its process: what the witness is asked for.
    """

    slot: int
    token: int
    pid: int
    since: float
    parked_on: tuple[str, ...]
    process: int = 0


class Process(NamedTuple):
    """A process of the site.

    Attributes:
        pid: its process id; of its own PID namespace when it is not ``attached``.
        attached: it has a segment mapped, and ``/proc`` shows it here.
        alive: ``False``: it has died and nobody has met its slot yet; ``None``: unknown.
        state: the kernel's letter for it: R runs, S sleeps, T is stopped, ...
        command: its command line.
        loops: its slots; none for a process that only sends.
    """

    pid: int
    attached: bool
    alive: bool | None
    state: str | None
    command: str | None
    loops: tuple[Loop, ...]


class Memory(NamedTuple):
    """The memory of one segment, in bytes.

    Attributes:
        segment: its name.
        size: what it may take at most.
        backed: what it takes of the machine's memory now; never given back.
        used: what messages and records take of that.
        free: what is left of ``size`` for messages and records, as far as the filesystem has it.
        growth: how much of that is not backed yet.
        largest_free: the largest piece of it.
        is_exact: False when there are too many free pieces to count in one go; then ``free``
            is too small and ``used`` too large.
    """

    segment: str
    size: int
    backed: int
    used: int
    free: int
    growth: int
    largest_free: int
    is_exact: bool


class Reading(NamedTuple):
    """A whole site at about one moment.

    Attributes:
        prefix: names the site.
        taken_at: wall clock, seconds.
        created: wall clock when the messages segment was made, seconds.
        totals, channels, groups, loops: see there. ``channels`` has no order.
        memory: of the messages segment and of the groups segment.
        pending_log: a process was killed in the middle of an operation that nobody has
            finished yet; the reading shows it finished.
        longest_hold_s: how long this reading held a lock at most.
        taken_s: the monotonic clock.
    """

    prefix: str
    taken_at: float
    created: float
    totals: Totals
    channels: list[Channel]
    groups: list[Group]
    loops: list[Loop]
    memory: tuple[Memory, Memory]
    pending_log: bool
    longest_hold_s: float
    taken_s: float
