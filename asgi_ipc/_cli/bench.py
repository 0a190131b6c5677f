"""The command ``bench``: what this machine gives, in about ten seconds.

The *floor* is a unix socket between the same two processes, with msgpack and asyncio and
nothing else: no names, no lock, no capacity, no second reader, no expiry. What the layer
takes beyond it is the price of these. Everything runs in a site of its own, removed at the
end; other sites only notice that a processor is busy.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgpack
import typer
from rich.table import Table
from rich.text import Text

from .. import AsyncIPCChannelLayer
from .bench_peer import CAPACITY, messages_from
from .options import AsJson, console, ending, print_json

__all__ = ["bench", "histogram"]

_WARM_UP = 50
_BAR = 30  # cells
_BINS_A_DOUBLING = 2


@contextmanager
def _peer(mode: str, argument: str, fds: Sequence[int] = ()) -> Iterator[None]:
    """Run the other process, killed in the end: nothing of it needs an orderly end."""
    command = [sys.executable, "-m", "asgi_ipc._cli.bench_peer", mode, argument]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=fds)  # noqa: S603 - our own
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise OSError(f"the second process of the measurement ended: {process.wait()}")
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def _floor(mode: str) -> Iterator[socket.socket]:
    """Return one end of a socket whose other end a process has."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with _peer(mode, str(theirs.fileno()), (theirs.fileno(),)):
            yield ours


