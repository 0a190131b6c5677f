"""An echo between two processes, on asyncio.

python examples/echo_async.py server      (first terminal)
python examples/echo_async.py client      (second terminal)
python examples/echo_async.py demo        (both, and stops by itself)
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import time

from asgi_ipc import AsyncIPCChannelLayer

ECHO = "echo"


async def server(prefix: str) -> None:
    """Answer every message on its reply channel until Ctrl-C."""
    async with AsyncIPCChannelLayer(prefix=prefix) as layer:
        this_task = asyncio.current_task()
        assert this_task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, this_task.cancel)
        print("server: waiting for messages; Ctrl-C stops it", flush=True)
        answered = 0
        try:
            while True:
                _, message = await layer.receive_async([ECHO])
                assert message is not None
                await layer.send(message["reply_channel"], {"text": message["text"]})
                answered += 1
        finally:
            print(f"server: stopped after {answered} echoes", flush=True)


async def client(prefix: str, count: int) -> None:
    """Send ``count`` messages, one after the other, and time each round trip."""
    async with AsyncIPCChannelLayer(prefix=prefix) as layer:
        reply_channel = await layer.new_channel("client")
        times_us = []
        for number in range(1, count + 1):
            text = f"hello {number}"
            started = time.perf_counter()
            await layer.send(ECHO, {"reply_channel": reply_channel, "text": text})
            answer = await layer.receive(reply_channel)
            times_us.append((time.perf_counter() - started) * 1e6)
            assert answer["text"] == text
            if number <= 3 or number == count:
                print(f"client: {text!r} came back in {times_us[-1]:.0f} µs", flush=True)
            elif number == 4:
                print("client: ...", flush=True)
        print(
            f"client: {count} echoes, median {statistics.median(times_us):.0f} µs there and back",
            flush=True,
        )


def demo(prefix: str, count: int) -> None:
    """Run a server in a process of its own, a client in this one, and tidy up."""
    command = [sys.executable, __file__, "server", "--prefix", prefix]
    with subprocess.Popen(command) as process:
        try:
            asyncio.run(client(prefix, count))
        finally:
            process.send_signal(signal.SIGINT)
    AsyncIPCChannelLayer(prefix=prefix).unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["server", "client", "demo"])
    parser.add_argument("--prefix", default="echo-async", help="the two sides share it")
    parser.add_argument("--count", type=int, default=1000, help="echoes to ask for")
    options = parser.parse_args()
    try:
        if options.role == "server":
            asyncio.run(server(options.prefix))
        elif options.role == "client":
            asyncio.run(client(options.prefix, options.count))
        else:
            demo(options.prefix, options.count)
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass  # Ctrl-C is how it is meant to stop


if __name__ == "__main__":
    main()
