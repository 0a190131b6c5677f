"""``top``: a site live, with keys to sort, filter, pause and leaf through.

What is shown is ``Picture``, a function of the latest reading and of what the user chose
(``Choices``); what a key does is ``Choices.press``. Neither knows a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from .._operator.inspect import Inspector
from .._operator.reading import Loop, Process, Reading
from ..exceptions import SegmentError, StoreLocked
from . import looking, tables, words
from .codes import Code
from .looking import ChannelOrder
from .options import AsJson, Patience, Prefix, ending, fail, is_terminal
from .rates import Rates
from .terminal import Terminal

__all__ = ["HELP", "Choices", "Picture", "View", "top"]

_PROCESSES_EVERY_S = 2.0  # all of /proc is looked through for them
_HEAD_LINES = 8
_TABLE_LINES = 3  # title, columns, rule
_ORDERS = {
    "d": ChannelOrder.depth,
    "r": ChannelOrder.rate,
    "t": ChannelOrder.sent,
    "a": ChannelOrder.age,
    "f": ChannelOrder.full,
    "n": ChannelOrder.name,
}
HELP = """\
 q        quit
 space    pause, go on
 d r t a f n   sort channels by depth, rate, sent, age, full, name
 o        the next order
 /        filter by name: type, then Enter; Escape shows all
 tab      everything, channels only, groups only, processes only (or 1 2 3 4)
 up down page-up page-down home   leaf through what does not fit
 + -      read more often, less often
 ? h      this help; any key goes back

