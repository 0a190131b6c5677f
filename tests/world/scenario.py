"""A short life of a layer, in which any call may fail.

``python -m tests.world.scenario prefix kind user limit errno...``: the N-th system call of a
kind fails, for every N (for ``limit`` of them evenly, if there are more). Each step of the life
either succeeds or raises an ``IPCError``, and then succeeds when it is tried again. What does
not hold is printed, one line each.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.exceptions import IPCError

from ..conftest import problems_of
from .life import become_user
from .refusal import CONTROL_FD, Decider, install

_OPTIONS: dict[str, Any] = {"message_memory": 1 << 20, "group_memory": 1 << 20, "capacity": 1000}
_ENOUGH = 3  # trials with problems; more would say the same, and may take a minute each
_PATIENCE_S = 15.0  # less than the 30 s after which a loop looks by itself
_UNTIL_WATCHED_S = 0.4  # a loop asks for inotify when it has waited for a quarter of a second
_LATE = ("encodings.idna", "concurrent.futures.thread", "linecache", "multiprocessing.util")


class Subject:
    """The process whose calls fail."""

    def __init__(self, prefix: str, is_long: bool) -> None:
        self.prefix = prefix
        self.is_long = is_long
        self.errors: list[str] = []
        self.loop = asyncio.new_event_loop()  # its own descriptors are not the layer's
        self.mine = f"subject.{os.getpid()}!"

    def step(self, what: str, operation: Callable[[], Any]) -> Any:
        """Do something; once it may fail, with an ``IPCError``."""
        for attempt in range(3):
            try:
                return operation()
            except IPCError:
                if attempt == 2:
                    self.errors.append(f"{what} fails for good: {traceback.format_exc()}")
            except BaseException:
                self.errors.append(f"{what} raised no IPCError: {traceback.format_exc()}")
        return None

    def run(self) -> None:
        """Live the whole life, and say what was wrong with it."""
        self.of_ones_own(f"{self.prefix}-own")
        layer = self.step("attach", lambda: AsyncIPCChannelLayer(self.prefix, **_OPTIONS))
        if layer is not None:
            self.with_a_peer(layer)
            self.in_a_fork(layer)
            self.step("close", layer.close_now)
            self.with_a_peer(layer)
            layer.close_now()

    def of_ones_own(self, prefix: str) -> None:
        """Create a site, use it alone, remove it."""
        layer = self.step("create", lambda: AsyncIPCChannelLayer(prefix, **_OPTIONS))
        if layer is None:
            return
        self.step("send", lambda: layer.sync.send("c", {"body": bytes(300_000)}))
        if self.step("receive", lambda: layer.sync.receive("c", _PATIENCE_S)) is None:
            self.errors.append("a message of one's own does not come")
        self.step("wait in vain", lambda: layer.sync.receive("c", 0.001))
        if self.is_long:
            self.step("wait for long", lambda: layer.sync.receive("c", _UNTIL_WATCHED_S))
        self.step("unlink", layer.unlink)

    def with_a_peer(self, layer: AsyncIPCChannelLayer) -> None:
        """Ask another process, wait for its answers in both ways, be in a group with it."""
        name = self.mine + "a"
        self.step("join", lambda: layer.sync.group_add("g", name))
        self.step("send", lambda: layer.sync.send("peer!in", {"to": name}))
        self.get("an answer to a loop", lambda: self._on_loop(layer, name))
        self.step("send", lambda: layer.sync.send("peer!in", {"to": "back"}))
        self.get("an answer to a thread", lambda: layer.sync.receive("back", _PATIENCE_S))
        self.step("send", lambda: layer.sync.group_send("g", {"to": "back"}))
        self.get("a peer's answer to a group", lambda: layer.sync.receive("back", _PATIENCE_S))
        self.get("a group's message", lambda: self._on_loop(layer, name))
        self.step("leave", lambda: layer.sync.group_discard("g", name))
        self.step("empty", lambda: self._empty(layer, name, "back"))

    def get(self, what: str, receive: Callable[[], Any]) -> None:
        """Receive what must come."""
        if self.step(f"wait for {what}", receive) is None:
            self.errors.append(f"{what} does not come")

    def _on_loop(self, layer: AsyncIPCChannelLayer, name: str) -> Any:
        async def wait() -> Any:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    return await layer.receive(name)
            except TimeoutError:
                return None

        return self.loop.run_until_complete(wait())

    def _empty(self, layer: AsyncIPCChannelLayer, *names: str) -> None:
        """Take what came twice, because a send that had failed was tried again."""
        for one in names:
            while layer.sync.receive(one, 0) is not None:
                pass

    def in_a_fork(self, layer: AsyncIPCChannelLayer) -> None:
        """A forked child uses the layer that it inherits."""
        pid = os.fork()
        if pid == 0:
            errors = self.errors = []
            try:
                self.mine = f"child.{os.getpid()}!"
                self.step("send in a fork", lambda: layer.sync.send("peer!in", {"to": "forked"}))
                if self.step("receive", lambda: layer.sync.receive("forked", _PATIENCE_S)) is None:
                    errors.append("an answer to a forked child does not come")
                self.step("empty", lambda: self._empty(layer, "forked"))
                layer.close_now()
            except BaseException:
                errors.append(traceback.format_exc())
            finally:
                if errors:
                    os.write(CONTROL_FD, json.dumps(errors).encode() + b"\n")
                os._exit(0)
        os.waitpid(pid, 0)

    def look(self, before: set[str]) -> None:
        """When no call fails any more: does it work, and is nothing left?"""
        gc.collect()
        left = _descriptors() - before
        if left:
            self.errors.append(f"descriptors were left: {left}")
        layer = AsyncIPCChannelLayer(self.prefix, **_OPTIONS)
        self.with_a_peer(layer)
        self.errors += [f"check: {problem}" for problem in problems_of(layer)]
        layer.close_now()
        self.loop.close()


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            pass  # that of this very listing
    return found


def _be_subject(prefix: str, kind: str, user: int) -> None:
    become_user(user)
    subject = Subject(prefix, kind.startswith("inotify"))
    before = _descriptors()
    listener = install(kind)
    with socket.socket(fileno=CONTROL_FD) as control:
        socket.send_fds(control, [b"!"], [listener])
        control.detach()
    os.close(listener)
    try:
        subject.run()
    except BaseException:
        subject.errors.append(traceback.format_exc())
    os.write(CONTROL_FD, b"over\n")
    os.read(CONTROL_FD, 1)  # from here on no call fails
    try:
        subject.look(before)
    except BaseException:
        subject.errors.append(f"afterwards: {traceback.format_exc()}")
    os.write(CONTROL_FD, json.dumps(subject.errors).encode() + b"\n")


def _be_peer(prefix: str, user: int) -> None:
    """Answer whoever asks."""
    become_user(user)
    layer = AsyncIPCChannelLayer(prefix, **_OPTIONS)

    async def answer(name: str) -> None:
        while True:
            message = await layer.receive(name)
            await layer.send(message["to"], {})

    async def main() -> None:
        await layer.group_add("g", "peer!g")
        await asyncio.gather(answer("peer!in"), answer("peer!g"))

    asyncio.run(main())


def trial(prefix: str, kind: str, nth: int, refusal: int, user: int) -> tuple[int, list[str]]:
    """Let one subject live; return how many calls it made, and what was wrong."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.dup2(theirs.fileno(), CONTROL_FD)
        ours.close()
        theirs.close()
        _be_subject(prefix, kind, user)
        os._exit(0)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    decider = Decider(fds[0], nth, refusal)
    errors = _supervise(ours, decider, pid)
    os.close(fds[0])
    ours.close()
    return decider.count, errors


