"""What the tasks and threads of a process do, all drawn from the seed of its life."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from .board import RUN
from .forks import FORKS, fork, live_as_child, run_true
from .hands import AioFace, Hands, OldFace
from .plan import GROUPS, LEAVES, SLOTS, SMALL, WORK, home_of_slot

if TYPE_CHECKING:
    from .life import Process

__all__ = ["Behaviours"]

_PATIENCE_S = 20.0  # less than the 30 s after which a loop looks by itself
Named = tuple[str, Coroutine[Any, Any, None]]


class Behaviours:
    """The things one process does at the same time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.home = process.home
        self.targets: deque[str] = deque(maxlen=20)  # names of others, heard of in messages
        self.readers = 0  # in threads, that have not ended
        self.received = 0
        self.children: dict[str, int] = {}  # those forked at birth
        self.names: list[str] = []  # made by new_channel, with a reader of their own

    def chance(self, name: str) -> random.Random:
        """Return what somebody of this life draws from."""
        return random.Random(f"{self.process.life.seed} {name}")

    def is_running(self) -> bool:
        """Whether new things may still be begun."""
        return self.process.board.phase == RUN and not self.process.is_asked_to_end

    async def settle_in(self, hands: Hands) -> None:
        """Have some names and memberships that last for the whole life."""
        for group, name in (("g0", LEAVES[0]), ("g1", LEAVES[0]), ("g0", LEAVES[1])):
            await hands.join(group, self.home + name)
        await hands.join("g2", f"own.{self.process.slot}")
        if self.process.slot == 0:
            await hands.join("g1", SMALL[1])
        for number in range(self.process.life.preforks):
            self.children[f"{self.process.journal.who}.c{number}"] = self._fork("c", f"c{number}")

    # -- who there is ----------------------------------------------------------------------

    def on_loop(self) -> Iterator[Named]:
        """Yield what runs as tasks of the main loop."""

        def hands() -> Hands:
            return self.process.hands(AioFace(self.process.layer))

        for leaf in LEAVES:
            yield f"reader {leaf}", self.reader(hands(), [self.home + leaf])
        yield "reader own", self.reader(hands(), [f"own.{self.process.slot}"])
        yield "reader work", self.reader(hands(), list(WORK), 0.3)
        yield "reader small", self.reader(hands(), [SMALL[0], WORK[0], self.home + "d"])
        yield "asker", self.asker(hands())
        yield "giver-up", self.giver_up(hands)
        yield from self._common([hands(), hands(), hands()])
        yield "second loops", self.second_loops(hands())
        self.process.in_thread("twin", self.sender("twin", self.process.hands()))

    def in_threads(self) -> Iterator[Named]:
        """Yield what runs in threads."""
        hands = self.process.hands
        if self.process.life.face == "old":
            yield "reader home", self.thread_reader([self.home, *WORK[:1]])
            yield "reader own", self.thread_reader([f"own.{self.process.slot}", *WORK])
        else:
            for leaf in LEAVES:
                yield f"reader {leaf}", self.thread_reader([self.home + leaf])
            yield "reader own", self.thread_reader([f"own.{self.process.slot}"])
            yield "second loops", self.second_loops(hands())
        yield from self._common([hands(), hands(), hands()])

    def _common(self, hands: list[Hands]) -> Iterator[Named]:
        yield "sender", self.sender("sender", hands[0])
        yield "member", self.member(hands[1])
        yield "parent", self.parent(hands[2])
        if self.process.life.forks:
            yield "forker", self.forker(hands[2])
        if self.process.life.closes_layer:
            yield "closer", self.closer(hands[2])

    # -- reading -----------------------------------------------------------------------------

    async def reader(self, hands: Hands, names: list[str], timeout: float | None = None) -> None:
        """Read for ever; answer whoever asks for it."""
        while True:
            self.hear(await self.answered(hands, names, timeout))

    async def answered(self, hands: Hands, names: list[str], timeout: float | None) -> Any:
        """Receive, and send an answer if one is asked for."""
        _, message = await hands.receive(names, timeout)
        self.received += message is not None
        if message and "reply" in message and self.is_running():
            await hands.send(message["reply"], 10)
        return message

    def hear(self, message: dict[str, Any] | None) -> None:
        """Remember the name that somebody tells of."""
        if message and "name" in message:
            self.targets.append(message["name"])

    async def thread_reader(self, names: list[str]) -> None:
        """Read in a thread until the end, and then what is left."""
        hands = self.process.hands()
        self.readers += 1
        message = None
        while message is not None or not self.process.is_over():
            message = await self.answered(hands, names, 0.2)
            self.hear(message)
        self.readers -= 1

    async def wait_until_quiet(self) -> None:
        """Return when the readers of this loop have had nothing for some rounds."""
        rounds, before = 0, -1
        while rounds < 20:
            rounds = rounds + 1 if self.received == before else 0
            before = self.received
            await asyncio.sleep(0.01)

    def wait_for_readers(self) -> None:
        """Return when the threads that read have ended."""
        give_up = time.monotonic() + _PATIENCE_S
        while self.readers and time.monotonic() < give_up:
            time.sleep(0.01)
        if self.readers:
            self.process.journal.say("error", f"{self.readers} threads did not end their receives")

    async def take_rest(self, hands: Hands) -> None:
        """Take what lies there for this process; its readers must have left nothing."""
        hands.journal.say("rest", hands.stream)
        homes = [self.home, *{name.partition("!")[0] + "!" for name in self.names if "!" in name}]
        leaves = [self.home + leaf for leaf in (*LEAVES, "d", "z")]
        old = isinstance(hands.face, OldFace)
        names = [*homes, *(() if old else leaves), f"own.{self.process.slot}"]
        names += [name for name in self.names if not (old and "!" in name)]
        if not old and not isinstance(hands.face, AioFace):
            names = [name for name in names if name[-1] != "!"]  # would not say for whom it was
        for name in names:
            while (await hands.receive([name], 0))[1] is not None:
                pass

    async def asker(self, hands: Hands) -> None:
        """Ask others and wait for the answer at a name of one's own."""
        self.process.busy.add("asker")
        chance = self.chance("asker")
        name = await self._mine(hands)
        while self.is_running() and name is not None:
            target = chance.choice((*WORK, self._somebodys(chance)))
            await hands.send(target, chance.randint(0, 300), reply=name, name=name)
            await hands.receive([name], 0.5)
            await hands.face.sleep(chance.uniform(0, 0.05))
        self.process.busy.discard("asker")

    async def _mine(self, hands: Hands) -> str | None:
        name = await hands.new_channel()
        if name is not None:
            self.names.append(name)
        return name

    async def giver_up(self, hands: Any) -> None:
        """Begin receives and cancel them, at every moment."""
        self.process.busy.add("giver-up")
        chance = self.chance("giver-up")
        loop = asyncio.get_running_loop()
        streams = [hands() for _ in range(3)]
        while self.is_running():
            names = chance.choice(([self.home + "d"], [WORK[1]], [self.home + "d", *WORK]))
            tasks = [loop.create_task(one.receive(names)) for one in streams]
            for _ in range(chance.choice((0, 1, 1, 2, 3))):
                await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.003, 0.02)))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(chance.uniform(0, 0.02))
        self.process.busy.discard("giver-up")

    # -- sending -----------------------------------------------------------------------------

    def _somebodys(self, chance: random.Random) -> str:
        if self.targets and chance.random() < 0.3:
            return chance.choice(self.targets)
        return home_of_slot(chance.randrange(SLOTS)) + chance.choice((*LEAVES, *LEAVES, "d", "z"))

    async def sender(self, name: str, hands: Hands) -> None:
        """Send to everybody in all ways."""
        self.process.busy.add(name)
        chance = self.chance(name)
        while self.is_running():
            await self.send_something(hands, chance)
            await hands.face.sleep(chance.choice((0, 0.001, 0.003, 0.01, 0.02)))
        self.process.busy.discard(name)

    async def send_something(self, hands: Hands, chance: random.Random) -> None:
        """Send once, in one of the ways."""
        size = chance.choice((0, 10, 100, 300, 700, 700, 5_000, 70_000 * (chance.random() < 0.2)))
        is_old = isinstance(hands.face, OldFace)
        action = chance.random()
        if action < 0.15:
            left_out = [self.home + LEAVES[1]] if not is_old and chance.random() < 0.3 else []
            await hands.send_group(chance.choice(GROUPS), min(size, 5000), left_out)
        elif action < 0.25 and not is_old:
            names = [*WORK, *SMALL, *(home_of_slot(n) + "a" for n in range(SLOTS))]
            await hands.send_many(chance.sample(names, chance.randint(1, 6)), min(size, 700))
        else:
            target = chance.choice((*WORK, *SMALL, *(self._somebodys(chance) for _ in range(4))))
            expiry = chance.choice((None, None, None, 0.05, 1.0)) if not is_old else None
            await hands.send(target, size, expiry)

    async def one_turn(self, hands: Hands) -> None:
        """What a main thread does between two looks around."""
        if self.is_running():
            await self.send_something(hands, self._main)
        names = [WORK[2]] if self.process.life.face == "twin" else list(WORK)
        await hands.receive(names, self._main.choice((0, 0.01, 0.03)))

    @property
    def _main(self) -> random.Random:
        found: random.Random | None = self.__dict__.get("_main_chance")
        if found is None:
            found = self.__dict__["_main_chance"] = self.chance("main")
        return found

    # -- groups ------------------------------------------------------------------------------

    async def member(self, hands: Hands) -> None:
        """Join and leave, and look who is there."""
        self.process.busy.add("member")
        chance = self.chance("member")
        name = await self._mine(hands)
        mine = [self.home + LEAVES[2], self.home + "d", f"own.{self.process.slot}"]
        if name is not None and not isinstance(hands.face, OldFace):
            mine.append(name)
        while self.is_running():
            group, action = chance.choice(GROUPS[1:]), chance.random()
            if action < 0.45:
                await hands.join(group, chance.choice(mine))
            elif action < 0.8:
                await hands.leave(group, chance.choice(mine))
            else:
                await hands.members(group)
            await hands.face.sleep(chance.uniform(0, 0.06))
        self.process.busy.discard("member")

    # -- loops, forks, closing -------------------------------------------------------------

    async def second_loops(self, hands: Hands) -> None:
        """Have a second event loop in a thread now and then, for a short time."""
        self.process.busy.add("second loops")
        chance = self.chance("second loops")
        while self.is_running():
            seed, is_abrupt = chance.random(), chance.random() < 0.5
            thread = threading.Thread(
                target=self._second_loop, args=(seed, is_abrupt), name="second loop", daemon=True
            )
            thread.start()
            while thread.is_alive():
                await hands.face.sleep(0.02)
            await hands.face.sleep(chance.uniform(0, 0.3))
        self.process.busy.discard("second loops")

    def _second_loop(self, seed: float, is_abrupt: bool) -> None:
        chance = random.Random(seed)
        try:
            loop = asyncio.new_event_loop()
        except OSError:
            if self.process.may_run_short:
                return
            raise
        tasks: list[asyncio.Task[Any]] = []

        async def body() -> None:
            for names in ([self.home + "z"], [self.home + "z", WORK[1]], [WORK[2]]):
                hands = self.process.hands(AioFace(self.process.layer))
                tasks.append(loop.create_task(self.reader(hands, names)))
            await asyncio.sleep(chance.uniform(0, 0.3))
            if not is_abrupt:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        try:
            loop.run_until_complete(body())
            if not is_abrupt:
                loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    async def forker(self, hands: Hands) -> None:
        """Have forked children, one at a time."""
        self.process.busy.add("forker")
        chance = self.chance("forker")
        number = 0
        while self.is_running():
            await hands.face.sleep(chance.uniform(0.05, 0.5))
            kind = chance.choice(FORKS)
            is_killed_after = chance.uniform(0, 0.3) if chance.random() < 0.3 else None
            number += 1
            if kind == "exec":
                try:
                    run_true()
                except OSError:
                    if not self.process.may_run_short:
                        raise
                continue
            pid = self._fork(kind, str(number))
            await self._wait_for(hands, f"{hands.journal.who}.{number}", pid, is_killed_after)
        self.process.busy.discard("forker")

    async def parent(self, hands: Hands) -> None:
        """Wait for the children that were forked at birth."""
        self.process.busy.add("parent")
        for name, pid in self.children.items():
            await self._wait_for(hands, name, pid, None)
        self.process.busy.discard("parent")

    def _fork(self, kind: str, name: str) -> int:
        process = self.process
        name = f"{process.journal.who}.{name}"
        seed = self.chance(name).randrange(2**32)
        pid = fork(kind)
        if pid == 0:
            live_as_child(kind, name, process.journal, process.board, process.hands, seed)
        process.journal.say("forked", name, pid, kind)
        return pid

    async def _wait_for(
        self, hands: Hands, name: str, pid: int, is_killed_after: float | None
    ) -> None:
        begun = time.monotonic()
        while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
            late = time.monotonic() - begun > _PATIENCE_S
            if late:
                hands.journal.say("error", f"the child {name} hangs")
            if late or (is_killed_after is not None and time.monotonic() > begun + is_killed_after):
                hands.journal.say("killed", name)
                os.kill(pid, signal.SIGKILL)
                is_killed_after = None
                begun = time.monotonic()
            await hands.face.sleep(0.02)
        hands.journal.say("gone", name, os.waitstatus_to_exitcode(status[1]))

    async def closer(self, hands: Hands) -> None:
        """Close the layer in the middle of everything; it is used on."""
        self.process.busy.add("closer")
        chance = self.chance("closer")
        while self.is_running():
            await hands.face.sleep(chance.uniform(0.3, 2))
            if self.is_running():
                hands.close()
        self.process.busy.discard("closer")
