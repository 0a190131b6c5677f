"""Run the whole site: one `daphne`, two `runworker`, of which one has four threads.

    python examples/channels1_site/run.py [--port 8000]

Ctrl-C, or SIGTERM, stops everything and removes what it shared, and the exit status is 0 when
every process ended by itself with status 0. A process that dies meanwhile is started again, as
systemd would do it: try `kill -9` on any of them.
"""

import argparse
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STOP_DEADLINE_S = 15.0
# A worker with threads may miss a signal: Channels 1 takes the SystemExit that it raises for an
# error of the consumer that is running, logs it, and goes on.
ASK_AGAIN_S = 2.0
# A process that ends by itself sooner than this after its start would only do it again.
SHORTEST_LIFE_S = 2.0

REMOVE = """
from demo.asgi import channel_layer
channel_layer.unlink()
"""


class Stop(BaseException):
    """Ctrl-C or SIGTERM arrived."""


def find_interpreter() -> str:
    """Return a Python that has Channels 1: this one, or the one the project's tests use."""
    try:
        if importlib.metadata.version("channels").startswith("1."):
            return sys.executable
    except importlib.metadata.PackageNotFoundError:
        pass
    script = HERE.parent.parent / "tests" / "channels1" / "stack.py"
    made = subprocess.run(
        [sys.executable, str(script), "channels1"], stdout=subprocess.PIPE, text=True, check=True
    )
    return made.stdout.strip()


class Service:
    """One command, its process, and whether it may be started again."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.command = command
        self.start()

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches only this script."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, cwd=HERE, start_new_session=True)
        print(f"{self.name}: pid {self.process.pid}", flush=True)

    def start_again(self) -> None:
        """Start the process anew after it ended, unless it ended at once."""
        status = self.process.returncode
        print(f"{self.name}: ended with {status}", flush=True)
        was_killed = status < 0
        if not was_killed and time.monotonic() - self.started < SHORTEST_LIFE_S:
            raise SystemExit(f"{self.name} does not start")
        self.start()

    def stop(self) -> bool:
        """Ask the process to end, and wait; return whether it ended with status 0."""
        deadline = time.monotonic() + STOP_DEADLINE_S
        while self.process.poll() is None:
            self.process.terminate() if time.monotonic() < deadline else self.process.kill()
            try:
                self.process.wait(ASK_AGAIN_S)
            except subprocess.TimeoutExpired:
                continue
        print(f"{self.name}: ended with {self.process.returncode}", flush=True)
        return self.process.returncode == 0


def stop_on_signal(_number: int, _frame: object) -> None:
    """Leave the loop in main()."""
    raise Stop


def main() -> int:
    """Start the services, keep them running, stop them; return the exit status."""
    parser = argparse.ArgumentParser(description="run the Channels 1 example site")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    python = find_interpreter()
    daphne = str(Path(python).parent / "daphne")

    signal.signal(signal.SIGINT, stop_on_signal)
    signal.signal(signal.SIGTERM, stop_on_signal)
    services: list[Service] = []
    clean = True
    try:
        worker = [python, "manage.py", "runworker"]
        listen = ["-b", "127.0.0.1", "-p", str(options.port)]
        services.append(Service("worker", worker))
        services.append(Service("worker with 4 threads", [*worker, "--threads", "4"]))
        services.append(Service("daphne", [daphne, *listen, "demo.asgi:channel_layer"]))
        print(f"http://127.0.0.1:{options.port}/ (Ctrl-C stops it)", flush=True)
        while True:
            # WNOWAIT leaves the status for Popen, which must know that its process is gone.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            for service in services:
                if ended is not None and service.process.pid == ended.si_pid:
                    service.process.wait()
                    service.start_again()
    except Stop:
        pass
    finally:
        # Everything is ending already: a second Ctrl-C changes nothing.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # The workers first: what they still answer goes out through daphne.
        for service in services:
            clean = service.stop() and clean
        if services:
            subprocess.run([python, "-c", REMOVE], cwd=HERE, check=False)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
