"""The environment in which everything is measured: ours, the peers, and the raw yardsticks.

One Python, one version of Channels, this checkout. It is made in ``.stack/peers`` when its pins
change, and kept. A peer that cannot be installed is left out, and its rows say why.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.processes import ROOT

CORE: Final = "channels_redis core"
PUBSUB: Final = "channels_redis pubsub"
NATS: Final = "channels-nats"
POSTGRES: Final = "channels_postgres"
LITE: Final = "channels-lite"
IN_MEMORY: Final = "in-memory"
ORIGINAL: Final = "asgi_ipc 1.4.2"
ZMQ: Final = "pyzmq, ipc"
FIFO: Final = "faster-fifo"
ICEORYX: Final = "iceoryx2"

# Without these there is nothing to measure.
_ESSENTIAL: Final = (
    "channels==4.3.2",
    "Django==5.2.19",
    "matplotlib==3.11.2",
    "msgpack==1.1.2",
    "posix_ipc==1.3.2",
)
_PEERS: Final[dict[str, tuple[str, ...]]] = {
    # redis-py 8 ends an idle receive of channels_redis after 5 s.
    "channels_redis": ("channels_redis==4.3.0", "redis==7.0.1"),
    NATS: ("channels-nats==0.6.1",),
    POSTGRES: ("channels_postgres==1.1.4", "psycopg[binary]"),
    LITE: ("channels-lite[aio]==0.4.0",),
    ZMQ: ("pyzmq==27.3.0",),
    FIFO: ("faster-fifo==1.5.2",),
    ICEORYX: ("iceoryx2==0.10.0",),
}
_DIRECTORY: Final = ROOT / ".stack" / "peers"
_INTERPRETER: Final = _DIRECTORY / "bin" / "python"
_MISSING: Final = _DIRECTORY / "missing.json"


def ensure() -> Path:
    """Make the environment if it is missing; return its interpreter.

    Raises:
        subprocess.CalledProcessError: what is essential cannot be installed.
    """
    pins = (pin for pins in _PEERS.values() for pin in pins)
    wanted = "\n".join((sys.version, *_ESSENTIAL, *pins))
    stamp = _DIRECTORY / "pins.txt"
    _DIRECTORY.parent.mkdir(exist_ok=True)
    with _DIRECTORY.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that ask at once wait for each other
        if not stamp.exists() or stamp.read_text() != wanted:
            _make()
            stamp.write_text(wanted)
    return _INTERPRETER


def _make() -> None:
    print("making the environment of the benchmarks", file=sys.stderr, flush=True)
    shutil.rmtree(_DIRECTORY, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(_DIRECTORY)], check=True)
    pip = [str(_INTERPRETER), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_ESSENTIAL], check=True)
    missing = {}
    for peer, pins in _PEERS.items():
        done = subprocess.run([*pip, *pins], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            missing[peer] = f"not installed: {' '.join(done.stderr.splitlines()[-1:])}"
    _MISSING.write_text(json.dumps(missing))


def missing() -> dict[str, str]:
    """The peers that could not be installed, each with the reason."""
    found: dict[str, str] = json.loads(_MISSING.read_text())
    return found