def _supervise(control: socket.socket, decider: Decider, pid: int) -> list[str]:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(decider.fd, select.POLLIN)
    give_up = time.monotonic() + 3 * _PATIENCE_S
    errors: list[str] = []
    said = b""
    while time.monotonic() < give_up:
        for fd, event in poll.poll(1000):
            if fd == decider.fd:
                if event & select.POLLIN:
                    decider.decide()
                else:
                    poll.unregister(fd)  # nobody is left who could ask
                continue
            piece = control.recv(65536)
            if not piece:
                _, status = os.waitpid(pid, 0)
                if status:
                    errors.append(f"it ended with status {status}")
                return errors
            said += piece
            *lines, said = said.split(b"\n")
            for line in lines:
                if line == b"over":
                    decider.is_over = True
                    control.send(b"!")
                else:
                    errors += json.loads(line)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [*errors, "it hangs"]


def main(prefix: str, kind: str, user: int, limit: int, *names: str) -> None:
    """Try every N of a kind with every errno, and print what was wrong."""
    for module in _LATE:
        importlib.import_module(module)
    asyncio.run(asyncio.to_thread(str))
    gc.freeze()
    peer = os.fork()
    if peer == 0:
        _be_peer(prefix, user)
    bad_trials = 0
    total, errors = trial(prefix, kind, 0, 0, user)
    for error in errors:
        print(json.dumps(["without a failure", error]), flush=True)
    for name in names if not errors else ():
        for nth in range(1, total + 1, -(-total // limit) or 1):
            if bad_trials == _ENOUGH:
                break
            _, errors = trial(prefix, kind, nth, getattr(errno, name), user)
            bad_trials += bool(errors)
            for error in errors:
                print(json.dumps([f"{kind} {nth} of {total}: {name}", error]), flush=True)
    os.kill(peer, signal.SIGKILL)
    os.waitpid(peer, 0)
    print(json.dumps(["over", total]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
