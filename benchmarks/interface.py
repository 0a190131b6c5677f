"""What does the interface server cost, and what is it worth beside Daphne 1.4.2?

    python -m benchmarks.interface [--rounds 3] [--seconds 3]

- *Added latency*: requests one at a time through uvicorn, interface server, layer and a worker,
  beside the same trivial application served by uvicorn itself; their difference is set against
  the round trip of the floor (``benchmarks.floor``), measured in the same round.
- *Requests per second*, 16 at a time: Daphne 1.4.2 on the original layer, Daphne 1.4.2 on this
  layer, and this server; the worker is the same few lines of ``receive_many`` each time. It
  reads the channels that Channels 1 reads without further routing, so not ``http.disconnect``.
- *Memory* of an idle websocket, beyond what uvicorn itself needs for one.
- *80 MB in one piece*: how long its client waits for all of it if a handler of `asgi_ipc.worker`
  replies with it, and the slowest of the small requests beside it; two workers answer both.

The parts are the same for all contenders of a round, which run one after the other; figures
are medians over the rounds, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
CLIENTS: Final = 16
SOCKETS: Final = 1_000
PATIENCE_S: Final = 30.0

# Runs in three environments, of which two have no part of this package but the layer.
WORKER: Final = """
import os, sys, time
import asgi_ipc
layer = asgi_ipc.IPCChannelLayer(prefix=os.environ["PREFIX"], capacity=100)
channels = ["http.request", "websocket.connect", "websocket.receive", "websocket.disconnect"]
answer = {"status": 200, "headers": [[b"content-type", b"text/plain"]], "content": b"hello"}
print("ready", flush=True)
while True:
    channel, message = layer.receive_many(channels, block=True)
    if channel is None:
        time.sleep(0.01)  # as Channels 1 does
        continue
    if channel == "http.request":
        reply = answer
    elif channel == "websocket.connect":
        reply = {"accept": True}
    else:
        continue
    while True:
        try:
            layer.send(message["reply_channel"], reply)
            break
        except layer.ChannelFull:
            time.sleep(0.05)
"""
LARGE_WORKER: Final = """
import os
from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.worker import Worker
worker = Worker(AsyncIPCChannelLayer(os.environ["PREFIX"]))
large = bytes(80_000_000)

@worker.on("http.request")
async def answer(message):
    content = large if message["path"] == "/large" else b"hello"
    await message.reply({"status": 200, "content": content})

worker.run()
"""
DAPHNE_LAYER: Final = """
import os
import asgi_ipc
layer = asgi_ipc.IPCChannelLayer(prefix=os.environ["PREFIX"], capacity=100)
"""
DIRECT: Final = """
async def application(scope, receive, send):
    event = await receive()
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})
"""


# --- what runs ------------------------------------------------------------------------------


@contextmanager
def site(
    server: list[str],
    worker_python: Path | None,
    directory: Path,
    port: int,
    workers: tuple[str, ...] = (WORKER,),
) -> Iterator[subprocess.Popen[bytes]]:
    """A server and its workers, which answer when this begins; the server's process."""
    prefix = f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PREFIX": prefix,
        "ASGI_IPC_PREFIX": prefix,
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        with (directory / f"{prefix}.log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    command, env=environment, cwd=directory, stdout=log, stderr=subprocess.STDOUT
                )
            )
        return processes[-1]

    try:
        started = start(server)
        for worker in workers if worker_python is not None else ():
            start([str(worker_python), "-c", worker])
        asyncio.run(until_answering(port))
        yield started
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        for path in Path("/dev/shm").iterdir():
            if prefix in path.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


async def until_answering(port: int) -> None:
    """Wait until a request gets its answer."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            async with asyncio.timeout(5):
                await one_at_a_time(port, count=1)
            return
        except (OSError, EOFError, TimeoutError, RuntimeError):
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(0.1)


def commands(port: int, stacks: dict[str, Path]) -> dict[str, tuple[list[str], Path | None]]:
    """Each contender's server command, and the interpreter of its worker."""
    here = Path(sys.executable)
    uvicorn = [str(here), "-m", "uvicorn", "--port", str(port), "--log-level", "warning"]

    def daphne(stack: str) -> list[str]:
        program = stacks[stack].parent / "daphne"
        listen = ["-b", "127.0.0.1", "-p", str(port)]
        return [str(program), *listen, "--access-log", os.devnull, "daphne_layer:layer"]

    return {
        "direct": ([*uvicorn, "--no-access-log", "direct:application"], None),
        "interface": ([*uvicorn, "--no-access-log", "asgi_ipc.interface:application"], here),
        "daphne, this layer": (daphne("channels1"), stacks["channels1"]),
        "daphne, 1.4.2": (daphne("original"), stacks["original"]),
    }


# --- clients --------------------------------------------------------------------------------


async def read_answer(reader: asyncio.StreamReader) -> None:
    """Read one response, of known length or in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200 "):
        raise RuntimeError(f"not a 200: {head!r}")
    _, found, length = head.partition(b"content-length: ")
    if found:
        await reader.readexactly(int(length.partition(b"\r\n")[0]))
    else:
        await reader.readuntil(b"0\r\n\r\n")


async def one_at_a_time(port: int, *, seconds: float = 0.0, count: int = 0) -> list[float]:
    """Return how long each request took, over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    try:
        while len(taken) < count or time.perf_counter() < end:
            began = time.perf_counter()
            writer.write(request)
            await read_answer(reader)
            taken.append(time.perf_counter() - began)
    finally:
        writer.close()
        await writer.wait_closed()
    return taken


