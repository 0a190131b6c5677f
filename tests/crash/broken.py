"""Deliberately broken variants of the redo log: what the exploration must be able to see."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from asgi_ipc._process.witness import Life
from asgi_ipc._shm import layout as L
from asgi_ipc._shm.segment import Segment

from .world import World


class Broken(Segment):
    """A segment whose every commit goes through ``commit``."""

    def commit_four(self, *pairs: int) -> None:
        """Do what ``commit`` does."""
        self.commit(dict(zip(pairs[::2], pairs[1::2], strict=True)))

    def commit_six(self, *pairs: int) -> None:
        """Do what ``commit`` does."""
        self.commit(dict(zip(pairs[::2], pairs[1::2], strict=True)))

    def commit_pairs(self, *pairs: int) -> None:
        """Do what ``commit`` does."""
        self.commit(dict(zip(pairs[::2], pairs[1::2], strict=True)))

    def _write_log(self, plan: dict[int, int]) -> None:
        for number, (word, value) in enumerate(plan.items()):
            self.words[L.LOG + 2 * number] = word
            self.words[L.LOG + 2 * number + 1] = value

    def _apply(self, plan: dict[int, int], flags: int) -> None:
        if flags:
            self._reset()
        for word, value in plan.items():
            self.words[word] = value


class Rewritten(Broken):
    """Not broken: what the variants below would be if nothing were wrong with them."""

    def commit(self, plan: dict[int, int], flags: int = 0) -> None:
        """Log, commit, apply, clear."""
        self._write_log(plan)
        self.words[L.LOG_N] = len(plan) | flags
        self._apply(plan, flags)
        self.words[L.LOG_N] = 0


class CommitsBeforeTheLogIsWritten(Broken):
    """The commit point comes before what it promises."""

    def commit(self, plan: dict[int, int], flags: int = 0) -> None:
        """Commit, log, apply, clear."""
        self.words[L.LOG_N] = len(plan) | flags
        self._write_log(plan)
        self._apply(plan, flags)
        self.words[L.LOG_N] = 0


class HasNoLog(Broken):
    """Every store counts at once."""

    def commit(self, plan: dict[int, int], flags: int = 0) -> None:
        """Apply."""
        self._apply(plan, flags)


class ClearsTheLogEarly(Broken):
    """The log is taken back before it was made true."""

    def commit(self, plan: dict[int, int], flags: int = 0) -> None:
        """Log, commit, clear, apply."""
        self._write_log(plan)
        self.words[L.LOG_N] = len(plan) | flags
        self.words[L.LOG_N] = 0
        self._apply(plan, flags)


class ForgetsTheLastWord(Broken):
    """The commit point says one entry less than there are."""

    def commit(self, plan: dict[int, int], flags: int = 0) -> None:
        """Log, commit all but one, apply all, clear."""
        self._write_log(plan)
        self.words[L.LOG_N] = (len(plan) - 1) | flags
        self._apply(plan, flags)
        self.words[L.LOG_N] = 0


class RingsAfterTheCommit(Rewritten):
    """Who is to be rung waits for the commit: see ``ring_late``."""

    late: list[Callable[[], object]]

    def commit(self, plan: dict[int, int], flags: int = 0) -> None:
        """Commit, then ring."""
        super().commit(plan, flags)
        late, self.late = self.late, []
        for ring in late:
            ring()


def ring_late(world: World) -> None:
    """Let the actors of a world ring when ``RingsAfterTheCommit`` says so."""

    def later(segment: RingsAfterTheCommit, slot: int, token: int, process: int) -> Life:
        segment.late.append(partial(world.ring, slot, token, process))
        return Life.ALIVE

    for actor in world.actors:
        segment = actor.messages_segment
        assert isinstance(segment, RingsAfterTheCommit)
        segment.late = []
        actor.messages.slots.ring = partial(later, segment)
