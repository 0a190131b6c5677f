"""Calls of a layer, each written down before and after.

All faces look alike here: coroutines, which suspend on an event loop and block in a thread.
``by_hand`` runs the latter. Only public faces of the package are used.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Coroutine, Sequence
from types import CodeType, FrameType
from typing import Any, Protocol, TypeVar

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer
from asgi_ipc.exceptions import IPCError, LayerClosed

from .journal import Journal

__all__ = ["AioFace", "Face", "Hands", "Interrupted", "InterruptedFace", "OldFace", "TwinFace"]
__all__ += ["by_hand"]

R = TypeVar("R")
Got = tuple[str | None, dict[str, Any] | None]


class Interrupted(Exception):
    """What the signal handler of a process raises."""


class Face(Protocol):
    """What hands can do with a layer. A receive with the timeout ``None`` waits for ever."""

    async def send(self, channel: str, message: dict[str, Any], expiry: float | None) -> None: ...
    async def send_many(self, letters: list[tuple[str, dict[str, Any]]]) -> None: ...
    async def receive(self, names: Sequence[str], timeout: float | None) -> Got: ...
    async def new_channel(self) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(
        self, group: str, message: dict[str, Any], exclude: Sequence[str]
    ) -> None: ...
    async def group_channels(self, group: str) -> list[str]: ...
    async def sleep(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class AioFace:
    """``AsyncIPCChannelLayer``, and that of Channels 4, on a running loop."""

    def __init__(self, layer: AsyncIPCChannelLayer) -> None:
        self.layer = layer
        self.send_many = layer.send_many
        self.new_channel = layer.new_channel
        self.group_add = layer.group_add
        self.group_discard = layer.group_discard
        self.group_channels = layer.group_channels
        self.close = layer.close_now

    async def send(self, channel: str, message: dict[str, Any], expiry: float | None) -> None:
        await self.layer.send(channel, message, expiry=expiry)

    async def receive(self, names: Sequence[str], timeout: float | None) -> Got:
        if timeout == 0:
            return await self.layer.receive_async(names, block=False)
        if timeout is None:  # Python 3.11 may crash when it throws a ``timeout`` away
            return await self._wait(names)
        try:
            async with asyncio.timeout(timeout):
                return await self._wait(names)
        except TimeoutError:
            return None, None

    async def _wait(self, names: Sequence[str]) -> Got:
        if len(names) == 1 and not names[0].endswith("!"):
            return names[0], await self.layer.receive(names[0])
        return await self.layer.receive_async(names)

    async def group_send(self, group: str, message: dict[str, Any], exclude: Sequence[str]) -> None:
        await self.layer.group_send(group, message, exclude=exclude)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class TwinFace:
    """The blocking twin of an async layer."""

    def __init__(self, layer: AsyncIPCChannelLayer) -> None:
        self.layer = layer
        self.twin = layer.sync
        self.close = layer.close_now

    async def send(self, channel: str, message: dict[str, Any], expiry: float | None) -> None:
        self.twin.send(channel, message, expiry=expiry)

    async def send_many(self, letters: list[tuple[str, dict[str, Any]]]) -> None:
        self.twin.send_many(letters)

    async def receive(self, names: Sequence[str], timeout: float | None) -> Got:
        # One name is all that the twin takes. A whole home says nothing of the name below it.
        message = self.twin.receive(names[0], timeout)
        return (None, None) if message is None else (names[0], message)

    async def new_channel(self) -> str:
        return self.twin.new_channel()

    async def group_add(self, group: str, channel: str) -> None:
        self.twin.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        self.twin.group_discard(group, channel)

    async def group_send(self, group: str, message: dict[str, Any], exclude: Sequence[str]) -> None:
        self.twin.group_send(group, message, exclude=exclude)

    async def group_channels(self, group: str) -> list[str]:
        return self.twin.group_channels(group)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _Armed:
    """Lets a signal handler raise while a call is going on, and at no other time."""

    def __init__(self, twin: Any) -> None:
        self.twin = twin
        self.is_on = False

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.twin, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.is_on = True
            try:
                return function(*args, **kwargs)
            finally:
                self.is_on = False

        return call


class InterruptedFace(TwinFace):
    """The twin, in a main thread where a signal handler raises ``Interrupted``."""

    def __init__(self, layer: AsyncIPCChannelLayer) -> None:
        super().__init__(layer)
        self.spared: CodeType | None = None  # another handler, which is to run to its end
        self.armed = self.twin = _Armed(layer.sync)  # type: ignore[assignment]

    def on_signal(self, _: int, frame: FrameType | None) -> None:
        if self.armed.is_on and frame is not None and frame.f_code is not self.spared:
            self.armed.is_on = False
            raise Interrupted


class OldFace:
    """The blocking layer of Channels 1."""

    def __init__(self, layer: IPCChannelLayer) -> None:
        self.layer = layer
        self.close = layer.close

    async def send(self, channel: str, message: dict[str, Any], expiry: float | None) -> None:
        self.layer.send(channel, message)

    async def send_many(self, letters: list[tuple[str, dict[str, Any]]]) -> None:
        raise NotImplementedError("Channels 1 knows no batches")

    async def receive(self, names: Sequence[str], timeout: float | None) -> Got:
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            got = self.layer.receive(names, block=timeout != 0)
            if got[0] is not None or (give_up is not None and time.monotonic() >= give_up):
                return got

    async def new_channel(self) -> str:
        return self.layer.new_channel("reply?")

    async def group_add(self, group: str, channel: str) -> None:
        self.layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        self.layer.group_discard(group, channel)

    async def group_send(self, group: str, message: dict[str, Any], exclude: Sequence[str]) -> None:
        self.layer.send_group(group, message)

    async def group_channels(self, group: str) -> list[str]:
        return self.layer.group_channels(group)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def by_hand(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: R = stop.value
        return result
    raise AssertionError("a blocking call has suspended")


class Hands:
    """One thread of control: a task or a thread that does one thing after the other.

    Attributes:
        stream: its number in the process; what it sends to one channel has an order.
        may_run_short: of descriptors, so that an ``OSError`` or ``IPCError`` is no fault.
    """

    def __init__(self, face: Face, journal: Journal, stream: int, may_run_short: bool) -> None:
        self.face = face
        self.journal = journal
        self.stream = stream
        self.may_run_short = may_run_short

    async def _written(self, call: int, doing: Coroutine[Any, Any, R]) -> R | None:
        """Do it, and write down how it ended; ``None`` if it failed."""
        try:
            result = await doing
        except ChannelFull:
            self.journal.end(call, "refused")
        except LayerClosed:
            self.journal.end(call, "closed")
        except (IPCError, OSError) as exc:
            if not self.may_run_short:
                self.journal.say("error", traceback.format_exc(limit=-6))
            self.journal.end(call, "trouble", repr(exc))
            await self._recover(exc)
        except Interrupted:
            self.journal.end(call, "interrupted")
        except SystemExit:
            self.journal.end(call, "interrupted")
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.journal.end(call, "cancelled")
            raise
        except BaseException as exc:
            self.journal.say("error", traceback.format_exc(limit=-6))
            self.journal.end(call, "trouble", repr(exc))
            await self._recover(exc)
        else:
            if isinstance(result, tuple):
                channel, message = result
                self.journal.end(call, "got", channel, message and message.get("id"))
            else:
                self.journal.end(call, "ok", result)
            return result
        return None

    async def _recover(self, exc: BaseException) -> None:
        """Do not fill the journal with one error; but end if that is what it was raised by."""
        before: BaseException | None = exc
        while before is not None:
            if isinstance(before, GeneratorExit):
                raise before
            before = before.__context__
        await self.face.sleep(0.01)

    def message(self, call: int, size: int, **more: str) -> dict[str, Any]:
        return {"id": [self.journal.who, self.stream, call], "pad": "x" * size, **more}

    async def send(self, channel: str, size: int, expiry: float | None = None, **more: str) -> None:
        call = self.journal.do("send", self.stream, channel, expiry)
        await self._written(call, self.face.send(channel, self.message(call, size, **more), expiry))

    async def send_many(self, channels: Sequence[str], size: int) -> None:
        call = self.journal.do("send_many", self.stream, channels)
        letters = [(channel, self.message(call, size)) for channel in channels]
        await self._written(call, self.face.send_many(letters))

    async def receive(self, names: Sequence[str], timeout: float | None = None) -> Got:
        call = self.journal.do("receive", self.stream, names, timeout)
        return await self._written(call, self.face.receive(names, timeout)) or (None, None)

    async def new_channel(self) -> str | None:
        call = self.journal.do("new_channel", self.stream)
        return await self._written(call, self.face.new_channel())

    async def join(self, group: str, channel: str) -> None:
        call = self.journal.do("join", self.stream, group, channel)
        await self._written(call, self.face.group_add(group, channel))

    async def leave(self, group: str, channel: str) -> None:
        call = self.journal.do("leave", self.stream, group, channel)
        await self._written(call, self.face.group_discard(group, channel))

    async def send_group(self, group: str, size: int, exclude: Sequence[str] = ()) -> None:
        call = self.journal.do("send_group", self.stream, group, exclude)
        await self._written(call, self.face.group_send(group, self.message(call, size), exclude))

    async def members(self, group: str) -> list[str]:
        call = self.journal.do("members", self.stream, group)
        return await self._written(call, self.face.group_channels(group)) or []

    def close(self) -> None:
        call = self.journal.do("close", self.stream)
        self.face.close()
        self.journal.end(call, "ok")
