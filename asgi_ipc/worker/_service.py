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
from ._message import Content, Message, Post, SyncMessage

__all__ = ["Handlers", "Service", "name_of", "refuse_what_does_nothing"]

Handlers = Mapping[str, Callable[[Any], Any]]
Answers = Mapping[str, Content]

logger = logging.getLogger("asgi_ipc.worker")

_PLAIN = [[b"content-type", b"text/plain; charset=utf-8"]]
_REFUSED: Content = {"close": True}
# What a client is told in a handler's place, by the channel of the message.
_FAILED: dict[str, Content] = {
    "http.request": {"status": 500, "headers": _PLAIN, "content": b"Internal Server Error\n"},
    "websocket.connect": _REFUSED,
}
_STOPPED: dict[str, Content] = {
    "http.request": {
        "status": 503,
        "headers": [*_PLAIN, [b"retry-after", b"1"]],
        "content": b"Service Unavailable\n",
    },
    "websocket.connect": _REFUSED,
}
# Ends a response that has begun. Daphne 1, which cannot cut one, sees an empty chunk.
_GIVEN_UP: Content = {"content": b"", "more_content": True, "closed": True}


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
        self._gives_up = False  # on handlers: they are cancelled
        self._exit: BaseException | None = None  # that a handler raised to end the process
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
        """Serve until told to stop, or until a receive fails, which is raised at the end.

        So is a ``SystemExit`` out of a handler, which stops it.
        """
        logger.info("listening on %s", ", ".join(sorted(self._handlers)))
        receivers = [asyncio.create_task(self._receive(lane)) for lane in self._lanes]
        waits = [*receivers, asyncio.create_task(self._told_to_stop.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await _cancel(waits)  # a cancelled receive holds no message
            await self._finish()
        finally:
            self._gives_up = True
            await _cancel([*waits, *self._in_hand])
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._exit is not None:
            raise self._exit
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
                "handlers still under way %g s after the stop, and given up: %d",
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
        if not lane.on_loop:
            await self._run_on_thread(handler, channel, content)
            return
        message = Message(channel, content, self._post)
        try:
            await handler(message)
            return
        except asyncio.CancelledError:
            if self._gives_up:
                logger.warning("%s was cancelled on a message of %r", name_of(handler), channel)
                await self._answer_for(message, _STOPPED)
                raise
            logger.exception("%s cancelled itself on a message of %r", name_of(handler), channel)
        except (SystemExit, KeyboardInterrupt) as exc:
            self._end_with(exc, handler, channel)
        except Exception:
            logger.exception("%s failed on a message of %r", name_of(handler), channel)
        await self._answer_for(message, _FAILED)

    async def _run_on_thread(
        self, handler: Callable[[Any], Any], channel: str, content: Content
    ) -> None:
        message = SyncMessage(channel, content, self._layer.sync, self._send_timeout)
        running = self._threads.submit(self._call, handler, message)
        try:
            await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if running.cancel():  # it has not begun
                await self._answer_for(message, _STOPPED)
            else:
                logger.warning("%s goes on with a message of %r", name_of(handler), channel)
            raise

    def _call(self, handler: Callable[[Any], Any], message: SyncMessage) -> None:
        """Run a function on this thread, to its end, even if nobody waits for it any more."""
        try:
            result = handler(message)
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise TypeError(
                    f"{name_of(handler)} returned a {type(result).__name__}, which nobody awaits: "
                    "declare it with 'async def'"
                )
            return
        except (SystemExit, KeyboardInterrupt) as exc:
            self._end_with(exc, handler, message.channel)
        except Exception:
            logger.exception("%s failed on a message of %r", name_of(handler), message.channel)
        answer = _answer_to(message, _FAILED)
        if answer is not None:
            try:
                message.send(*answer)
            except IPCError:
                logger.warning("nor can it be answered for", exc_info=True)

    def _end_with(self, exc: BaseException, handler: Callable[[Any], Any], channel: str) -> None:
        """Stop as after SIGTERM, and end as the handler wants it; from any thread."""
        logger.warning("%s ends the worker on a message of %r: %r", name_of(handler), channel, exc)
        self._exit = exc
        self.stop()

    async def _answer_for(self, message: Message | SyncMessage, answers: Answers) -> None:
        """Tell the client of a handler that will not, if somebody waits to be told."""
        answer = _answer_to(message, answers)
        if answer is None:
            return
        try:
            if self._gives_up:
                await self._layer.send(*answer)
            else:
                await self._post.send(*answer)
        except IPCError:
            logger.warning("nor can it be answered for", exc_info=True)


def _answer_to(message: Message | SyncMessage, answers: Answers) -> tuple[str, Content] | None:
    """Return where to send what, or None if nobody waits or all was said."""
    answer = answers.get(message.channel)
    if message.has_replied:
        has_begun = message.channel == "http.request" and message.is_unfinished
        answer = _GIVEN_UP if has_begun else None
    if answer is None or message.reply_channel is None:
        return None
    return message.reply_channel, answer


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


def refuse_what_does_nothing(handler: object) -> None:
    """Refuse what could be called, and would do nothing.

    Raises:
        TypeError: it cannot be called, or is a generator, which nobody would run.
    """
    if not callable(handler):
        raise TypeError(f"a handler must be callable, not {handler!r}")
    for one in (handler, getattr(handler, "__call__", None)):  # noqa: B004
        if inspect.isasyncgenfunction(one) or inspect.isgeneratorfunction(one):
            raise TypeError(
                f"handler {name_of(handler)} is a generator, and nobody would run it: "
                "take the 'yield' out"
            )


def name_of(handler: Callable[..., Any]) -> str:
    """Return what a log line calls a handler."""
    module = getattr(handler, "__module__", "?")
    return f"{module}.{getattr(handler, '__qualname__', repr(handler))}"
