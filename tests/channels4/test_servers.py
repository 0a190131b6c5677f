"""The programs that run Django sites, each as its users start it, with the layer between them.

Every one of them runs the site in ``inside``, which uses the layer before it forks too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from .browser import FLAGS, find_chromium
from .conftest import MakeLayer
from .test_chat import free_ports

INSIDE = Path(__file__).parent / "inside"
PATIENCE_S = 30.0
STOP_S = 60.0  # celery takes six seconds where nobody disturbs it
MOST_CONNECTIONS = 200
# What no program may have to say about the layer, or because of it.
COMPLAINTS = ("Traceback", "asgi_ipc", "loop is closed", "different loop", "unclosed")
# (Some of them never close the sockets on which they listen.)
THEIR_OWN = "laddr=('127.0.0.1', "
PYTHON = (sys.executable, "-W", "always::ResourceWarning")
MANAGE = (*PYTHON, "manage.py")


class Program:
    """A program that runs in a site, told by what it wrote."""

    def __init__(self, site: Site, name: str, command: Sequence[str]) -> None:
        self._log = site.directory / f"{name}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=site.directory,
                env=site.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """Everything so far."""
        return self._log.read_text()

    def check(self) -> None:
        """It must be running."""
        assert self.process.poll() is None, f"ended: {self.said()}"

    def stop(self) -> None:
        """Ask it to end; whatever it started must end with it, and nobody complain."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"it does not end: {self.said()}") from None
        assert not complaints(self.said()), self.said()


def complaints(said: str) -> list[str]:
    """The lines that should not be there."""
    return [
        line
        for line in said.splitlines()
        if THEIR_OWN not in line and any(word in line for word in COMPLAINTS)
    ]


class Site:
    """A copy of the site, and what runs in it."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.directory = directory
        shutil.copytree(INSIDE, directory, ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "spool").mkdir()
        self.environment = {
            **os.environ,
            "HOME": str(directory),  # gunicorn keeps a socket there, Chromium a profile
            "SITE_PREFIX": prefix,
            "SITE_SPOOL": str(directory / "spool"),
            "DJANGO_SETTINGS_MODULE": "orders.settings",
            "PYTHONPATH": str(directory),
        }
        self.programs: list[Program] = []

    def start(self, *command: str) -> Program:
        """Start a program."""
        self.programs.append(Program(self, f"program{len(self.programs)}", command))
        return self.programs[-1]

    def run(self, *command: str) -> str:
        """Run one to its successful end; what it printed."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture
def site(tmp_path: Path, prefix: str) -> Iterator[Site]:
    """A site; what runs in it is stopped in the end."""
    made = Site(tmp_path / "site", prefix)
    yield made
    with contextlib.ExitStack() as stack:
        for program in made.programs:
            stack.callback(program.stop)


async def _visit(port: int, path: str) -> Any:
    """The answer as JSON, on a connection of its own."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        answer = await http.get(f"http://127.0.0.1:{port}/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _until_ready(program: Program, port: int) -> Any:
    """The first answer of a server that is starting."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await _visit(port, "announce/ready/")
        except httpx.TransportError:
            program.check()
            assert time.monotonic() < give_up, program.said()
            await asyncio.sleep(0.02)  # it tells in no other way


async def _hear(client: ClientConnection) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return json.loads(await client.recv())


@contextlib.asynccontextmanager
async def _clients(ports: Sequence[int]) -> AsyncIterator[list[ClientConnection]]:
    """Sockets on at least two processes."""
    async with contextlib.AsyncExitStack() as stack:
        clients: list[ClientConnection] = []
        pids: set[int] = set()
        while len(clients) < 6 or len(pids) < 2:
            assert len(clients) < MOST_CONNECTIONS, "all connections went to one process"
            url = f"ws://127.0.0.1:{ports[len(clients) % len(ports)]}/feed/"
            opening = connect(url, open_timeout=PATIENCE_S)
            clients.append(await stack.enter_async_context(opening))
            pids.add((await _hear(clients[-1]))["pid"])
        yield clients


