"""A signal handler that raises in the middle of a receive loses at most the message in hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, aio
from asgi_ipc._receive import inbox, reception, resting
from asgi_ipc._store import messages, slots
from asgi_ipc._wake import port as port_module
from asgi_ipc._wake import waiting

from .conftest import problems_of
from .interrupting import Interrupt, interrupted
from .stepping import SteppingLoop, drive

MakeLayer = Callable[..., AsyncIPCChannelLayer]
RECEIVE_PATH = [aio, inbox, port_module, reception, resting, slots, messages, waiting]


class Site:
    """One loop that receives, one layer that sends, and what became of every message."""

    def __init__(self, make_layer: MakeLayer) -> None:
        self.loop = SteppingLoop()
        self.loop.set_exception_handler(lambda *_: None)  # it is the interrupt
        self.layer = make_layer(spin_rounds=0)
        self.outside = make_layer()
        self.tasks: list[tuple[tuple[str, ...], asyncio.Task[Any]]] = []
        self.sent: Counter[tuple[str, int]] = Counter()
        self.number = 0

    def wait(self, *channels: str) -> asyncio.Task[Any]:
        """Begin to receive; the loop has yet to run."""
        task: asyncio.Task[Any]
        if len(channels) == 1 and channels[0][-1] != "!":
            task = self.loop.create_task(self._receive(channels[0]))
        else:
            task = self.loop.create_task(self.layer.receive_async(channels))
        self.tasks.append((channels, task))
        return task

    def wait_until(self, deadline: float, channel: str) -> None:
        """Begin to receive until then at most."""
        self.tasks.append(((channel,), self.loop.create_task(self._until(deadline, channel))))

    async def _until(self, deadline: float, channel: str) -> tuple[str, dict[str, Any]]:
        got = await self.layer.receive_within(channel, deadline)
        if got is None:
            raise TimeoutError
        return channel, got

    async def _receive(self, channel: str) -> tuple[str, dict[str, Any]]:
        return channel, await self.layer.receive(channel)

    def asleep(self, *channels: str) -> None:
        """Begin to receive and let it come to rest."""
        self.wait(*channels)
        self.loop.settle()

    def send(self, *channels: str) -> None:
        """Send the next number to each channel, from outside."""
        for channel in channels:
            self.number += 1
            self.sent[channel, self.number] += 1
            drive(self.outside.send(channel, {"n": self.number}))

    def send_here(self, channel: str) -> None:
        """Send the next number from the loop that receives."""
        self.number += 1
        self.sent[channel, self.number] += 1
        drive(self.layer.send(channel, {"n": self.number}))

    def send_group(self, group: str, *members: str) -> None:
        """Send the next number to a group, of which these are the members."""
        self.number += 1
        self.sent.update((member, self.number) for member in members)
        drive(self.outside.group_send(group, {"n": self.number}))

    def problem(self, may_be_lost: int) -> str | None:
        """Say what is wrong, and begin anew."""
        got: Counter[tuple[str, int]] = Counter()
        asleep = []
        for channels, task in self.tasks:
            if not task.done():
                asleep.append(channels)
            elif not task.cancelled() and task.exception() is None:
                name, message = task.result()
                got[name, message["n"]] += 1
        for _, task in self.tasks:
            task.cancel()
        self.loop.settle()
        self.tasks.clear()
        left: Counter[tuple[str, int]] = Counter()
        for channel in {name for name, _ in self.sent}:
            while (found := drive(self.layer.receive_async([channel], block=False)))[0]:
                name, message = found
                assert name is not None
                assert message is not None
                left[name, message["n"]] += 1
        sent, self.sent = self.sent, Counter()
        if (got + left) - sent or len(list((sent - got - left).elements())) > may_be_lost:
            return f"sent {dict(sent)}, received {dict(got)}, left {dict(left)}"
        for channels in asleep:
            for name, _ in left:
                if name in channels or name[: name.find("!") + 1] in channels:
                    return f"a receive of {channels} sleeps beside {dict(left)}"
        for name, _ in sent:
            if drive(self.outside.channel_statistics(name))["messages_pending"]:
                return f"{name} counts what was read"
        return self._left_behind() or self._next_one()

    def _left_behind(self) -> str | None:
        for port in self.layer._site.ports():
            if port.waiting.by_key or port.waiting.by_home:
                return f"waiting is left: {port.waiting.by_key} {port.waiting.by_home}"
        records = self.layer._site.messages.records
        parked = [name for name, (record, _) in records.known.items() if records.is_parked(record)]
        return f"parked is left: {parked}" if parked else None

    def _next_one(self) -> str | None:
        for channel in ("c", "x!a"):
            task = self.wait(channel)
            self.loop.settle()
            self.send(channel)
            self.loop.settle()
            self.tasks.clear()
            self.sent.clear()
            if not task.done() or task.result()[1] != {"n": self.number}:
                return f"the next receive of {channel} got nothing"
        return None

    def close(self) -> None:
        """Close loop and layer."""
        self.loop.settle()
        self.layer.close_now()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@pytest.fixture
def site(make_layer: MakeLayer, only_rings: None) -> Iterator[Site]:
    """Make a site whose loop nothing but rings wakes."""
    site = Site(make_layer)
    for name in ("x!a", "x!b", "x!c"):
        drive(site.outside.group_add("g", name))
    yield site
    site.close()


# What happens before the interrupt is on, and what happens under it.
Part = Callable[[Site], object]


def one_waits(site: Site) -> None:
    site.asleep("c")
    site.send("c")


def one_waits_for_several(site: Site) -> None:
    site.asleep("c", "d", "x!a")
    site.asleep("d", "x!a")
    site.send("d", "x!a")


def three_rest(site: Site) -> None:
    for name in ("x!a", "x!b", "x!c"):
        site.asleep(name)
    site.send("x!a", "x!b", "x!a")


def a_group_rests(site: Site) -> None:
    for name in ("x!a", "x!b", "x!c"):
        site.asleep(name)
    site.send_group("g", "x!a", "x!b", "x!c")


def a_home_is_read(site: Site) -> None:
    site.asleep("x!")
    site.send_group("g", "x!a", "x!b", "x!c")
    site.send("x!d")


def several_lie_there(site: Site) -> None:
    site.send("x!b", "x!a", "x!c", "x!a", "c")
    for name in ("x!a", "x!b", "c"):
        site.wait(name)


def one_is_cancelled(site: Site) -> None:
    for name in ("x!a", "x!b"):
        site.asleep(name)
    site.asleep("c")
    site.send("x!a", "c")
    for _, task in site.tasks[:1]:
        task.cancel()
    site.tasks[-1][1].cancel()


def it_sends_itself(site: Site) -> None:
    site.asleep("c")
    for name in ("x!a", "x!b"):
        site.asleep(name)
    for name in ("x!b", "c"):
        site.loop.call_soon(site.send_here, name)


def the_time_is_over(site: Site) -> None:
    for name in ("x!a", "x!b"):
        site.asleep(name)
    site.wait_until(0.0, "x!c")
    site.wait_until(0.0, "c")
    site.send("x!a", "c")


SCENARIOS = [
    it_sends_itself,
    the_time_is_over,
    one_waits,
    one_waits_for_several,
    three_rest,
    a_group_rests,
    a_home_is_read,
    several_lie_there,
    one_is_cancelled,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_interrupt_loses_at_most_the_message_in_hand(site: Site, scenario: Part) -> None:
    """At whichever line, call or return it comes: the others arrive, and nothing is left behind."""
    scenario(site)  # so that everything is known that will be
    site.loop.settle()
    assert site.problem(0) is None
    for place in range(10_000):
        scenario(site)
        with interrupted(place, RECEIVE_PATH) as interrupt:
            try:
                site.loop.settle()
            except Interrupt:
                pass
        site.loop.settle()
        problem = site.problem(1)
        assert problem is None, f"interrupted at {interrupt.where}: {problem}"
        if not interrupt.where:
            break
    assert place > 30
    assert problems_of(site.outside) == []
