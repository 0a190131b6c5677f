"""How fast is a Channels 1 site on this layer, beside the same site on asgi_ipc 1.4.2?

One daphne, one worker and one worker with four threads run the example site, once on each layer,
one after the other, as often as `--rounds` says; the table gives the median of the rounds. The
original gets capacity 100, which is our default (with its own, 10, it refuses half the requests),
and the C extension of msgpack. Other sets of workers (1 to 4 of one thread) are no faster for it.

    python benchmarks/channels1.py [--rounds 3] [--seconds 5]

Answers issue 3: one request at a time, eight at a time, websocket echoes, the CPU time of idle
processes, all of it again with 5,000 messages waiting in a channel that nobody reads, and
send_group to 1,000 members of one process.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

PROJECT_ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and "--inside" not in sys.argv:
    # (inside an environment, asgi_ipc is the one that is installed there)
    sys.path.insert(0, str(PROJECT_ROOT))

if TYPE_CHECKING:
    from tests.channels1.running_site import Site

LAYERS = ("channels1", "original")
TITLES = {"channels1": "this layer", "original": "1.4.2"}
BACKLOG = 5_000
MEMBERS = 1_000
# The channels of the two stress measurements may hold what these put into them.
CONFIG = {
    "channels1": {"channel_capacity": {"backlog": 10_000}},
    "original": {"capacity": 100, "channel_capacity": {"backlog": 10_000}},
}
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

Numbers = dict[str, float]


# --- inside the environment of a layer


def inside(task: str, prefix: str) -> None:
    """Do what needs the layer itself; runs with the interpreter of its environment."""
    {"backlog": fill_backlog, "group": time_send_group}[task](prefix)


def make_layer(prefix: str, capacity: int) -> Any:
    """Build whichever layer this environment has."""
    import asgi_ipc

    return asgi_ipc.IPCChannelLayer(prefix=prefix, capacity=capacity, expiry=600)


def fill_backlog(prefix: str) -> None:
    """Leave messages of 200 bytes in a channel that nobody reads."""
    layer = make_layer(prefix, 2 * BACKLOG)
    message = {"padding": "x" * 200}
    if hasattr(layer, "message_store"):
        # The original needs minutes to send them one by one; so into its store at once.
        import msgpack

        packed = (msgpack.packb(message, use_bin_type=True), time.time() + 600)
        with layer.message_store.mutate_value() as value:
            value["backlog"] = [packed] * BACKLOG
    else:
        for _ in range(BACKLOG):
            layer.send("backlog", message)


def time_send_group(prefix: str) -> None:
    """Print the seconds of sends to a group, and of one send and one receive."""
    layer = make_layer(prefix, 2 * MEMBERS)
    for number in range(MEMBERS):
        layer.group_add("everybody", f"daphne.response.abcdefghij!{number:010d}")
    group_s: list[float] = []
    while len(group_s) < 20 and sum(group_s) < 5:
        started = time.perf_counter()
        layer.send_group("everybody", {"text": "x" * 100})
        group_s.append(time.perf_counter() - started)
        received = 0
        if hasattr(layer, "message_store"):
            layer.message_store.flush_all()  # one by one takes the original longer than the send
            received = MEMBERS
        else:
            while layer.receive(["daphne.response.abcdefghij!"])[0]:
                received += 1
        if received != MEMBERS:
            raise AssertionError(f"{received} of {MEMBERS} members got the message")
    send_s = []
    for _ in range(300):
        started = time.perf_counter()
        layer.send("one", {"text": "x" * 100})
        layer.receive(["one"])
        send_s.append(time.perf_counter() - started)
    print(json.dumps({"group": statistics.median(group_s), "pair": statistics.median(send_s)}))


# --- outside: clients


class Client:
    """HTTP/1.1 over one kept connection, with as little of its own to do as possible."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()

    async def __aenter__(self) -> "Client":
        """Connect."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Disconnect."""
        self.writer.close()
        await self.writer.wait_closed()

    async def get(self) -> None:
        """Send one request and read its answer, which daphne sends in chunks."""
        self.writer.write(self.request)
        answer = await self.reader.readuntil(b"\r\n0\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"not a 200: {answer!r}")


async def one_at_a_time(site: "Site", seconds: float) -> list[float]:
    """Return the seconds that each request took."""
    taken = []
    async with Client(site.port) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            await client.get()
            taken.append(time.perf_counter() - started)
    return taken


async def several_at_a_time(site: "Site", seconds: float, clients: int) -> float:
    """Return requests per second."""
    counts = await asyncio.gather(*(one_at_a_time(site, seconds) for _ in range(clients)))
    return sum(map(len, counts)) / seconds


async def echo(site: "Site", seconds: float) -> int:
    """Return how many echoes one websocket got."""
    from websockets.asyncio.client import connect

    count = 0
    async with connect(f"{site.ws_url}/echo") as socket:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await socket.send("x" * 100)
            await socket.recv()
            count += 1
    return count


async def echoes(site: "Site", seconds: float, sockets: int) -> float:
    """Return echoes per second."""
    counts = await asyncio.gather(*(echo(site, seconds) for _ in range(sockets)))
    return sum(counts) / seconds


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def wakeups(pid: int) -> int:
    """Return how often the threads of a process went to sleep so far."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                count += int(line.split()[1])
    return count


def idle(pids: dict[str, int], seconds: float) -> Numbers:
    """Return CPU per cent and wakeups per second of processes that have nothing to do."""
    before = {name: (cpu_seconds(pid), wakeups(pid)) for name, pid in pids.items()}
    started = time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - started
    numbers = {}
    for name, pid in pids.items():
        numbers[f"idle {name}, % CPU"] = (cpu_seconds(pid) - before[name][0]) / passed * 100
        numbers[f"idle {name}, wakeups/s"] = (wakeups(pid) - before[name][1]) / passed
    return numbers


# --- the whole


@contextmanager
def running_site(layer: str, python: Path) -> Iterator["Site"]:
    """Run the example site on a layer."""
    from tests.channels1.running_site import Site

    with tempfile.TemporaryDirectory() as directory:
        environment = {"CHANNELS1_SITE_CONFIG": json.dumps(CONFIG[layer])}
        site = Site(python, Path(directory) / "site", environment)
        try:
            site.start_all()
            yield site
        finally:
            site.stop()


def run_inside(python: Path, task: str, prefix: str) -> str:
    """Run `inside()` in an environment; return what it prints."""
    command = [str(python), __file__, "--inside", task, prefix]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_load(site: "Site", seconds: float) -> Numbers:
    """Return what clients see."""
    asyncio.run(one_at_a_time(site, 0.5))  # imports, caches, first connections
    taken = asyncio.run(one_at_a_time(site, seconds))
    return {
        "one request at a time, p50 ms": statistics.median(taken) * 1000,
        "one request at a time, p95 ms": sorted(taken)[int(len(taken) * 0.95)] * 1000,
        "8 at a time, requests/s": asyncio.run(several_at_a_time(site, seconds, 8)),
        "one websocket, echoes/s": asyncio.run(echoes(site, seconds, 1)),
        "8 websockets, echoes/s": asyncio.run(echoes(site, seconds, 8)),
    }


def measure(layer: str, python: Path, seconds: float) -> Numbers:
    """Return every number of one layer."""
    from tests.channels1.running_site import new_prefix, remove_shared_memory_of

    numbers: Numbers = {}
    with running_site(layer, python) as site:
        names = ("daphne", "worker", "worker, 4 threads")
        pids = {name: p.pid for name, p in zip(names, site.processes, strict=True)}
        numbers |= measure_load(site, seconds)
        numbers |= idle(pids, 2 * seconds)
        run_inside(python, "backlog", site.prefix)
        loaded = measure_load(site, seconds) | idle(pids, 2 * seconds)
        numbers |= {f"backlog: {name}": value for name, value in loaded.items()}
    prefix = new_prefix()
    try:
        times = json.loads(run_inside(python, "group", prefix))
    finally:
        remove_shared_memory_of(prefix)
    numbers["send_group to 1,000 members, ms"] = times["group"] * 1000
    numbers["send and receive, ms"] = times["pair"] * 1000
    return numbers


def format_number(value: float) -> str:
    """Return three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results: dict[str, list[Numbers]]) -> str:
    """Return the medians side by side, and how many times better we are."""
    header = (f"{'':44}", *(f"{TITLES[layer]:>12}" for layer in results), f"{'better by':>12}")
    lines = ["".join(header)]
    for name in results[LAYERS[0]][0]:
        ours, original = (
            statistics.median(numbers[name] for numbers in results[layer]) for layer in LAYERS
        )
        more_is_better = name.endswith("s/s") and "wakeups" not in name
        better, worse = (ours, original) if more_is_better else (original, ours)
        ratio = f"{better / worse:,.1f} x" if worse > 0 else "-"
        lines.append(f"{name:44}{format_number(ours):>12}{format_number(original):>12}{ratio:>12}")
    return "\n".join(lines)


def main(say: Callable[[str], None]) -> None:
    """Measure both layers and print the table."""
    parser = argparse.ArgumentParser(description="a Channels 1 site on this layer and on 1.4.2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load; idle is twice it")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(*options.inside)
        return

    from tests.channels1 import stack

    pythons = {layer: stack.ensure(layer) for layer in LAYERS}
    results: dict[str, list[Numbers]] = {layer: [] for layer in LAYERS}
    for number in range(options.rounds):
        for layer in LAYERS:
            print(f"round {number + 1}: {TITLES[layer]}", file=sys.stderr, flush=True)
            results[layer].append(measure(layer, pythons[layer], options.seconds))
    say(table(results))


if __name__ == "__main__":
    main(print)
