"""The peers of the Channels 4 backend, in an environment of their own, and a Redis server.

Everything measured beside a peer runs in this environment, this package included: one Python, one
version of Channels. It is made in ``.stack/peers`` when its pins change, and kept.
"""

from __future__ import annotations

import asyncio
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import ROOT

# redis-py 8 ends an idle receive of channels_redis after 5 s.
_PINS: Final = (
    "channels==4.3.2",
    "channels_redis==4.3.0",
    "redis==7.0.1",
    "msgpack==1.1.2",
    "posix_ipc==1.3.2",
)
_START_S: Final = 10.0


def ensure() -> Path:
    """Make the environment if it is missing; return its interpreter.

    Raises:
        subprocess.CalledProcessError: an installation failed.
    """
    directory = ROOT / ".stack" / "peers"
    interpreter, stamp = directory / "bin" / "python", directory / "pins.txt"
    wanted = "\n".join((sys.version, *_PINS))
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"making the environment of the peers in {directory.name}", file=sys.stderr, flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_PINS], check=True)
    stamp.write_text(wanted)
    return interpreter


@asynccontextmanager
async def redis_server() -> AsyncIterator[str]:
    """A Redis server on a unix socket, without persistence; yields the socket's URL.

    Raises:
        FileNotFoundError: there is no ``redis-server`` on the path.
        RuntimeError: it does not start.
    """
    if shutil.which("redis-server") is None:
        raise FileNotFoundError("redis-server is missing: 'apt-get install redis-server'")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        options = {"port": "0", "unixsocket": str(path), "save": "", "appendonly": "no"}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        server = await asyncio.create_subprocess_exec(
            "redis-server", *arguments, cwd=directory, stdout=subprocess.DEVNULL
        )
        try:
            give_up = asyncio.get_running_loop().time() + _START_S
            while not path.exists():
                if server.returncode is not None or asyncio.get_running_loop().time() > give_up:
                    raise RuntimeError("redis-server does not start")
                await asyncio.sleep(0.01)
            yield f"unix://{path}"
        finally:
            if server.returncode is None:
                server.terminate()
            await server.wait()


_LAYERS: Final = {
    "asgi_ipc": ("asgi_ipc.channels", "IPCChannelLayer"),
    "in-memory": ("channels.layers", "InMemoryChannelLayer"),
    "channels_redis core": ("channels_redis.core", "RedisChannelLayer"),
    "channels_redis pubsub": ("channels_redis.pubsub", "RedisPubSubChannelLayer"),
}


def layer(**options: Any) -> Any:
    """Make a layer, in a worker: ``kind`` says which, the rest are its options."""
    module, name = _LAYERS[options.pop("kind")]
    return getattr(importlib.import_module(module), name)(**options)