async def _time_each(trip: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
    """Return how long each of many round trips took, in µs, sorted."""
    for _ in range(_WARM_UP):
        await trip()
    found: list[float] = []
    give_up = time.perf_counter() + seconds
    while (before := time.perf_counter()) < give_up or not found:  # it may have stood still
        await trip()
        found.append((time.perf_counter() - before) * 1e6)
    return sorted(found)


async def _rate(receive: Callable[[], Awaitable[object]], seconds: float) -> float:
    """Return how many messages arrive in a second."""
    for _ in range(_WARM_UP):
        await receive()
    count = 0
    started = now = time.perf_counter()
    while now < started + seconds:
        for _ in range(20):
            await receive()
        count += 20
        now = time.perf_counter()
    return count / (now - started)


async def _floor_round_trips(seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    with _floor("floor-echo") as sock:
        answers = messages_from(sock)

        async def trip() -> None:
            await loop.sock_sendall(sock, msgpack.packb({"n": 1}))
            await anext(answers)

        return await _time_each(trip, seconds)


async def _floor_rate(seconds: float) -> float:
    with _floor("floor-flood") as sock:
        messages = messages_from(sock)
        return await _rate(lambda: anext(messages), seconds)


async def _round_trips(layer: AsyncIPCChannelLayer, reply: str, seconds: float) -> list[float]:
    with _peer("echo", layer.prefix):

        async def trip() -> None:
            await layer.send("ping", {"reply": reply})
            await layer.receive(reply)

        return await _time_each(trip, seconds)


async def _layer_rate(layer: AsyncIPCChannelLayer, seconds: float) -> float:
    with _peer("flood", layer.prefix):
        return await _rate(lambda: layer.receive("flood"), seconds)


async def _measure(seconds: float) -> dict[str, Any]:
    """Measure everything; round trips in µs, sorted, and messages per second."""
    slice_s = seconds / 5
    layer = AsyncIPCChannelLayer(f"asgi-ipc-bench-{secrets.token_hex(4)}", capacity=CAPACITY)
    try:
        specific = await layer.new_channel()
        return {
            "round_trips": {
                "floor": await _floor_round_trips(slice_s),
                "ordinary channel": await _round_trips(layer, "pong", slice_s),
                "process-specific": await _round_trips(layer, specific, slice_s),
            },
            "rates": {
                "floor": await _floor_rate(slice_s),
                "ordinary channel": await _layer_rate(layer, slice_s),
            },
        }
    finally:
        layer.unlink()


@ending
def bench(
    as_json: AsJson = False,
    seconds: Annotated[
        float, typer.Option(min=0.5, max=600, help="How long it may take, about.")
    ] = 10.0,
) -> None:
    """Measure this machine: round trip and throughput, beside what no layer could beat.

    Uses a site of its own, and two processes. On a busy machine look at the ratios.
    """
    measured = asyncio.run(_measure(seconds))
    if as_json:
        print_json(_document(measured, seconds))
        return
    out = console()
    out.print(Text(f"round trip between two sleeping processes, {_surroundings()}", style="bold"))
    out.print(_trips_table(measured["round_trips"]))
    out.print()
    out.print(_plot(measured["round_trips"]))
    out.print()
    out.print(Text("messages of 100 bytes from one process to another", style="bold"))
    out.print(_rates_table(measured["rates"]))
    out.print("floor: a unix socket with msgpack, without names, capacity, expiry or safety")


def _surroundings() -> str:
    return f"CPython {platform.python_version()}, {os.cpu_count()} processors"


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _document(measured: dict[str, Any], seconds: float) -> dict[str, Any]:
    trips = {
        name.replace(" ", "_").replace("-", "_"): {
            "count": len(found),
            "p50": _percentile(found, 0.5),
            "p90": _percentile(found, 0.9),
            "p99": _percentile(found, 0.99),
        }
        for name, found in measured["round_trips"].items()
    }
    rates = {name.replace(" ", "_"): rate for name, rate in measured["rates"].items()}
    return {
        "seconds": seconds,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "round_trip_us": trips,
        "messages_per_second": rates,
    }


def _trips_table(trips: dict[str, list[float]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("p50", "p90", "p99", "of the floor"):
        table.add_column(column, justify="right")
    floor = _percentile(trips["floor"], 0.5)
    for name, found in trips.items():
        shares = [f"{_percentile(found, share):.0f} µs" for share in (0.5, 0.9, 0.99)]
        table.add_row(name, *shares, f"{_percentile(found, 0.5) / floor:.2f}")
    return table


def _rates_table(rates: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    most = max(rates.values())
    for name, rate in rates.items():
        bar = "#" * max(1, round(_BAR * rate / most))
        table.add_row(name, f"{rate:,.0f}/s", f"{rate / rates['floor']:.2f}", Text(bar, "green"))
    return table


def _plot(trips: dict[str, list[float]]) -> Table:
    """Return how round trips are spread: one column of bars for each kind."""
    edges, counts = histogram(trips)
    table = Table(box=None, pad_edge=False)
    table.add_column("µs", justify="right")
    for name in trips:
        table.add_column(name)
    for row, (low, high) in enumerate(itertools.pairwise(edges)):
        bars = [Text(_bar(counts[name][row] / len(trips[name])), "green") for name in trips]
        table.add_row(f"{low:.0f} to {high:.0f}", *bars)
    return table


def _bar(share: float) -> str:
    return "#" * round(_BAR * share) or ("." if share else "")


def histogram(trips: dict[str, list[float]]) -> tuple[list[float], dict[str, list[int]]]:
    """Return edges of bins, two a doubling, and how many of each kind are in each.

    The bins reach from the smallest value to the 99th percentile; what is beyond is in the
    last one.
    """
    low = min(found[0] for found in trips.values())
    high = max(_percentile(found, 0.99) for found in trips.values())
    first = math.floor(math.log2(low) * _BINS_A_DOUBLING)
    last = max(first + 1, math.ceil(math.log2(high) * _BINS_A_DOUBLING))
    edges = [2 ** (step / _BINS_A_DOUBLING) for step in range(first, last + 1)]
    counts = {}
    for name, found in trips.items():
        at = [0, *(bisect.bisect_left(found, edge) for edge in edges[1:-1]), len(found)]
        counts[name] = [after - before for before, after in itertools.pairwise(at)]
    return edges, counts