async def several_at_a_time(port: int, seconds: float) -> float:
    """Return requests per second."""
    began = time.perf_counter()
    each = await asyncio.gather(*(one_at_a_time(port, seconds=seconds) for _ in range(CLIENTS)))
    return sum(map(len, each)) / (time.perf_counter() - began)


async def one_large_answer(port: int) -> tuple[float, float]:
    """Return how long 80 MB in one piece took, and the slowest request beside it."""

    def download() -> float:
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = 0
            while part := client.recv(1 << 20):
                got += len(part)
        if got < 80_000_000:
            raise RuntimeError(f"{got} bytes of 80 MB")
        return time.perf_counter() - began

    downloading = asyncio.create_task(asyncio.to_thread(download))
    slowest = 0.0
    while not downloading.done():
        slowest = max(slowest, *(await one_at_a_time(port, count=5)))
    return await downloading, slowest


async def bytes_per_websocket(port: int, pid: int) -> float:
    """Open idle websockets; return how much the server's memory grew for each."""
    from websockets.asyncio.client import connect

    def resident() -> int:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    async with connect(f"ws://127.0.0.1:{port}/", compression=None):
        before = resident()
        sockets = []
        for _ in range(0, SOCKETS, 50):
            new = (connect(f"ws://127.0.0.1:{port}/", compression=None) for _ in range(50))
            sockets += await asyncio.gather(*new)
        grown = resident() - before
        await asyncio.gather(*(socket.close() for socket in sockets))
    return grown / SOCKETS


# --- the whole ------------------------------------------------------------------------------


async def floor_round_trip() -> float:
    """The floor's round trip, in seconds."""
    from benchmarks.floor import floor

    async with floor() as connected:
        await connected.round_trips(0.25, 2_000)
        return (await connected.round_trips(0.5, 4_000)).seconds


def measure(stacks: dict[str, Path], seconds: float) -> dict[str, float]:
    """One round of everything; times in seconds, memory in bytes."""
    from tests.channels1.running_site import unused_port

    figures = {"floor": asyncio.run(floor_round_trip())}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "direct.py").write_text(DIRECT)
        (directory / "daphne_layer.py").write_text(DAPHNE_LAYER)
        port = unused_port()
        for contender, (server, worker_python) in commands(port, stacks).items():
            print(f"  {contender}", file=sys.stderr, flush=True)
            with site(server, worker_python, directory, port) as process:
                asyncio.run(one_at_a_time(port, seconds=0.5))
                taken = asyncio.run(one_at_a_time(port, seconds=seconds))
                figures[f"{contender}: latency"] = statistics.median(taken)
                figures[f"{contender}: rate"] = asyncio.run(several_at_a_time(port, seconds))
                if "daphne" not in contender:
                    grown = asyncio.run(bytes_per_websocket(port, process.pid))
                    figures[f"{contender}: websocket"] = grown
        server, worker_python = commands(port, stacks)["interface"]
        with site(server, worker_python, directory, port, (LARGE_WORKER,) * 2):
            asyncio.run(one_at_a_time(port, seconds=0.5))
            figures["80 MB in one piece: latency"], figures["beside it: latency"] = asyncio.run(
                one_large_answer(port)
            )
    added = figures["interface: latency"] - figures["direct: latency"]
    figures["added latency"] = added
    figures["added latency / floor"] = added / figures["floor"]
    for other in ("daphne, 1.4.2", "daphne, this layer"):
        figures[f"rate / {other}"] = figures["interface: rate"] / figures[f"{other}: rate"]
    figures["websocket beyond uvicorn"] = (
        figures["interface: websocket"] - figures["direct: websocket"]
    )
    return figures


GOALS: Final = {
    "added latency / floor": "at most 2.5",
    "rate / daphne, 1.4.2": "at least 4",
    "rate / daphne, this layer": "at least 1.5",
    "websocket beyond uvicorn": "at most 20,000 B",
    "80 MB in one piece: latency": "at most 1 s",
    "beside it: latency": "at most 50 ms",
}


def shown(name: str, value: float) -> str:
    """A figure with its unit."""
    if " / " in name:
        return f"{value:.2f}x"
    if "latency" in name or name == "floor":
        return f"{value * 1e6:,.0f} µs"
    return f"{value:,.0f} B" if "websocket" in name else f"{value:,.0f}/s"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    options = parser.parse_args()

    from tests.channels1 import stack

    stacks = {name: stack.ensure(name) for name in ("channels1", "original")}
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        rounds.append(measure(stacks, options.seconds))
    print("| figure | median | lowest - highest | goal |\n|---|--:|--:|---|")
    for name in rounds[0]:
        values = sorted(figures[name] for figures in rounds)
        spread = f"{shown(name, values[0])} - {shown(name, values[-1])}"
        median = shown(name, statistics.median(values))
        print(f"| {name} | {median} | {spread} | {GOALS.get(name, '')} |")


if __name__ == "__main__":
    main()
