"""The ASGI endpoint, under a real server and scraped over a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.metrics import PREFIX_VARIABLE, TOP_CHANNELS_VARIABLE, application
from asgi_ipc.metrics._endpoint import _configured

from .scraping import Scrape

MakeLayer = Callable[..., AsyncIPCChannelLayer]
PATIENCE_S = 30.0


@contextmanager
def served(folder: Path, **environment: str) -> Iterator[httpx.Client]:
    """Uvicorn with the endpoint, and a client that talks to it over a unix socket."""
    door = folder / "door"
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "asgi_ipc.metrics:application", "--uds", str(door)],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if "running on" in line:
                break
        else:
            raise AssertionError("".join(said))
        transport = httpx.HTTPTransport(uds=str(door))
        with httpx.Client(
            transport=transport, base_url="http://metrics", timeout=PATIENCE_S
        ) as client:
            yield client
    finally:
        process.terminate()
        _, rest = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in rest, rest


def test_a_server_is_scraped(make_layer: MakeLayer, prefix: str, tmp_path: Path) -> None:
    """It starts before the site does, and shows what other processes do, as it is."""
    variables = {PREFIX_VARIABLE: f"{prefix}, {prefix}-b", TOP_CHANNELS_VARIABLE: "1"}
    with served(tmp_path, **variables) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert Scrape(answer.text, prefix).state() == "missing"
        layer = make_layer()
        for channel in ("a", "b", "b"):
            layer.sync.send(channel, {})
        found = Scrape(client.get("/metrics").text, prefix)
        assert (found["up"], found["messages_sent_total"]) == (1, 3)
        assert found.of_channels("channel_depth") == {"b": 2, "(other)": 1}
        assert Scrape(client.get("/metrics").text, f"{prefix}-b").state() == "missing"
        layer.unlink()
        assert Scrape(client.get("/metrics").text, prefix)["up"] == 0


def test_a_scrape_may_ask_for_other_formats(
    make_layer: MakeLayer, prefix: str, tmp_path: Path
) -> None:
    """OpenMetrics, a few names only, and compressed: as the library does it."""
    make_layer().sync.send("a", {})
    with served(tmp_path, **{PREFIX_VARIABLE: prefix}) as client:
        answer = client.get("/", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")
        answer = client.get("/", params={"name[]": "asgi_ipc_messages_sent_total"})
        names = {line.split("{")[0] for line in answer.text.splitlines() if line[0] != "#"}
        assert names == {"asgi_ipc_messages_sent_total"}
        answer = client.get("/", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert Scrape(answer.text, prefix)["up"] == 1


@pytest.mark.parametrize(
    ("variable", "value"), [(PREFIX_VARIABLE, "no spaces"), (TOP_CHANNELS_VARIABLE, "many")]
)
def test_a_wrong_setting_keeps_the_server_from_starting(variable: str, value: str) -> None:
    """And says which."""
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "asgi_ipc.metrics:application", "--port", "0"],
        env={**os.environ, variable: value},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode != 0
    assert f"{variable}={value}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def configured(prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The endpoint of this very process, told of this test's site."""
    monkeypatch.setenv(PREFIX_VARIABLE, prefix)
    _configured.cache_clear()
    yield
    _configured.cache_clear()


@pytest.mark.usefixtures("configured")
async def test_it_may_be_mounted(make_layer: MakeLayer) -> None:
    """Below any path of an application, whose other paths stay its own."""
    layer = make_layer()
    site = Starlette(routes=[Mount("/internal/metrics", application)])
    transport = httpx.ASGITransport(site)
    async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
        answer = await client.get("/internal/metrics/")
        assert Scrape(answer.text, layer.prefix)["up"] == 1
        assert (await client.get("/")).status_code == 404


def test_a_websocket_is_refused(prefix: str, tmp_path: Path) -> None:
    """It has nothing to say there."""
    with served(tmp_path, **{PREFIX_VARIABLE: prefix}):
        with pytest.raises(InvalidStatus) as refusal:
            unix_connect(str(tmp_path / "door"), "ws://metrics/")
        assert refusal.value.response.status_code == 403
