"""What the connections of one event loop share: names, counts, and messages nobody waits for.

**Names.** All begin with one process part. Websockets share one home,
``websocket.send.<part>!``, so that a group message comes once for all of them; one coroutine
reads it. A request borrows a home of its own, ``http.response.<part>-<n>!``, for as long as
its worker sends: Channels 1 counts capacity on the home, so a slow download fills nobody's
channel but its own. Homes are used again, and there are as many as there were requests at
once. The part behind the ``!`` is new for every connection: what comes late is recognised.

**Orphans.** A worker whose client went away still sends; its messages are read and dropped
until it has finished, so that it is not held up by a channel that nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from ..aio import AsyncIPCChannelLayer
from ..exceptions import ChannelFull, IPCError, LayerClosed
from ._options import InterfaceOptions
from ._turns import Frames

__all__ = ["Context", "Counts", "new_name"]

logger = logging.getLogger("asgi_ipc.interface")

_IN_A_ROW = 32  # messages handled before other coroutines have their turn
_PAUSE_S = 1.0  # before the layer is tried again after an error
_FULL_S = 0.1  # a channel that was full and need not be read is not tried again for so long


def new_name(home: str) -> str:
    """Return a reply channel below a home that was never used."""
    return home + secrets.token_hex(8)


@dataclass
class Counts:
    """What happened since the server was made.

    Attributes:
        requests: HTTP requests begun.
        websockets: websockets begun.
        full: answered with 503, or closed with 1013, because a channel was full.
        too_large: answered with 413, or closed with 1009.
        timed_out: answered with 504 (408, 1000), or cut, because nothing came in time.
        malformed: messages of workers that broke the format.
        cut: responses that could not be finished.
        slow: websockets closed because their client was too far behind.
        aborted: connections whose client left before the answer.
        disconnects_dropped: ``http.disconnect`` and ``websocket.disconnect`` for which there
            was no room.
        unclaimed: messages for connections that were gone.
    """

    requests: int = 0
    websockets: int = 0
    full: int = 0
    too_large: int = 0
    timed_out: int = 0
    malformed: int = 0
    cut: int = 0
    slow: int = 0
    aborted: int = 0
    disconnects_dropped: int = 0
    unclaimed: int = 0


class Context:
    """The interface server on one event loop.

    Attributes:
        open_requests: HTTP requests that are not finished.
        sockets: of each websocket, by its reply channel, who takes its messages.
        frames: what is known of the frames they have sent to the workers.
        orphans: workers that still answer a request whose client is gone.
    """

    def __init__(
        self, layer: AsyncIPCChannelLayer, options: InterfaceOptions, counts: Counts, part: str
    ) -> None:
        """Make names from a process part; nothing is read yet."""
        self.layer = layer
        self.options = options
        self.counts = counts
        self.loop = asyncio.get_running_loop()
        self.open_requests = 0
        self.sockets: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        self.orphans: set[asyncio.Task[None]] = set()
        self.frames = Frames(layer)
        self.websocket_home = f"websocket.send.{part}!"
        header = options.root_path_header
        self.root_path_header = header.lower().encode("latin-1") if header else None
        # A body's chunks, and its headers around them, must fit a message.
        largest = (layer.max_message_bytes or 1 << 62) // 2
        self.inline_body_bytes = min(options.inline_body_bytes, largest)
        self.chunk_bytes = min(options.chunk_bytes, largest)
        # A request may wait as long as any message, and its worker may then stand still.
        self.body_expiry = layer.expiry + options.request_timeout
        self._part = part
        self._homes: list[str] = []
        self._home_count = 0
        self._reader: asyncio.Task[None] | None = None
        self._all_answered: asyncio.Future[None] | None = None
        self._full_until: dict[str, float] = {}

    # -- requests ------------------------------------------------------------------------

    def borrow_home(self) -> str:
        """Return a home that no other request uses."""
        self.open_requests += 1
        if self._homes:
            return self._homes.pop()
        self._home_count += 1
        return f"http.response.{self._part}-{self._home_count}!"

    def return_home(self, home: str) -> None:
        """Give a home back once its worker has sent everything."""
        self._homes.append(home)
        self._close_request()

    def leave_home(self, home: str, name: str) -> None:
        """Give a home back whose worker may still be sending: somebody reads it until then."""
        self.orphans.add(task := self._start(self._drain(home, name)))
        task.add_done_callback(self.orphans.discard)
        self._close_request()

    def _close_request(self) -> None:
        self.open_requests -= 1
        waiter = self._all_answered
        if waiter is not None and not self.open_requests and not waiter.done():
            waiter.set_result(None)

    async def _drain(self, home: str, name: str) -> None:
        """Read what is left of a response nobody waits for, until its end or a long silence."""
        try:
            while True:
                deadline = time.monotonic() + self.options.request_timeout
                message = await self.layer.receive_within(name, deadline)
                if message is None:
                    break
                self.counts.unclaimed += 1
                if not message.get("more_content") and "request" not in message:
                    break
        except LayerClosed:
            return
        except IPCError as exc:
            logger.error("the rest of a response on %s cannot be read: %s", name, exc)
        self._homes.append(home)

    # -- messages ------------------------------------------------------------------------

    async def send_or_drop(
        self, channel: str, message: dict[str, Any], expiry: float | None = None
    ) -> None:
        """Send what need not be consumed; counted if there is no room for it.

        A channel that was full is left alone for a moment: a site that does not read
        ``http.disconnect`` would pay for an attempt with every request.
        """
        now = self.loop.time()
        if now < self._full_until.get(channel, 0.0):
            self.counts.disconnects_dropped += 1
            return
        try:
            await self.layer.send(channel, message, expiry=expiry)
        except ChannelFull:
            self.counts.disconnects_dropped += 1
            if "?" not in channel:
                self._full_until[channel] = now + _FULL_S
        except IPCError as exc:
            self.counts.disconnects_dropped += 1
            logger.error("a message for %s is lost: %s", channel, exc)

    def start_reader(self) -> None:
        """Read the websockets' home from now on."""
        if self._reader is None or self._reader.done():
            self._reader = self._start(self._read_websockets())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.loop.create_task(coroutine)

    async def _read_websockets(self) -> None:
        homes = [self.websocket_home]
        in_a_row = 0
        while True:
            try:
                channel, message = await self.layer.receive_async(homes)
            except LayerClosed:
                return
            except IPCError as exc:
                logger.error("websockets cannot be served: %s; trying again", exc)
                await asyncio.sleep(_PAUSE_S)
                continue
            if channel is None or message is None:
                continue  # the layer has a block_timeout
            deliver = self.sockets.get(channel)
            if deliver is None:
                self.counts.unclaimed += 1
            else:
                deliver(message)
            in_a_row += 1
            if in_a_row >= _IN_A_ROW:
                in_a_row = 0
                await asyncio.sleep(0)

    # -- the end -------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for the answers in flight, then stop reading; the layer stays as it is."""
        if self.open_requests:
            self._all_answered = self.loop.create_future()
            try:
                async with asyncio.timeout(self.options.shutdown_timeout):
                    await self._all_answered
            except TimeoutError:
                logger.warning(
                    "%d requests unanswered after %g s",
                    self.open_requests,
                    self.options.shutdown_timeout,
                )
            self._all_answered = None
        tasks = [*self.orphans, *([self._reader] if self._reader is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reader = None
