"""The loop of a worker: takes messages while there is a free place, and runs their handlers."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..aio import AsyncIPCChannelLayer
from ..exceptions import IPCError, StoreLocked
from ..names import home_of
from .message import Content, Message, Post, SyncMessage

__all__ = ["Handlers", "Service", "name_of"]

Handlers = Mapping[str, Callable[[Any], Any]]

logger = logging.getLogger("asgi_ipc.worker")

_FAILURES: dict[str, Content] = {
    "http.request": {
        "status": 500,
        "headers": [[b"content-type", b"text/plain; charset=utf-8"]],
        "content": b"Internal Server Error\n",
    },
    "websocket.connect": {"close": True},
}


class _Lane:
    """The channels whose handlers run in the same way, and how many of them may at once."""

    def __init__(self, channels: list[str], limit: int, on_loop: bool) -> None:
        self.channels = channels
        self.free = asyncio.Semaphore(limit)
        self.on_loop = on_loop


class Service:
    """One time of serving: from the first receive to the end of the last handler."""

    def __init__(
        self,
        layer: AsyncIPCChannelLayer,
        handlers: Handlers,
        *,
        concurrency: int,
        threads: int,
        send_timeout: float,
        stop_timeout: float,
    ) -> None:
        """See ``Worker``; to be made on the event loop that it serves on."""
        self._layer = layer
        self._send_timeout = send_timeout
        self._stop_timeout = stop_timeout
        self._post = Post(layer, send_timeout)
        self._handlers = dict(handlers)
        self._loop = asyncio.get_running_loop()
        self._told_to_stop = asyncio.Event()
        self.is_stopping = False
        self._in_hand: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(threads, "asgi-ipc-worker")
        coroutines = [name for name, handler in handlers.items() if _is_coroutine(handler)]
        functions = [name for name in handlers if name not in coroutines]
        self._lanes = [
            lane
            for lane in (
                _Lane(coroutines, concurrency, on_loop=True),
                _Lane(functions, threads, on_loop=False),
            )
            if lane.channels
        ]

    def stop(self) -> None:
        """Take no more messages; from any thread."""
        self.is_stopping = True
        try:
            self._loop.call_soon_threadsafe(self._told_to_stop.set)
        except RuntimeError:
            pass  # the loop was closed meanwhile: it has stopped

    async def run(self) -> None:
        """Serve until told to stop, or until a receive fails, which is raised at the end."""
        logger.info("listening on %s", ", ".join(sorted(self._handlers)))
        receivers = [asyncio.create_task(self._receive(lane)) for lane in self._lanes]
        waits = [*receivers, asyncio.create_task(self._told_to_stop.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await _cancel(waits)  # a cancelled receive holds no message
            await self._finish()
        finally:
            await _cancel([*waits, *self._in_hand])
            self._threads.shutdown(wait=False, cancel_futures=True)
        for receiver in receivers:
            if not receiver.cancelled():
                receiver.result()

    async def _finish(self) -> None:
        """Wait for what is in hand, at most ``stop_timeout``."""
        if not self._in_hand:
            return
        logger.info("finishing the messages in hand: %d", len(self._in_hand))
        _, late = await asyncio.wait(self._in_hand, timeout=self._stop_timeout)
        if late:
            logger.warning(
                "handlers still under way %g s after the stop, and cancelled: %d",
                self._stop_timeout,
                len(late),
            )

    async def _receive(self, lane: _Lane) -> None:
        """Take messages while there are free places, and hand each to its handler."""
        while True:
            await lane.free.acquire()
            channel, content = await self._next(lane.channels)
            task = asyncio.create_task(self._handle(lane, channel, content))
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)
            task.add_done_callback(lambda _: lane.free.release())
            # The handler begins before the next message is taken: one that waits for nothing
            # is done by then, and a worker never holds more than it works on.
            await asyncio.sleep(0)

    async def _next(self, channels: list[str]) -> tuple[str, Content]:
        while True:
            try:
                channel, content = await self._layer.receive_async(channels)
            except StoreLocked:
                logger.warning("cannot receive, trying again", exc_info=True)
                continue
            if channel is not None and content is not None:  # else block_timeout is over
                return channel, content

    async def _handle(self, lane: _Lane, channel: str, content: Content) -> None:
        handler = self._handlers.get(channel) or self._handlers[home_of(channel)]
        message: Message | SyncMessage
        try:
            if lane.on_loop:
                message = Message(channel, content, self._post)
                await handler(message)
            else:
                message = SyncMessage(channel, content, self._layer.sync, self._send_timeout)
                await self._loop.run_in_executor(self._threads, handler, message)
        except asyncio.CancelledError:
            logger.warning("%s was cancelled on a message of %r", name_of(handler), channel)
            raise
        except Exception:
            logger.exception("%s failed on a message of %r", name_of(handler), channel)
            await self._answer_for(message)

    async def _answer_for(self, message: Message | SyncMessage) -> None:
        """Tell the client of a failed handler, if somebody waits to be told and was not."""
        answer = _FAILURES.get(message.channel)
        if answer is None or message.reply_channel is None or message.has_replied:
            return
        try:
            await self._layer.send(message.reply_channel, answer)
        except IPCError:
            logger.warning("nor can it be answered for", exc_info=True)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, one way or another."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


def _is_coroutine(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - of an instance, not whether it has one
    )


def name_of(handler: Callable[..., Any]) -> str:
    """Return what a log line calls a handler."""
    module = getattr(handler, "__module__", "?")
    return f"{module}.{getattr(handler, '__qualname__', repr(handler))}"