Its columns:

 depth     messages that wait; red: nobody takes any
 rate      sent a second                sent, received, expired   so far
 full      sends that were refused      oldest   how long the first one waits
 read by   processes that sleep until a message comes, in brackets the one that
           a process-specific queue belongs to; nobody: that is why it grows
 queues    where members of a group receive    version   its latest change
 loops     event loops and threads that receive, since the first one did
 backed    taken of the machine, in steps; never given back
 used      of that, by messages and records    largest   the largest message"""


class View(StrEnum):
    """What has the screen."""

    everything = "everything"
    channels = "channels"
    groups = "groups"
    processes = "processes"


@dataclass
class Choices:
    """What the user chose.

    Attributes:
        order, pattern, view: which rows are shown, and in what order.
        interval_s: time between two readings.
        first: how many rows are leafed past.
        page: how many rows fit, set by the picture.
        is_paused, is_typing, is_helping, is_over: modes.
    """

    order: ChannelOrder = ChannelOrder.depth
    pattern: str = ""
    view: View = View.everything
    interval_s: float = 1.0
    first: int = 0
    page: int = 10
    is_paused: bool = False
    is_typing: bool = False
    is_helping: bool = False
    is_over: bool = False

    def press(self, key: str) -> None:
        """Do what a key means."""
        if self.is_helping:
            self.is_helping = False
        elif self.is_typing:
            self._type(key)
        elif key in _ORDERS:
            self.order, self.first = _ORDERS[key], 0
        else:
            self._command(key)

    def _type(self, key: str) -> None:
        self.first = 0
        if key == "enter":
            self.is_typing = False
        elif key == "escape":
            self.pattern, self.is_typing = "", False
        elif key == "backspace":
            self.pattern = self.pattern[:-1]
        elif len(key) == 1:
            self.pattern += key

    def _command(self, key: str) -> None:
        views, orders = list(View), list(ChannelOrder)
        if key in ("q", "Q"):
            self.is_over = True
        elif key in ("space", "p"):
            self.is_paused = not self.is_paused
        elif key == "o":
            self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        elif key == "/":
            self.pattern, self.is_typing, self.first = "", True, 0
        elif key == "escape":
            self.pattern, self.first = "", 0
        elif key in ("tab", "back tab"):
            step = 1 if key == "tab" else -1
            self.view, self.first = views[(views.index(self.view) + step) % len(views)], 0
        elif key in ("1", "2", "3", "4"):
            self.view, self.first = views[int(key) - 1], 0
        elif key in ("+", "="):
            self.interval_s = max(0.1, self.interval_s / 2)
        elif key == "-":
            self.interval_s = min(60.0, self.interval_s * 2)
        elif key in ("?", "h"):
            self.is_helping = True
        else:
            steps = {"up": -1, "down": 1, "page up": -self.page, "page down": self.page}
            self.first = 0 if key == "home" else max(0, self.first + steps.get(key, 0))

    @property
    def glob(self) -> str:
        """The pattern as a glob: plain text may stand anywhere in a name."""
        if not self.pattern or any(mark in self.pattern for mark in "*?["):
            return self.pattern
        return f"*{self.pattern}*"


@dataclass
class Picture:
    """What is known, and how it looks.

    Attributes:
        trouble: why there is no newer reading.
    """

    prefix: str
    reading: Reading | None = None
    processes: Sequence[Process] = ()
    rates: Rates = field(default_factory=Rates)
    trouble: str = ""

    def draw(self, choices: Choices, width: int, height: int) -> RenderableType:
        """Return the screen's content, for a screen of that size."""
        if choices.is_helping:
            return Stack(Text(f"asgi-ipc top {self.prefix}", style="bold"), "", Text(HELP))
        parts: list[RenderableType] = list(self._head(choices))
        lines = _HEAD_LINES
        if self.trouble:
            parts.append(Text(self.trouble, style="bold white on red", overflow="fold"))
            lines += 1 + len(self.trouble) // max(1, width)
        if self.reading is not None:
            parts += self._body(self.reading, choices, width, height - lines)
        return Stack(*parts)

    @property
    def loops(self) -> Sequence[Loop]:
        """The loops of the latest reading."""
        return self.reading.loops if self.reading is not None else ()

    def _head(self, choices: Choices) -> list[RenderableType]:
        """Return ``_HEAD_LINES`` lines."""
        mode = "paused" if choices.is_paused else f"every {choices.interval_s:g} s"
        first = Text.assemble(
            ("asgi-ipc top ", "bold"),
            (self.prefix, "bold cyan"),
            f"  {mode}  sort {choices.order}  ",
            (f"filter {choices.pattern}" if choices.pattern or choices.is_typing else ""),
            ("_" if choices.is_typing else ""),
            "  ? help",
        )
        if self.reading is None:
            return [first]
        reading, per_second = self.reading, self.rates.totals or {}
        totals = reading.totals
        counts = Text.assemble(
            f"sent {words.count(totals.messages)} ",
            (words.rate(per_second.get("messages")), "green"),
            f"  deliveries {words.count(totals.deliveries)}"
            if totals.deliveries != totals.messages
            else "",
            f"  received {words.count(totals.received)} ",
            (words.rate(per_second.get("received")), "green"),
            f"  waiting {words.count(totals.pending)}",
            f"  oldest {words.age(totals.oldest_age_s)}" if totals.pending else "",
            f"  channels {words.count(totals.channels)}  groups {words.count(len(reading.groups))}",
        )
        drops = Text("drops: ")
        for label, name in (
            ("channel full", "full"),
            ("memory full", "memory_full"),
            ("group member full", "dropped"),
            ("expired", "expired"),
            ("flushed", "flushed"),
        ):
            number, speed = getattr(totals, name), per_second.get(name)
            drops.append(f"{label} {words.count(number)} ", style="red" if speed else "")
            drops.append(f"{words.rate(speed)}  " if speed else " ", style="red")
        drops.rstrip()
        for line in (first, counts, drops):
            line.no_wrap, line.overflow = True, "ellipsis"
        lines: list[RenderableType] = [first, counts, drops, ""]
        lines += [tables.memory_table(reading.memory)]
        return lines

    def _body(
        self, reading: Reading, choices: Choices, width: int, lines: int
    ) -> list[RenderableType]:
        channels = looking.ordered(
            looking.matching(reading.channels, choices.glob), choices.order, self.rates
        )
        groups = looking.by_size(looking.matching(reading.groups, choices.glob))
        rows: dict[View, Sequence[Any]] = {
            View.channels: channels,
            View.groups: groups,
            View.processes: self.processes,
        }
        if choices.view is not View.everything:
            return self._section(choices.view, rows[choices.view], choices, width, lines)
        shares = _shares(lines, [len(rows[view]) for view in rows])
        parts = self._section(View.channels, channels, choices, width, shares[0])
        for view, share in zip((View.groups, View.processes), shares[1:], strict=True):
            if share:
                parts += self._section(view, rows[view], Choices(), width, share)
        return parts

    def _section(
        self, view: View, rows: Sequence[Any], choices: Choices, width: int, lines: int
    ) -> list[RenderableType]:
        """Return a title and a table that together have ``lines`` lines at most."""
        fit = max(0, lines - _TABLE_LINES)
        choices.page = max(1, fit)
        choices.first = min(choices.first, max(0, len(rows) - 1))
        shown = rows[choices.first : choices.first + fit]
        title = f"{view} {choices.first + 1}-{choices.first + len(shown)} of {len(rows)}"
        if not shown:
            title = f"{view}: {len(rows)}"
        if view is View.channels:
            table = tables.channels_table(shown, self.loops, self.rates, width=width)
        elif view is View.groups:
            table = tables.groups_table(shown)
        else:
            table = tables.processes_table(shown)
        return [Text(title if rows else f"no {view}", style="bold"), table]


