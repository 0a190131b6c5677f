"""The example site as real processes: start them, find out that they are ready, end them.

Each `Site` has its own prefix, port and data directory, so tests may run beside each other.
Waiting is always for a condition with a deadline, never for a time.
"""

import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SITE_DIRECTORY = PROJECT_ROOT / "examples" / "channels1_site"
SHARED_MEMORY = Path("/dev/shm")

# A line of daphne's access log.
ACCESS = re.compile(r" - - \[\d\d/\w{3}/\d{4}:")

# Generous: the machine may be busy with other tests. Nothing is asserted about times.
DEADLINE_S = 30.0


T = TypeVar("T")


def poll_until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Return the first true value of `condition`; fail after `deadline_s`, naming `what`."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.01)


def new_prefix() -> str:
    """Return a prefix for shared memory that nothing else uses."""
    return f"test-channels1-{os.getpid()}-{secrets.token_hex(4)}"


def unused_port() -> int:
    """Return a loopback port that is free, below the range of outgoing connections.

    Ports of that range may be taken by any client at any moment; worse, a client that keeps
    connecting to one while nobody listens ends up connected to itself.
    """
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:  # EADDRINUSE: try another
                continue
            return port
    raise AssertionError("no free port between 20000 and 32000")


def shared_memory_of(prefix: str) -> list[Path]:
    """Return the entries of a prefix in /dev/shm, those of the original package included."""
    return [path for path in SHARED_MEMORY.iterdir() if prefix in path.name]


def remove_shared_memory_of(prefix: str) -> None:
    """Delete a prefix's segments, bells and semaphores; every process must have ended."""
    for path in shared_memory_of(prefix):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class SiteProcess:
    """One daphne, runworker or other command of the site, with its output in a file."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self.threads = 1
        self.killed = False
        self.asked_with: signal.Signals | None = None
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=SITE_DIRECTORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def output(self) -> str:
        """Return everything it has written so far."""
        return self.log.read_text(errors="replace")

    def is_running(self) -> bool:
        """Tell whether it has not ended."""
        return self.process.poll() is None

    def has_logged(self, text: str, times: int = 1) -> bool:
        """Tell whether `text` is in its output; fail if it ended without."""
        if self.output().count(text) >= times:
            return True
        if not self.is_running():
            raise AssertionError(
                f"{self.name} ended with {self.process.returncode}:\n{self.output()}"
            )
        return False

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until `text` is in its output."""
        poll_until(lambda: self.has_logged(text, times), f"{text!r} in the output of {self.name}")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def ask_to_end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send SIGTERM (or SIGINT), without waiting."""
        self.asked_with = number
        self.process.send_signal(number)

    def exit_status(self) -> int:
        """Wait for the end, which was asked for, and return the status.

        A worker with threads ends by raising SystemExit wherever its main thread is. Inside a
        consumer Channels 1.1.8 takes that for an error of the consumer, logs it and goes on: the
        signal is lost, and has to be sent again. Where it was raised before the consumer had begun,
        Channels fails over what it has not set up yet, and ends with that error or by the second
        signal: that counts as 0 here.
        """
        swallowed = 0

        def has_ended() -> bool:
            nonlocal swallowed
            if not self.is_running():
                return True
            if self.asked_with and self.output().count("\nSystemExit: 0") > swallowed:
                swallowed += 1
                self.ask_to_end(self.asked_with)
            return False

        poll_until(has_ended, f"the end of {self.name} (pid {self.pid}):\n{self.output()[-4000:]}")
        status = self.process.wait()
        was_swallowed = self.asked_with and "\nSystemExit: 0" in self.output()
        return 0 if was_swallowed and status in (1, -signal.SIGTERM) else status


class Site:
    """One instance of the example site."""

    def __init__(
        self, python: Path, directory: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.python = python
        self.directory = directory
        self.prefix = new_prefix()
        self.port = unused_port()
        self.processes: list[SiteProcess] = []
        data = directory / "data"
        data.mkdir(parents=True)
        self.environment = {
            # Nothing of the tests' own interpreter may leak into the other one.
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "demo.settings",
            "CHANNELS1_SITE_PREFIX": self.prefix,
            "CHANNELS1_SITE_DATA": str(data),
            **(environment or {}),
        }

    @property
    def url(self) -> str:
        """Where HTTP goes."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where websockets go."""
        return f"ws://127.0.0.1:{self.port}"

    def start(self, *command: str) -> SiteProcess:
        """Start a command of the environment, such as `daphne` or `python`."""
        number = len(self.processes)
        program, *arguments = command
        process = SiteProcess(
            f"{number}: {' '.join(command)}",
            [str(self.python.parent / program), *arguments],
            self.environment,
            self.directory / f"{number}-{program}.log",
        )
        self.processes.append(process)
        return process

    def start_daphne(self, *arguments: str) -> SiteProcess:
        """Start the interface server; the site's port is the same for every one."""
        listen = ("-b", "127.0.0.1", "-p", str(self.port))
        return self.start("daphne", *listen, *arguments, "demo.asgi:channel_layer")

    def start_worker(self, threads: int = 1, *arguments: str) -> SiteProcess:
        """Start a worker."""
        several = ("--threads", str(threads)) if threads > 1 else ()
        worker = self.start("python", "manage.py", "runworker", *several, *arguments)
        worker.threads = threads
        return worker

    def start_all(self) -> None:
        """Start one daphne, one worker, and one with four threads; wait until they answer."""
        self.start_daphne()
        for worker in (self.start_worker(), self.start_worker(4)):
            wait_until_working(worker)
        self.wait_until_answering()

    def wait_until_answering(self) -> None:
        """Wait until a request gets its answer."""
        poll_until(self.answers, f"an answer from {self.url}")

    def answers(self) -> bool:
        """Tell whether a request gets its answer; fail if a process failed meanwhile."""
        for process in self.processes:
            if not process.killed and process.process.poll() not in (None, 0):
                raise AssertionError(f"{process.name} ended:\n{process.output()[-3000:]}")
        try:
            return httpx.get(self.url, timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> dict[str, int]:
        """End what still runs with SIGTERM; return the statuses of all that was not killed."""
        for process in reversed(self.processes):
            if process.is_running():
                process.ask_to_end()
        try:
            return {
                process.name: process.exit_status()
                for process in self.processes
                if not process.killed
            }
        finally:
            for process in self.processes:
                if process.is_running():
                    process.kill()
            remove_shared_memory_of(self.prefix)

    def report(self) -> str:
        """Return the last output of every process but the access log, for a failed test."""
        parts = []
        for process in self.processes:
            lines = [line for line in process.output().splitlines() if not ACCESS.search(line)]
            status = process.process.poll()
            parts.append(f"--- {process.name} (pid {process.pid}, status {status})")
            parts.extend(lines[-40:])
        return "\n".join(parts)


def wait_until_working(worker: SiteProcess) -> None:
    """Wait until a worker reads its channels in every thread.

    The main thread, which handles SIGTERM from then on, need not be the first.
    """
    worker.wait_for_log("Listening on channels", worker.threads)
