"""The servers that some peers need, each for one run, in a directory that is removed after it.

They listen on a unix socket, or on a loopback port that the system chooses.

Every one of these raises:
    FileNotFoundError: its program is not on this machine; the message names the remedy.
    RuntimeError: it does not start.
"""

from __future__ import annotations

import asyncio
import glob
import json
import os
import shutil
import subprocess
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

_START_S: Final = 20.0
# PostgreSQL refuses to run as root.
_UNPRIVILEGED_USER: Final = "nobody"


def _program(name: str, package: str, *elsewhere: str) -> str:
    for path in (
        shutil.which(name),
        *(path for one in elsewhere for path in sorted(glob.glob(one))),
    ):
        if path:
            return path
    raise FileNotFoundError(f"{name} is missing: 'apt-get install {package}'")


@asynccontextmanager
async def _running(
    command: list[str], directory: str, is_ready: Callable[[], bool], **options: Any
) -> AsyncIterator[Process]:
    server = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )
    try:
        give_up = asyncio.get_running_loop().time() + _START_S
        while not is_ready():
            if server.returncode is not None or asyncio.get_running_loop().time() > give_up:
                raise RuntimeError(f"{Path(command[0]).name} does not start")
            await asyncio.sleep(0.01)
        yield server
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


@asynccontextmanager
async def redis_server() -> AsyncIterator[str]:
    """Redis without persistence; yields its URL."""
    program = _program("redis-server", "redis-server")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        options = {"port": "0", "unixsocket": str(path), "save": "", "appendonly": "no"}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        async with _running([program, *arguments], directory, path.exists):
            yield f"unix://{path}"


@asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """NATS, which has no unix socket: on loopback; yields its URL."""
    program = _program("nats-server", "nats-server", "/usr/sbin/nats-server")
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", directory]

        def ports() -> Any:
            found = glob.glob(f"{directory}/*.ports")
            return json.loads(Path(found[0]).read_text() or "null") if found else None

        async with _running([program, *arguments], directory, lambda: bool(ports())):
            yield ports()["nats"][0]


@asynccontextmanager
async def postgres_server() -> AsyncIterator[dict[str, str]]:
    """PostgreSQL with a fresh cluster; yields Django's settings of its database."""
    binaries = "/usr/lib/postgresql/*/bin/"
    initdb = _program("initdb", "postgresql", f"{binaries}initdb")
    postgres = _program("postgres", "postgresql", f"{binaries}postgres")
    user: dict[str, Any] = {"user": _UNPRIVILEGED_USER} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as directory:
        if user:
            shutil.chown(directory, _UNPRIVILEGED_USER)
        cluster = f"{directory}/cluster"
        make = await asyncio.create_subprocess_exec(
            *(initdb, "--pgdata", cluster, "--username", "bench", "--auth", "trust", "--no-sync"),
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **user,
        )
        _, said = await make.communicate()
        if make.returncode != 0:
            raise RuntimeError(f"initdb: {said.decode().strip()}")
        command = [postgres, "-D", cluster, "-k", directory, "-c", "listen_addresses="]
        socket = Path(directory) / ".s.PGSQL.5432"
        # It may go on to keep nothing: as the other servers, which keep nothing either.
        command += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "max_connections=200"]
        async with _running(command, directory, socket.exists, **user):
            yield {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": "bench",
                "PASSWORD": "",
                "HOST": directory,
                "PORT": "5432",
            }
