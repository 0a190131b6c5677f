"""Run the chat: two server processes that know each other only through shared memory.

    python examples/channels4_chat/run.py [--ports 8001 8002]

Ctrl-C, or SIGTERM, stops both and removes what they shared. A process that dies meanwhile is
started again: try `kill -9` on one of them and watch the pages.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from asgi_ipc import AsyncIPCChannelLayer

HERE = Path(__file__).resolve().parent
PATIENCE_S = 30.0
STOP_S = 10.0
SHORTEST_LIFE_S = 2.0


class Stop(BaseException):
    """Ctrl-C or SIGTERM arrived."""


class Server:
    """One uvicorn, its number and its port."""

    def __init__(self, number: int, ports: list[int], prefix: str) -> None:
        self.number = number
        self.port = ports[number - 1]
        self.environment = {
            **os.environ,
            "CHAT_PREFIX": prefix,
            "CHAT_PROCESS": str(number),
            "CHAT_PORTS": ",".join(map(str, ports)),
        }
        self.start()

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches only this script."""
        self.started = time.monotonic()
        command = [sys.executable, "-m", "uvicorn", "chat.asgi:application"]
        options = ["--port", str(self.port), "--lifespan", "off", "--log-level", "warning"]
        options += ["--ws", "websockets-sansio", "--timeout-graceful-shutdown", "2"]
        self.process = subprocess.Popen(
            [*command, *options], cwd=HERE, env=self.environment, start_new_session=True
        )

    def wait_until_ready(self) -> None:
        """Return once it accepts connections."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    url = f"http://127.0.0.1:{self.port}/"
                    print(f"process {self.number}: {url} (pid {self.process.pid})", flush=True)
                    return
            time.sleep(0.05)
        raise SystemExit(f"process {self.number} does not start")

    def start_again(self) -> None:
        """Start it anew after it ended, unless it ended at once."""
        print(f"process {self.number}: ended with {self.process.returncode}", flush=True)
        if self.process.returncode >= 0 and time.monotonic() - self.started < SHORTEST_LIFE_S:
            raise SystemExit(f"process {self.number} does not stay")
        self.start()
        self.wait_until_ready()

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def stop_on_signal(_number: int, _frame: object) -> None:
    raise Stop


def main() -> None:
    parser = argparse.ArgumentParser(description="run the Channels 4 chat")
    parser.add_argument("--ports", type=int, nargs="+", default=[8001, 8002], metavar="PORT")
    parser.add_argument("--prefix", default="channels4-chat", help="of the shared memory")
    options = parser.parse_args()

    signal.signal(signal.SIGINT, stop_on_signal)
    signal.signal(signal.SIGTERM, stop_on_signal)
    servers: list[Server] = []
    try:
        for number in range(1, len(options.ports) + 1):
            servers.append(Server(number, options.ports, options.prefix))
        for server in servers:
            server.wait_until_ready()
        print("open both in two tabs; Ctrl-C stops it", flush=True)
        while True:
            # WNOWAIT leaves the status for Popen, which must know that its process is gone.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            for server in servers:
                if ended is not None and server.process.pid == ended.si_pid:
                    server.process.wait()
                    server.start_again()
    except Stop:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is ending already
        for server in servers:
            server.stop()
        AsyncIPCChannelLayer(options.prefix).unlink()


if __name__ == "__main__":
    main()
