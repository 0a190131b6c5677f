"""Other layers behind the same interface, and what is known to be different about them.

The contract runs over them so that a failure of ours is the layer's and not the suite's. Where
they do not agree with it, `DIFFERENCES` names the test and the reason, and that test must fail:
one that passes says that the table is out of date.
"""

# ruff: noqa: D102 - what the methods of a face promise is what test_contract.py says

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import channels_redis.core
import pytest
import redis
from channels import layers as channels_layers
from channels.exceptions import ChannelFull

from asgi_ipc.names import home_of

from ..conftest import Clock
from .faces import Message

# How long a test waits for what a peer may never deliver. Nothing passes by it: a test that comes
# to its end has failed, as expected or not.
PATIENCE_S: Final = 10.0

# Peer -> test, or test[part of its parameters] -> why it fails there.
DIFFERENCES: Final[dict[str, dict[str, str]]] = {
    "in-memory": {
        "test_another_object_is_the_same_layer": "its messages belong to one object",
        "test_several_receives_wait_on_one_channel": (
            "the first receive takes the queue away under the feet of the others, who wait for ever"
        ),
        "test_a_pattern_overrides_the_capacity": (
            "it never compiles channel_capacity, so looking a capacity up raises ValueError"
        ),
        "test_a_channel_full_of_expired_messages_takes_as_many_again": (
            "it cleans up when it receives, so a channel nobody reads stays full"
        ),
        "test_only_ascii_is_in_a_name": "Channels' patterns let a line feed and other digits in",
        "test_a_home_stands_for_everything_below_it": "it takes 'x!' for a name of its own",
    },
    "channels_redis": {
        "test_every_member_gets_its_own_copy[specific]": (
            "members of one process are given one and the same dict"
        ),
        "test_only_ascii_is_in_a_name": "Channels' patterns let a line feed and other digits in",
        "test_a_home_stands_for_everything_below_it": (
            "what it takes for 'x!' it puts where only receives of full names look"
        ),
    },
}


def known_difference(peer: str, test: str, parameters: str) -> str | None:
    """Why a test is expected to fail on a peer, if it is."""
    for named, reason in DIFFERENCES.get(peer, {}).items():
        name, _, part = named.rstrip("]").partition("[")
        if name == test and (not part or part in parameters.split("-")):
            return reason
    return None


class InMemoryFace:
    """What ships with Channels: one process, one object."""

    counts_by_name = True

    def __init__(self, layer: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layer = layer
        self.full: Any = ChannelFull
        self.advance = clock.advance
        self.send = layer.send
        self.group_add = layer.group_add
        self.group_discard = layer.group_discard
        self.group_send = layer.group_send
        self.new_channel = layer.new_channel
        self.flush = layer.flush
        monkeypatch.setattr(channels_layers, "time", _WallClock(clock))

    async def receive(self, channel: str) -> tuple[str, Message]:
        """Wait for a message."""
        # Within one loop nothing can come later than what others had been about to do.
        async with asyncio.timeout(1):
            return channel, await self.layer.receive(channel)

    async def receive_now(self, channel: str) -> Message | None:
        """Return one that is there."""
        self.layer._clean_expired()
        if channel not in self.layer.channels:
            return None
        message: Message = await self.layer.receive(channel)
        return message

    async def close(self) -> None:
        """Nothing to close."""


class RedisFace:
    """channels_redis (core) on a Redis server of this test's own.

    It receives process-specific channels under its own process part only, so the names of the
    contract get that part: ``x!a`` becomes ``x.<process part>!a``.
    """

    counts_by_name = False

    def __init__(
        self, layer: Any, server: redis.Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.layer = layer
        self.full: Any = ChannelFull
        self.group_send = layer.group_send
        self.new_channel = layer.new_channel
        self.flush = layer.flush
        self._server = server
        self._clock = clock
        monkeypatch.setattr(channels_redis.core, "time", _WallClock(clock))

    def _own(self, channel: str) -> str:
        if (
            not isinstance(channel, str)
            or "!" not in channel
            or self.layer.client_prefix in channel
        ):
            return channel
        home, _, name = channel.partition("!")
        return f"{home}.{self.layer.client_prefix}!{name}"

    async def send(self, channel: str, message: Any) -> None:
        await self.layer.send(self._own(channel), message)

    async def receive(self, channel: str) -> tuple[str, Message]:
        """Wait for a message."""
        async with asyncio.timeout(PATIENCE_S):
            return channel, await self.layer.receive(self._own(channel))

    async def receive_now(self, channel: str) -> Message | None:
        """Return one that is there: on the server, or taken from it for another receive."""
        own = self._own(channel)
        if own not in self.layer.receive_buffer and not self._is_on_server(own):
            return None
        return (await self.receive(channel))[1]

    def _is_on_server(self, channel: str) -> bool:
        members: Any = self._server.zrange(self.layer.prefix + home_of(channel), 0, -1)
        for member in members:
            names = self.layer.deserialize(member).get("__asgi_channel__", channel)
            if channel in ([names] if isinstance(names, str) else names):
                return True
        return False

    async def group_add(self, group: str, channel: str) -> None:
        await self.layer.group_add(group, self._own(channel))

    async def group_discard(self, group: str, channel: str) -> None:
        await self.layer.group_discard(group, self._own(channel))

    def advance(self, seconds: float) -> None:
        """Let time pass on both sides: the server's keys come that much nearer to their end."""
        self._clock.advance(seconds)
        keys: Any = self._server.keys()
        for key in keys:
            left_ms: Any = self._server.pttl(key)
            if left_ms >= 0:
                self._server.pexpire(key, left_ms - int(seconds * 1000))

    async def close(self) -> None:
        """Close the connections of the loop."""
        await self.layer.close_pools()


class _WallClock:
    """The test's clock as seconds; no two looks at it see the same, as with a real one.

    channels_redis sorts messages by the time at which they were sent.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looks = 0

    def time(self) -> float:
        self._looks += 1
        return self._clock.monotonic_ns() / 1e9 + self._looks * 1e-6

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def redis_server(directory: Path) -> Iterator[Callable[[], redis.Redis]]:
    """A Redis server on a unix socket in `directory`; yields what makes a client of it."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing: 'apt-get install redis-server'")
    path = directory / "redis.sock"
    options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no")
    with subprocess.Popen(
        ["redis-server", *options], cwd=directory, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            said = []
            for line in server.stdout:
                said.append(line)
                if "ready to accept connections" in line.lower():
                    break
            else:
                raise AssertionError(f"redis-server does not start: {''.join(said)}")
            yield lambda: redis.Redis(unix_socket_path=str(path))
        finally:
            server.terminate()