async def _talk(ports: Sequence[int]) -> None:
    """What anybody says through any process all sockets hear, once and in order."""
    async with _clients(ports) as clients:
        for n in range(30):
            if n % 3:
                await _visit(ports[n % len(ports)], f"announce/{n}/")
                expected = [f"{n} blocking", f"{n} in a loop"]
            else:
                await clients[n % len(clients)].send(json.dumps(f"{n} on a socket"))
                expected = [f"{n} on a socket"]
            for client in clients:
                assert [(await _hear(client))["said"] for _ in expected] == expected
        for n in range(4):
            answer = await _visit(ports[n % len(ports)], "load/200/")
            assert answer["left"] <= 0


SLOW = pytest.mark.slow
GUNICORN = (*PYTHON, "-m", "gunicorn", "--preload", "--workers", "3", "--bind")
SERVERS: dict[str, Callable[[int], tuple[str, ...]]] = {
    "gunicorn --preload": lambda port: (
        *(*GUNICORN, f"127.0.0.1:{port}", "--worker-class", "asgi", "orders.asgi:application"),
    ),
    "uvicorn --workers": lambda port: (
        *(*PYTHON, "-m", "uvicorn", "--workers", "3", "--port", str(port)),
        *("--ws", "websockets-sansio", "--log-level", "warning", "orders.asgi:application"),
    ),
    "hypercorn --workers": lambda port: (
        *(*PYTHON, "-m", "hypercorn", "--workers", "3", "--bind", f"127.0.0.1:{port}"),
        "orders.asgi:application",
    ),
}


@pytest.mark.parametrize(
    "server",
    ["gunicorn --preload", "uvicorn --workers", pytest.param("hypercorn --workers", marks=SLOW)],
)
async def test_a_server_with_several_workers(site: Site, server: str) -> None:
    """Sockets and views of all of them hear each other, and nothing is left of a thousand uses."""
    port = free_ports(1)[0]
    program = site.start(*SERVERS[server](port))
    await _until_ready(program, port)
    await _talk([port])


async def test_two_daphnes(site: Site) -> None:
    """Two programs started apart are one site."""
    ports = free_ports(2)
    for port in ports:
        program = site.start(
            *PYTHON, "-m", "daphne", "-v", "0", "-p", str(port), "orders.asgi:application"
        )
        await _until_ready(program, port)
    await _talk(ports)


async def test_gunicorn_without_an_event_loop(site: Site, make_backend: MakeLayer) -> None:
    """Views under forked WSGI workers reach whoever listens."""
    layer = make_backend()
    channel = await layer.new_channel()
    await layer.group_add("orders", channel)
    port = free_ports(1)[0]
    program = site.start(*GUNICORN, f"127.0.0.1:{port}", "orders.wsgi:application")
    await _until_ready(program, port)
    pids = {(await _visit(port, f"announce/{n}/"))["pid"] for n in range(30)}
    said = [f"{n} {how}" for n in ("ready", *range(30)) for how in ("blocking", "in a loop")]
    assert [(await layer.receive(channel))["said"] for _ in said] == said
    assert len(pids) > 1
    for _ in range(6):
        assert (await _visit(port, "load/200/"))["left"] <= 0


