"""One process of the soak: members of a group that join, leave, talk and write down all of it.

What it writes, one line each, straight to the kernel so that a SIGKILL loses nothing:

- ``N channel``: a channel of its own;
- ``J channel t0 t1``, ``L channel t0 t1``: it joined or left the group between two moments;
- ``S n t0 [excluded,...]`` and ``s n t1``: group message ``n`` was sent between two moments;
- ``D n t0 channel`` and ``d n t1``: the same for a direct message;
- ``R channel sender n``: a message came;
- ``X channel cause``: a group message was dropped.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from typing import Any

from asgi_ipc.channels import IPCChannelLayer

GROUP = "soak"
OPTIONS: dict[str, Any] = {
    "message_memory": 128 << 20,
    "group_memory": 16 << 20,
    "capacity": 100_000,
    "expiry": 600,
}


class Member:
    """A websocket, so to speak."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.is_member = False
        self.reader: asyncio.Task[None] | None = None


class Process:
    """See the module docstring."""

    def __init__(self, prefix: str, log: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.layer = IPCChannelLayer(
            prefix, **OPTIONS, on_drop=lambda drop: self._note("X", drop.channel, drop.cause)
        )
        self._pid = os.getpid()
        self._members: list[Member] = []
        self._n = 0
        self._own = asyncio.Event()  # something this process sent has come back
        self._last = 0
        self.is_quiet = False
        self.ends = 0
        self.ended = asyncio.Event()

    def _note(self, *words: object) -> None:
        os.write(self._log, (" ".join(map(str, words)) + "\n").encode())

    async def start(self, count: int) -> None:
        """Make the channels and start to read."""
        for _ in range(count):
            member = Member(await self.layer.new_channel("soak"))
            self._note("N", member.channel)
            self._members.append(member)
            self._read(member)

    def _read(self, member: Member) -> None:
        member.reader = asyncio.create_task(self._reader(member.channel))

    async def _reader(self, channel: str) -> None:
        while True:
            message = await self.layer.receive(channel)
            if message["type"] == "end":
                self.ends += 1
                if self.ends == len(self._members):
                    self.ended.set()
                return
            self._note("R", channel, message["from"], message["n"])
            if message["from"] == self._pid and message["n"] == self._last:
                self._own.set()

    async def act(self) -> None:
        """Do something at random."""
        choice = self._random.random()
        member = self._random.choice(self._members)
        if choice < 0.45:
            await self._toggle(member)
        elif choice < 0.7:
            await self._talk()
        elif choice < 0.85:
            await self._whisper()
        else:
            assert member.reader is not None
            member.reader.cancel()
            for _ in range(self._random.randrange(3)):
                await asyncio.sleep(0)
            await asyncio.gather(member.reader, return_exceptions=True)
            self._read(member)
        if self._random.random() < 0.3:
            await asyncio.sleep(0)

    async def _toggle(self, member: Member) -> None:
        began = time.monotonic_ns()
        if member.is_member:
            await self.layer.group_discard(GROUP, member.channel)
        else:
            await self.layer.group_add(GROUP, member.channel)
        member.is_member = not member.is_member
        letter = "J" if member.is_member else "L"
        self._note(letter, member.channel, began, time.monotonic_ns())

    async def _talk(self) -> None:
        own = [member.channel for member in self._members if member.is_member]
        excluded = self._random.sample(own, min(len(own), 3)) if self._random.random() < 0.3 else []
        self._own.clear()
        self._last = self._n = self._n + 1
        self._note("S", self._n, time.monotonic_ns(), ",".join(excluded))
        await self.layer.group_send(
            GROUP, {"type": "said", "from": self._pid, "n": self._n}, exclude=excluded
        )
        self._note("s", self._n, time.monotonic_ns())
        if len(own) > len(excluded):
            await self._own.wait()  # no faster than its own members read

    async def _whisper(self) -> None:
        channels = await self.layer.group_channels(GROUP)
        if channels:
            self._n += 1
            to = self._random.choice(channels)
            self._note("D", self._n, time.monotonic_ns(), to)
            await self.layer.send(to, {"type": "said", "from": self._pid, "n": self._n})
            self._note("d", self._n, time.monotonic_ns())

    async def run(self, count: int) -> None:
        """Act until told to be quiet, read until told to end."""
        loop = asyncio.get_running_loop()
        quiet = asyncio.Event()
        loop.add_reader(sys.stdin, quiet.set)
        await self.start(count)
        print("ready", flush=True)
        while not quiet.is_set():
            await self.act()
            await asyncio.sleep(0)
        loop.remove_reader(sys.stdin)
        print("quiet", flush=True)
        await self.ended.wait()
        await asyncio.gather(*(member.reader for member in self._members if member.reader))
        await self.layer.close()
        print("ended", flush=True)


async def _main(prefix: str, log: str, seed: str, count: str) -> None:
    await Process(prefix, log, int(seed)).run(int(count))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