def _shares(lines: int, counts: Sequence[int]) -> list[int]:
    """Return how many lines channels, groups and processes get, by how many there are of each.

    Groups and processes have a quarter each if they need it, and what the others leave.
    """
    if lines < 5 * _TABLE_LINES:
        return [lines, 0, 0]  # a small window is for channels
    needs = [counts[0] + _TABLE_LINES] + [one + _TABLE_LINES if one else 0 for one in counts[1:]]
    shares = [0] + [min(need, lines // 4) for need in needs[1:]]
    shares[0] = min(needs[0], lines - sum(shares))
    for section in (2, 1):  # processes first
        shares[section] += min(needs[section] - shares[section], lines - sum(shares))
    shares[0] = lines - sum(shares[1:])
    return shares


class _Watch:
    """Keeps a picture up to date."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self.picture = Picture(inspector.prefix)
        self._processes_at = 0.0

    def look(self) -> None:
        """Read the site; what goes wrong is shown, and tried again the next time."""
        picture = self.picture
        try:
            self.inspector.follow()
            reading = self.inspector.read()
        except (SegmentError, StoreLocked) as exc:
            picture.trouble = words.printable(str(exc))
            return
        picture.trouble = ""
        picture.reading = reading
        picture.rates.add(reading)
        if time.monotonic() - self._processes_at > _PROCESSES_EVERY_S:
            picture.processes = self.inspector.processes(reading.loops)
            self._processes_at = time.monotonic()


@ending
def top(
    prefix: Prefix = "asgi",
    as_json: AsJson = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=60, metavar="SECONDS", help="Time between two readings.")
    ] = 1.0,
    patience: Patience = 0.2,
) -> None:
    """Show a site live: channels, groups, processes, memory, drops. Press ? for the keys.

    Needs a terminal. With --json it prints what "stats --watch" prints.
    """
    if as_json:
        looking.stats(
            prefix=prefix, as_json=True, limit=0, pattern="", watch=interval, patience=patience
        )
        return
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        fail(Code.USAGE, "top needs a terminal: use 'stats --watch 1' without one", as_json=False)
    choices = Choices(interval_s=interval)
    with Inspector(prefix, patience=patience) as inspector, Terminal() as terminal:
        watch = _Watch(inspector)
        next_look = 0.0
        while not choices.is_over:
            now = time.monotonic()
            if now >= next_look and not choices.is_paused:
                watch.look()
                next_look = time.monotonic() + choices.interval_s
            width, height = terminal.console.size
            terminal.show(watch.picture.draw(choices, width, height))
            wait_s = 60.0 if choices.is_paused else next_look - time.monotonic()
            for key in terminal.wait(wait_s):
                choices.press(key)
