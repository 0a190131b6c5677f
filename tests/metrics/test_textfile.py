"""The textfile mode: whole files only, and a command for timers and scripts."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.metrics import write_textfile

from .scraping import Scrape

MakeLayer = Callable[..., AsyncIPCChannelLayer]
LAST = "asgi_ipc_build_info"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asgi_ipc.metrics", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_reader_never_finds_a_part(make_layer: MakeLayer, tmp_path: Path) -> None:
    """Read as fast as can be while it is written a hundred times."""
    layer = make_layer()
    for number in range(50):
        layer.sync.send(f"channel.{number}", {})
    path = tmp_path / "site.prom"
    write_textfile(path, layer, top_channels=50)
    broken: list[str] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            text = path.read_text()
            if LAST not in text.splitlines()[-1]:
                broken.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    inodes = set()
    for _ in range(100):
        write_textfile(path, layer, top_channels=50)
        inodes.add(path.stat().st_ino)
    is_over.set()
    reader.join()
    assert not broken
    assert len(inodes) > 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["site.prom"]


def test_what_cannot_be_written_leaves_what_was_there(
    make_layer: MakeLayer, tmp_path: Path
) -> None:
    """A folder in its place is an error, and nothing is left beside it."""
    layer = make_layer()
    folder = tmp_path / "site.prom"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_textfile(folder, layer)
    assert list(tmp_path.iterdir()) == [folder]
    done = run(layer.prefix, str(folder))
    assert done.returncode == 1
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_writes_a_file(make_layer: MakeLayer, tmp_path: Path) -> None:
    """Of several sites, those included that do not exist."""
    layer = make_layer()
    layer.sync.send("a", {})
    path = tmp_path / "site.prom"
    done = run(layer.prefix, f"{layer.prefix}-b", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert Scrape(path.read_text(), layer.prefix)["messages_sent_total"] == 1
    assert Scrape(path.read_text(), f"{layer.prefix}-b").state() == "missing"


def test_the_command_writes_to_standard_output(make_layer: MakeLayer) -> None:
    """With few channels, if told so."""
    layer = make_layer()
    for channel in ("a", "b", "b"):
        layer.sync.send(channel, {})
    done = run(layer.prefix, "-", "--top-channels", "1")
    assert done.returncode == 0
    assert Scrape(done.stdout, layer.prefix).of_channels("channel_depth") == {"b": 2, "(other)": 1}


@pytest.mark.parametrize(
    "arguments", [("only-one",), ("no spaces", "-"), ("site", "-", "--top-channels", "-1")]
)
def test_wrong_arguments_are_explained(arguments: tuple[str, ...]) -> None:
    """With status 2, as commands do."""
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: python -m asgi_ipc.metrics" in done.stderr
