"""The programs that fork and close behind Python's back, themselves: uWSGI and python-daemon."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer

from .conftest import PATIENCE_S, problems_of
from .test_descriptors import DAEMONISED

if TYPE_CHECKING:
    from .conftest import Child

Start = Callable[..., "Child"]
MakeLayer = Callable[..., AsyncIPCChannelLayer]
UWSGI = Path(sys.executable).parent / "uwsgi"

APPLICATION = """
import os
from asgi_ipc import AsyncIPCChannelLayer
layer = AsyncIPCChannelLayer(
    os.environ["PREFIX"], message_memory=8 << 20, group_memory=4 << 20, capacity=10**5
)
layer.sync.send("before", {})
def application(environ, start_response):
    for n in range(30):
        layer.sync.send(f"c{n % 7}", {"n": n, "body": "x" * (n * 20)})
        layer.sync.receive(f"c{(n + 3) % 7}", timeout=0)
    start_response("200 OK", [])
    return [layer.sync.new_channel().encode()]
"""


@pytest.fixture
def uwsgi(prefix: str, tmp_path: Path) -> Iterator[str]:
    """A uWSGI with four processes, each forked from one that has made and used the layer."""
    (tmp_path / "site_of_the_test.py").write_text(APPLICATION)
    socket = str(tmp_path / "http")
    arguments = ["--http-socket", socket, "--master", "--processes", "4", "--need-app"]
    process = subprocess.Popen(
        [UWSGI, *arguments, "--wsgi", "site_of_the_test", "--die-on-term", "--disable-logging"],
        env={**os.environ, "PREFIX": prefix, "PYTHONPATH": os.pathsep.join([".", *sys.path])},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield socket
    process.send_signal(signal.SIGTERM)
    process.wait(60)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def connect(self) -> None:
        import socket

        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self.host)


def get(socket: str) -> tuple[int, str]:
    connection = _Connection(socket)
    try:
        connection.request("GET", "/", headers={"Host": "test"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.skipif(not UWSGI.exists(), reason="uWSGI is not installed")
def test_uwsgi_forks_behind_pythons_back(uwsgi: str, make_layer: MakeLayer) -> None:
    """Four processes of one layer, 240 requests, four at a time: all answered, nothing damaged."""
    give_up = time.monotonic() + PATIENCE_S
    while not os.path.exists(uwsgi):
        assert time.monotonic() < give_up, "uWSGI does not start"
        os.sched_yield()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(get, [uwsgi] * 240))
    assert {status for status, _ in answers} == {200}
    parts = {channel.split("!")[0] for _, channel in answers}
    assert len(parts) > 1  # each process has names of its own
    assert problems_of(make_layer()) == []


@pytest.mark.skipif(not importlib.util.find_spec("daemon"), reason="needs python-daemon")
@pytest.mark.parametrize("detach", [False, True])
def test_python_daemon_closes_every_descriptor(
    start: Start, make_layer: MakeLayer, detach: bool
) -> None:
    """A layer that was made before goes on in the daemon; its logs are the daemon's alone."""
    layer = make_layer(capacity=10**5)
    program = start(
        DAEMONISED
        + """
import daemon, warnings
warnings.simplefilter("ignore")
layer.sync.receive("w", timeout=0.01)
with daemon.DaemonContext(detach_process=sys.argv[2] == "True", working_directory="/tmp"):
    logs = open_logs(50)
    signal.alarm(60)
    assert layer.sync.receive("w", timeout=0.3) is None
    large()
    many()
    assert {os.lseek(log.fileno(), 0, os.SEEK_CUR) for log in logs} == {6}
    layer.sync.send("result", {"pid": os.getpid(), "sizes": list(sizes_of(logs))})
    os._exit(0)
""",
        str(detach),
    )
    for n in range(1000):  # meanwhile
        layer.sync.send("meanwhile", {"n": n})
        assert layer.sync.receive("meanwhile", timeout=0) == {"n": n}
    result = layer.sync.receive("result", timeout=60)
    assert result is not None
    assert result["sizes"] == [6]
    assert (result["pid"] != program.pid) is detach
    program.end()
    assert problems_of(layer) == []
