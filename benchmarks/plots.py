"""The plots that the README and docs/performance.md show, as PNG and SVG.

Drawn from the JSON of a run, so that they can be drawn again without measuring again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import peers
from benchmarks.everybody import FLOOR, NORMAL, SPECIFIC
from benchmarks.layers import OURS

Figures = dict[str, Any]
_WIDTH_IN: Final = 8.0
_OURS_COLOR: Final = "#c2410c"
_FLOOR_COLOR: Final = "#6b7280"
_PEER_COLORS: Final = {
    peers.CORE: "#1d4ed8",
    peers.PUBSUB: "#60a5fa",
    peers.NATS: "#047857",
    peers.POSTGRES: "#7c3aed",
    peers.LITE: "#a16207",
    peers.ORIGINAL: "#111827",
    peers.IN_MEMORY: "#db2777",
}
_RAW_COLOR: Final = "#9ca3af"
_GRID: Final = {"color": "#e5e7eb", "linewidth": 0.8}
# A plot with every raw yardstick in it could not be read.
_IN_SIZES: Final = (SPECIFIC, NORMAL, FLOOR, "multiprocessing.Queue, blocking")


def draw(figures: Figures, directory: Path) -> list[Path]:
    """Draw all plots that the figures suffice for; returns the files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "font.size": 10,
            "svg.hashsalt": "asgi_ipc",  # the same figures make the same file
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in _PLOTS.items():
        cases = [case for case in figures["cases"] if case["question"] == plot.question]
        if not any(one["median"] for case in cases for one in case["contenders"]):
            continue
        figure = plot.draw(cases)
        for kind in ("png", "svg"):
            files.append(directory / f"{name}.{kind}")
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(files[-1], dpi=130, bbox_inches="tight", metadata=metadata)
    return files


def _color(name: str) -> str:
    if name.startswith(OURS) and name != peers.ORIGINAL:
        return _OURS_COLOR
    if name.startswith(FLOOR):
        return _FLOOR_COLOR
    return _PEER_COLORS.get(name, _RAW_COLOR)


def _round_trip(cases: list[Any]) -> Any:
    """Bars, the fastest on top."""
    rows = [one for one in cases[0]["contenders"] if one["median"]]
    rows.sort(key=lambda one: -one["median"])
    figure, axes = _new(0.32 * len(rows) + 1.2)
    names = [one["name"] for one in rows]
    values = [one["median"] for one in rows]
    axes.barh(names, values, color=[_color(name) for name in names], height=0.7)
    for place, value in enumerate(values):
        shown = f"{value:,.0f} µs" if value < 10_000 else f"{value / 1000:,.0f} ms"
        axes.text(value * 1.08, place, shown, va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 4)
    axes.set_xlabel("round trip between two waiting processes, median, µs")
    axes.xaxis.grid(visible=True, **_GRID)
    axes.set_axisbelow(True)
    return figure


def _beside_redis(cases: list[Any]) -> Any:
    """The same for those who choose between Redis and this, on a scale that shows how much."""
    found = {one["name"]: one["median"] for one in cases[0]["contenders"]}
    shown = {
        "channels_redis core": peers.CORE,
        "channels_redis pubsub": peers.PUBSUB,
        "asgi_ipc, after a pause": f"{SPECIFIC}, asleep",
        "asgi_ipc": SPECIFIC,
    }
    rows = {label: found[name] for label, name in shown.items() if found.get(name)}
    figure, axes = _new(0.34 * len(rows) + 0.5)
    colors = [_color(shown[label]) for label in rows]
    axes.barh([*rows], [*rows.values()], color=colors, height=0.7)
    for place, value in enumerate(rows.values()):
        axes.text(value + 12, place, f"{value:,.0f} µs", va="center", fontsize=10)
    axes.set_xlim(0, max(rows.values()) * 1.12)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("A message to another process and its answer, median", fontsize=10, loc="left")
    return figure


def _lines(cases: list[Any], x_label: str, y_label: str, keep: Callable[[str], bool]) -> Any:
    """A line for each series, both axes logarithmic."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case in cases:
        for one in case["contenders"]:
            if one["point"] and one["median"] and keep(one["point"][0]):
                name, x = one["point"]
                series[name].append((x, one["median"]))
    figure, axes = _new(4.6)
    for name, points in sorted(series.items(), key=lambda item: not item[0].startswith(OURS)):
        is_ours = _color(name) == _OURS_COLOR
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(
            *(xs, ys, "o"),
            linestyle="--" if name == NORMAL or name.startswith(FLOOR) else "-",
            color=_color(name),
            linewidth=2.4 if is_ours else 1.4,
            markersize=5 if is_ours else 4,
            label=name,
            zorder=3 if is_ours else 2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, **_GRID)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _new(height_in: float) -> Any:
    # Not through pyplot, which would keep every figure and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in))
    return figure, figure.subplots()


def _sizes(cases: list[Any]) -> Any:
    return _lines(
        *(cases, "bytes of data in a message", "messages per second, one way"),
        lambda name: name in _IN_SIZES or name in _PEER_COLORS,
    )


def _members(cases: list[Any]) -> Any:
    return _lines(
        *(cases, "members of a group, in two processes", "group_send until the last has it, ms"),
        lambda _: True,
    )


def _backlog(cases: list[Any]) -> Any:
    for case in cases:
        for one in case["contenders"]:
            if one["point"] and one["point"][1] == 0:
                one["point"] = (one["point"][0], 100)  # a logarithm has no place for nothing
    figure = _lines(
        *(cases, "messages waiting elsewhere", "one send, µs"),
        lambda _: True,
    )
    ticks = [100, 1_000, 10_000, 100_000]
    figure.axes[0].set_xticks(ticks, ["none", *(f"{tick:,}" for tick in ticks[1:])])
    figure.axes[0].minorticks_off()
    return figure


class _Plot:
    def __init__(self, question: str, draw: Callable[[list[Any]], Any]) -> None:
        self.question = question
        self.draw = draw


_PLOTS: Final = {
    "beside-redis": _Plot("round_trip", _beside_redis),
    "round-trip": _Plot("round_trip", _round_trip),
    "throughput-by-size": _Plot("one_way", _sizes),
    "fan-out-by-members": _Plot("groups", _members),
    "cost-by-backlog": _Plot("backlog", _backlog),
}
