"""``Worker``: registering handlers, and running until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..aio import AsyncIPCChannelLayer
from ..sync import IPCChannelLayer
from ._service import Service, name_of, refuse_what_does_nothing

__all__ = ["Worker"]

Handler = TypeVar("Handler", bound=Callable[[Any], Any])

logger = logging.getLogger("asgi_ipc.worker")


class Worker:
    """Feeds handlers with the messages of their channels.

    One object serves on one event loop at a time. Any number of workers, in any number of
    processes, may read the same channels: each message goes to one of them.
    """

    def __init__(
        self,
        layer: AsyncIPCChannelLayer | IPCChannelLayer,
        *,
        concurrency: int = 64,
        threads: int = 1,
        send_timeout: float = 10.0,
        stop_timeout: float = 30.0,
    ) -> None:
        """Make a worker that has no handlers yet; nothing is read before ``run`` or ``serve``.

        Args:
            layer: of any face. The worker does not close it.
            concurrency: coroutine handlers that may be under way at once.
            threads: plain functions that may be under way at once, each on a thread. With one,
                they run in the order of their messages.
            send_timeout: seconds that a reply waits for room before ``ChannelFull``.
            stop_timeout: seconds that a stop waits for the handlers under way. A plain function
                cannot be cut short: a process that ends waits for it even then.
        """
        for what, number in (("concurrency", concurrency), ("threads", threads)):
            if number < 1:
                raise ValueError(f"{what} must be at least 1, not {number}")
        for what, seconds in (("send_timeout", send_timeout), ("stop_timeout", stop_timeout)):
            if seconds < 0:
                raise ValueError(f"{what} must not be negative: {seconds}")
        self.layer: AsyncIPCChannelLayer = (
            layer.core if isinstance(layer, IPCChannelLayer) else layer
        )
        self.concurrency = concurrency
        self.threads = threads
        self.send_timeout = send_timeout
        self.stop_timeout = stop_timeout
        self._handlers: dict[str, Callable[[Any], Any]] = {}
        self._service: Service | None = None

    def on(self, *channels: str) -> Callable[[Handler], Handler]:
        """Register the decorated function as the handler of these channels.

        A coroutine function gets a ``Message`` and runs on the event loop; any other callable
        gets a ``SyncMessage`` and runs on a thread. ``name!`` stands for every channel below it.

        An exception out of a handler is logged with the channel. If nothing was replied yet, an
        ``http.request`` is answered with 500, and a ``websocket.connect`` refused; a response that
        has begun is cut. ``SystemExit`` stops the worker as SIGTERM does, and is raised at the end.

        Raises:
            InvalidName: (``TypeError``) one of the names.
            TypeError: the function is a generator.
            ValueError: a channel has a handler already.
        """
        for channel in channels:
            self.layer.check_name(channel)
            if channel in self._handlers:
                name = name_of(self._handlers[channel])
                raise ValueError(f"channel {channel!r} has a handler already: {name}")

        def register(handler: Handler) -> Handler:
            refuse_what_does_nothing(handler)
            self._handlers.update(dict.fromkeys(channels, handler))
            return handler

        return register

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in hand and return.

        A second signal cancels the handlers under way. Signals are heeded on the main thread
        only; elsewhere, and beside other coroutines, use ``serve`` and ``stop``.

        Raises:
            RuntimeError: there are no handlers, or it serves already.
            IPCError: the layer cannot be used (any more); see ``exceptions``.
            SystemExit: a handler raised it; what was in hand is finished.
        """
        try:
            asyncio.run(self._serve_until_signal())
        except asyncio.CancelledError:
            pass  # the second signal

    async def _serve_until_signal(self) -> None:
        this_task = asyncio.current_task()
        assert this_task is not None

        def heed(number: signal.Signals) -> None:
            if self.is_stopping:
                logger.warning("%s again: cancelling what is in hand", number.name)
                this_task.cancel()
            else:
                logger.info("%s: stopping", number.name)
                self.stop()

        with _signals_to(heed):
            await self.serve()

    async def serve(self) -> None:
        """Serve until ``stop`` is called, then finish what is in hand and return.

        When cancelled, the handlers under way are cancelled, too; messages that were not taken
        yet stay where they are.

        Raises:
            RuntimeError: there are no handlers, or it serves already.
            IPCError: the layer cannot be used (any more); see ``exceptions``.
        """
        if not self._handlers:
            raise RuntimeError("a worker needs a handler: decorate one with @worker.on(channel)")
        if self._service is not None:
            raise RuntimeError("this worker serves already: make another one")
        self._service = Service(
            self.layer,
            self._handlers,
            concurrency=self.concurrency,
            threads=self.threads,
            send_timeout=self.send_timeout,
            stop_timeout=self.stop_timeout,
        )
        try:
            await self._service.run()
        finally:
            self._service = None

    def stop(self) -> None:
        """Have ``serve`` take no more messages and return; from any thread, and idempotent.

        No effect on a worker that does not serve.
        """
        service = self._service
        if service is not None:
            service.stop()

    @property
    def is_stopping(self) -> bool:
        """Whether it serves, and was told to stop."""
        return self._service is not None and self._service.is_stopping

    def __repr__(self) -> str:
        """Name the site and the channels."""
        return f"{type(self).__name__}(prefix={self.layer.prefix!r}, channels={[*self._handlers]})"


@contextmanager
def _signals_to(heed: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Have the running loop told of SIGTERM and SIGINT, if it runs on the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, heed, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:  # None: not installed from Python, nothing to put back
                signal.signal(number, handler)