async def test_runserver_and_its_reloader(site: Site, make_backend: MakeLayer) -> None:
    """After a reload the new process serves, and the memberships of the old one are gone."""
    layer = make_backend()
    port = free_ports(1)[0]
    program = site.start(*MANAGE, "runserver", str(port))
    old = (await _until_ready(program, port))["pid"]
    async with connect(f"ws://127.0.0.1:{port}/feed/") as client:
        assert (await _hear(client))["pid"] == old
        assert await layer.group_count("orders") == 1
        views = site.directory / "orders" / "views.py"
        views.write_text(views.read_text().replace("blocking", "again"))
        closing = asyncio.create_task(client.wait_closed())
        while not closing.done():  # it does not notice what changed before its first look
            program.check()
            os.utime(views, ns=(time.time_ns(), time.time_ns()))
            await asyncio.wait([closing], timeout=1)
    while (new := (await _until_ready(program, port))["pid"]) == old:
        program.check()
    async with connect(f"ws://127.0.0.1:{port}/feed/") as client:
        assert (await _hear(client))["pid"] == new
        site.run(
            *MANAGE,
            *("shell", "-v", "0", "-c"),
            "from channels.layers import get_channel_layer\n"
            'order = {"type": "order", "said": "from a shell"}\n'
            'get_channel_layer().sync.group_send("orders", order)\n'
            "from asgiref.sync import async_to_sync\n"
            'async_to_sync(get_channel_layer().group_send)("orders", order)',
        )
        assert [(await _hear(client))["said"] for _ in range(2)] == ["from a shell"] * 2
        assert await layer.group_count("orders") == 1
        await _visit(port, "announce/tea/")
        assert [(await _hear(client))["said"] for _ in range(2)] == ["tea again", "tea in a loop"]
        assert (await _visit(port, "load/200/"))["left"] <= 0


async def test_runworker(site: Site, make_backend: MakeLayer) -> None:
    """Two of them ship every order once; one that is killed leaves its share to the other."""
    layer = make_backend()
    workers = {
        program.process.pid: program
        for program in [site.start(*MANAGE, "runworker", "shipping") for _ in range(2)]
    }

    async def ship(first: int, count: int) -> set[int]:
        shipped = []
        for n in range(first, first + count):
            await layer.send("shipping", {"type": "ship", "n": n})
            if n >= first + 20:
                shipped.append(await layer.receive("shipped"))
        shipped += [await layer.receive("shipped") for _ in range(20)]
        assert sorted(one["n"] for one in shipped) == list(range(first, first + count))
        return {one["pid"] for one in shipped}

    assert await ship(0, 300) <= set(workers)
    pid, killed = workers.popitem()
    killed.process.kill()
    killed.process.wait()
    assert await ship(300, 100) == set(workers) != {pid}


async def test_celery_prefork(site: Site, make_backend: MakeLayer) -> None:
    """Tasks in children forked from a process that had used the layer reach its members."""
    layer = make_backend(capacity=1000)
    channel = await layer.new_channel()
    await layer.group_add("orders", channel)
    celery = (*PYTHON, "-m", "celery", "-A", "orders.tasks")
    alone = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    worker = site.start(*celery, "worker", "--pool", "prefork", "--concurrency", "2", *alone)
    site.run(
        sys.executable,
        "-c",
        "from orders.tasks import announce, load\n"
        "for n in range(50): announce.delay(n)\n"  # two each, as many as a channel holds
        "for _ in range(4): load.delay(200)",
    )
    announced = [await layer.receive(channel) for _ in range(100)]
    for how in ("blocking", "in a loop"):
        assert sorted(one["n"] for one in announced if one["how"] == how) == list(range(50))
    left = [await layer.receive("left") for _ in range(4)]
    assert max(one["left"] for one in left) <= 0
    pid = worker.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert {one["pid"] for one in (*announced, *left)} <= set(map(int, children))


@pytest.mark.timeout(400)  # the first run of a machine installs a browser
def test_the_live_server_test_case(site: Site) -> None:
    """``manage.py test`` with ChannelsLiveServerTestCase: daphne in a fork, a real browser."""
    site.environment["SITE_BROWSER"] = find_chromium()
    site.environment["SITE_BROWSER_FLAGS"] = " ".join(FLAGS)
    said = site.run(*MANAGE, "test", "--noinput")
    assert "Ran 1 test " in said
    assert not complaints(said), said
