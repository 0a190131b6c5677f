"""``docs/deployment.md`` and ``deploy/``: what they tell the operator to do is done here.

systemd's own checker reads the units, kubectl reads the manifests, the servers' commands serve,
the sizes are measured, and two "containers" (namespaces of their own) share one memory.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._operator.inspect import Inspector
from asgi_ipc._store.codec import PLAIN
from asgi_ipc.aio import DEFAULT_GROUP_MEMORY, DEFAULT_MESSAGE_MEMORY

from .conftest import PATIENCE_S
from .doctor.grounds import EXAMINE, ground, heard, needs_mount, of, shm
from .stepping import drive

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/deployment.md").read_text()


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not here")


def blocks(language: str) -> list[str]:
    """Return the code of a language on the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [
        line[2:]
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith(("$ ", "# "))
    ]


# -- systemd -----------------------------------------------------------------------------


def with_our_programs(directory: Path, source: Path) -> list[str]:
    """Copy units, with the programs of this environment in the place of the site's."""
    bin_directory = Path(sys.executable).parent
    copies = []
    for unit in sorted(source.iterdir()):
        text = unit.read_text()
        text = re.sub(r"(/srv/mysite|%h/mysite)/venv/bin/asgi-ipc", sys.executable, text)
        text = re.sub(r"(/srv/mysite|%h/mysite)/venv/bin", str(bin_directory), text)
        copy = directory / unit.name
        copy.write_text(text)
        copies.append(str(copy))
    return copies


@needs("systemd-analyze")
@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_accepts_the_units(tmp_path: Path, kind: str) -> None:
    """Without a word: a setting it did not know would be a warning."""
    units = with_our_programs(tmp_path, DEPLOY / "systemd" / kind)
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--{kind}", "--man=no", *units],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs("systemd-analyze")
def test_systemd_would_have_said(tmp_path: Path) -> None:
    """The check above can fail: a misspelt setting is found by it."""
    for copy in with_our_programs(tmp_path, DEPLOY / "systemd/system"):
        text = Path(copy).read_text()
        Path(copy).write_text(text.replace("RuntimeDirectory=", "RuntimeDirectorium="))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "mysite.service")],
        capture_output=True,
        text=True,
    )
    assert "RuntimeDirectorium" in done.stderr


@needs("systemd-sysusers")
def test_the_site_gets_a_system_user() -> None:
    """``systemd-sysusers`` would make one; an ordinary one's segments would be deleted."""
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(DEPLOY / "systemd/sysusers.d/mysite.conf")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    made = re.search(r"user 'mysite'.* UID (\d+)", done.stdout + done.stderr)
    assert made
    assert int(made[1]) < 1000


@needs_mount
def test_logind_is_told_no(start: Start) -> None:
    """The doctor, which reads it as logind does, finds nothing wrong any more."""
    conf = DEPLOY / "systemd/logind.conf.d/asgi_ipc.conf"
    booted = (shm("size=64m"), "mount -t tmpfs tmpfs /run", "mkdir -p /run/systemd/system")
    told = ("mkdir /run/systemd/logind.conf.d", f"cp {conf} /run/systemd/logind.conf.d/")
    for mounts, severity in ((booted, "warning"), (booted + told, "ok")):
        child = start(EXAMINE + "show(user=54321)", wrapper=ground(*mounts))
        assert of(heard(child), "remove-ipc").severity == severity
        child.end()


# -- containers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compose.yaml", "compose.shared.yaml", "compose.ipc.yaml"])
def test_compose_gives_all_services_one_memory(name: str) -> None:
    """Each service has the same /dev/shm, larger than Docker's 64 MB."""
    compose = yaml.safe_load((DEPLOY / "docker" / name).read_text())
    services = compose["services"]
    if "volumes" in compose:
        assert all(service["volumes"] == ["shm:/dev/shm"] for service in services.values())
        options = compose["volumes"]["shm"]["driver_opts"]
        assert options["type"] == options["device"] == "tmpfs"
        assert "size=256m" in options["o"]
    else:
        web = services.pop("web")
        assert web["shm_size"] == "256mb"
        assert not services or web["ipc"] == "shareable"
        assert all(service["ipc"] == "service:web" for service in services.values())


@needs("kubectl")
def test_kubernetes_gives_all_containers_one_memory() -> None:
    """Every container of the pod, as kubectl reads it, mounts the memory-backed volume."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kinds = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert len(pod["containers"]) == 2
    for container in pod["containers"]:
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
    assert yaml.safe_load(blocks("yaml")[0])["volumes"] == pod["volumes"]  # the page says the same


CONTAINER = ("unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--kill-child")


@needs_mount
def test_two_containers_share_one_memory(
    start: Start, tmp_path: Path, make_layer: MakeLayer
) -> None:
    """Namespaces of their own for processes, network and IPC, and one volume at /dev/shm.

    A message wakes the other one; one that is killed is noticed by the other and reaped, though
    neither can see the other's processes; the doctor in one of them finds nothing wrong.
    """
    del make_layer  # nothing of it is in this test's own /dev/shm
    shared = "; ".join([f"mount -t tmpfs -o size=64m,mode=1777 tmpfs {tmp_path}", 'exec "$@"'])
    container = shlex.join(
        [
            *CONTAINER,
            "sh",
            "-c",
            f'mount --bind {tmp_path} /dev/shm && mount -t proc proc /proc && exec "$@"',
            "sh",
        ]
    )
    child = start(
        f"""
import logging, select, shlex, subprocess
container = shlex.split({container!r})
common = '''
import asyncio, logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from asgi_ipc import AsyncIPCChannelLayer
layer = AsyncIPCChannelLayer("pod", message_memory=8 << 20, group_memory=4 << 20)
'''
web = subprocess.Popen([*container, sys.executable, "-uc", common + '''
async def main():
    mine = await layer.new_channel()
    await layer.group_add("everybody", mine)
    wait = asyncio.ensure_future(layer.receive(mine))
    await asyncio.sleep(0)
    print("waits", os.getpid())
    while True:
        print("got", (await wait)["n"])
        wait = asyncio.ensure_future(layer.receive(mine))
asyncio.run(main())
'''], stdout=subprocess.PIPE, text=True)
line = web.stdout.readline()
while not line.startswith("waits"):
    line = web.stdout.readline()
say(line.strip())
worker = subprocess.Popen([*container, sys.executable, "-uc", common + '''
from asgi_ipc._operator.doctor import examine
for line in sys.stdin:
    if line.strip() == "doctor":
        found = examine("pod", message_memory=8 << 20, group_memory=4 << 20)
        print([one.what for one in found if one.severity != "ok" or one.code == "processes"])
        continue
    asyncio.run(layer.group_send("everybody", {{"n": int(line)}}))
    print("sent", os.getpid(), asyncio.run(layer.group_count("everybody")))
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
worker.stdin.write("1\\n"); worker.stdin.flush()
say(worker.stdout.readline().strip())
say(web.stdout.readline().strip())
worker.stdin.write("doctor\\n"); worker.stdin.flush()
say(worker.stdout.readline().strip())
web.kill()
web.wait()
told = ""
while not told.startswith("reaped"):  # its end takes a moment
    worker.stdin.write("2\\n"); worker.stdin.flush()
    told = worker.stdout.readline()
say(told.strip())
say(worker.stdout.readline().strip())
worker.stdin.close()
worker.wait()
web.stdout.close(); worker.stdout.close()
""",
        wrapper=("unshare", "--mount", "sh", "-c", shared, "sh"),
    )
    child.expect("waits 1")  # each is process 1 of its own namespace
    child.expect("sent 1 1")
    child.expect("got 1")
    child.expect("['nobody that can be seen from here is attached']")
    child.expect("reaped the slot of dead process 1")
    child.expect("sent 1 0")  # and its memberships are gone
    child.end()


# -- servers -----------------------------------------------------------------------------

SITE = """
import asyncio, json, os
from asgi_ipc import AsyncIPCChannelLayer

layer = AsyncIPCChannelLayer(os.environ["PREFIX"], message_memory=8 << 20, group_memory=4 << 20)
members = []


async def member(mine):
    while True:
        message = await layer.receive(mine)
        await layer.send(message["reply"], {"pid": os.getpid()})


async def application(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError  # no lifespan, no websocket
    if not members:
        mine = await layer.new_channel()
        members.append(asyncio.ensure_future(member(mine)))
        await layer.group_add("processes", mine)
    reply = await layer.new_channel("reply?")
    await layer.group_send("processes", {"reply": reply})
    answers = [await layer.receive(reply) for _ in range(await layer.group_count("processes"))]
    body = json.dumps(sorted(answer["pid"] for answer in answers)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def site() -> Iterator[Path]:
    """A directory with a short name, since a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="site-") as name:
        package = Path(name) / "mysite"
        package.mkdir()
        (package / "asgi.py").write_text(SITE)
        yield Path(name)


def from_the_dockerfile() -> str:
    """Return the image's command, on a socket instead of a port."""
    text = (DEPLOY / "docker/Dockerfile").read_text()
    words = json.loads(text.rpartition("CMD ")[2])
    return shlex.join(words).replace("--host 0.0.0.0 --port 8000", "--uds /run/mysite/http.sock")


def from_the_unit() -> str:
    text = (DEPLOY / "systemd/system/mysite.service").read_text()
    match = re.search(r"^ExecStart=/srv/mysite/venv/bin/(.*)$", text, re.MULTILINE)
    assert match
    return match[1]


SERVERS = {
    "uvicorn": [line for line in commands() if line.startswith("uvicorn")],
    "gunicorn": [line for line in commands() if line.startswith("gunicorn")],
    "hypercorn": [line for line in commands() if line.startswith("hypercorn")],
    "daphne": [line for line in commands() if line.startswith("daphne")],
}


def test_image_and_unit_run_what_the_page_says() -> None:
    """The same command, which is run below."""
    assert [from_the_dockerfile()] == [from_the_unit()] == SERVERS["uvicorn"]


@contextmanager
def running(line: str, site: Path, prefix: str) -> Iterator[str]:
    """Run a server's command on a socket in ``site``, whose path it yields; then SIGTERM."""
    line = line.replace("/run/mysite", str(site)).replace("--workers 4", "--workers 2")
    program, *words = shlex.split(line)
    (path,) = [word.removeprefix("unix:") for word in words if word.endswith(".sock")]
    with (site / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", program, *words],
            cwd=site,
            env={**os.environ, "PYTHONPATH": str(site), "HOME": str(site), "PREFIX": prefix},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield path
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE_S)
        finally:
            try:
                os.killpg(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all of it has ended, as it should
            server.wait()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("site", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def pids_behind(path: str) -> list[int]:
    """Ask the site which processes it has; none while it is starting."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        return list(json.load(answer))
    except OSError:
        return []
    finally:
        connection.close()


@pytest.mark.parametrize("name", SERVERS)
def test_a_servers_command_serves_a_site(site: Path, prefix: str, name: str) -> None:
    """Two processes behind its socket (or its two sockets) find each other through the layer."""
    lines = SERVERS[name]
    assert len(lines) == (2 if name == "daphne" else 1)
    give_up = time.monotonic() + PATIENCE_S
    with running(lines[0], site, prefix) as first:
        if len(lines) == 1:
            _until_two([first], give_up, site)
        else:
            with running(lines[1], site, prefix) as second:
                _until_two([first, second], give_up, site)


def _until_two(paths: list[str], give_up: float, site: Path) -> None:
    while time.monotonic() < give_up:
        for path in paths:
            if len(pids_behind(path)) == 2:
                return
    raise AssertionError((site / "server.log").read_text())


# -- sizes -------------------------------------------------------------------------------


def formulas() -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(next(block for block in blocks("python") if "def message_memory" in block), scope)
    return scope


def stated(thing: str) -> int:
    """Return the bytes that the page's table states for something."""
    match = re.search(rf"^\| {re.escape(thing)} \| ([0-9 ]+) \|", PAGE, re.MULTILINE)
    assert match, thing
    return int(match[1].replace(" ", ""))


def used(prefix: str) -> tuple[int, int]:
    with Inspector(prefix) as inspector:
        messages, groups = inspector.read().memory
    return messages.used, groups.used


def message_of(encoded_bytes: int) -> dict[str, Any]:
    message = {"b": b"x" * (encoded_bytes - 10)}
    while len(PLAIN.encode(message)) < encoded_bytes:
        message["b"] += b"x"
    assert len(PLAIN.encode(message)) == encoded_bytes
    return message


def test_the_stated_sizes_are_right(make_layer: MakeLayer, prefix: str) -> None:
    """Of messages, channels and memberships, each measured over a hundred."""
    layer = make_layer(capacity=1000)
    mine = "specific.abcdefghijkl!"

    def cost(of_groups: bool, put: Callable[[int], Any]) -> float:
        drive(put(0))
        before = used(prefix)[of_groups]
        for number in range(1, 101):
            drive(put(number))
        return (used(prefix)[of_groups] - before) / 100

    def send(size: int, channel: str) -> Callable[[int], Any]:
        return lambda number: layer.send(channel.format(number), message_of(size))

    assert cost(False, send(100, "c")) == stated("... of 100 bytes")
    assert cost(False, send(1000, "c")) == stated("... of 1 000 bytes")
    assert cost(False, send(100, "c.{:04}")) == stated("... of 100 bytes") + stated("a channel")
    leaf = cost(False, send(100, mine + "{:012}")) - cost(False, send(100, mine + "x" * 12))
    assert leaf == stated("a process-specific channel (`a.x!b`)")
    joined = cost(True, lambda number: layer.group_add("g", f"{mine}{number:012}"))
    assert round(joined) == stated("a membership")
    alone = cost(True, lambda number: layer.group_add(f"g.{number:04}", f"{mine}{number:012}"))
    assert alone == stated("a group of one")


@pytest.mark.parametrize(
    ("waiting", "message_bytes", "channels"),
    [(2000, 100, 1), (2000, 100, 2000), (500, 1000, 100), (100, 20_000, 10)],
)
def test_the_formula_for_messages_holds(
    make_layer: MakeLayer, prefix: str, waiting: int, message_bytes: int, channels: int
) -> None:
    """What it says is enough, and not twice of what is needed."""
    size = formulas()["message_memory"](waiting, message_bytes, channels)
    layer = make_layer(message_memory=size, capacity=waiting)
    message = message_of(message_bytes)
    for number in range(waiting):
        drive(layer.send(f"specific.abcdefghijkl!{number % channels:012}", message))
    assert used(prefix)[0] > size / 2


@pytest.mark.parametrize(
    ("memberships", "groups", "processes"), [(3000, 1, 1), (1000, 1000, 1), (2000, 50, 4)]
)
def test_the_formula_for_groups_holds(
    make_layer: MakeLayer, prefix: str, memberships: int, groups: int, processes: int
) -> None:
    """What it says is enough, and not twice of what is needed."""
    size = formulas()["group_memory"](memberships, groups, processes)
    layer = make_layer(group_memory=size)
    for number in range(memberships):
        group, process = number % groups, number // groups % processes
        name = f"specific.abcdefghij{process:02}!{number:012}"
        drive(layer.group_add(f"group.{group}", name))
    assert used(prefix)[1] > size / 2


def test_what_the_defaults_hold() -> None:
    """By the formulas, what the page says that 100 and 20 MiB hold."""
    said = re.search(
        r"hold ([0-9 ]+) messages of 100 bytes and ([0-9 ]+) memberships", " ".join(PAGE.split())
    )
    assert said
    messages, memberships = (int(number.replace(" ", "")) for number in said.groups())
    assert 0.95 < formulas()["message_memory"](messages, 100, 1) / DEFAULT_MESSAGE_MEMORY <= 1
    assert 0.9 < formulas()["group_memory"](memberships, 1, 1) / DEFAULT_GROUP_MEMORY <= 1


# -- commands ----------------------------------------------------------------------------


def test_every_command_of_ours_exists() -> None:
    """``asgi-ipc x`` on the page and in the units is a command that there is."""
    from asgi_ipc._cli.app import app

    texts = [PAGE, *(path.read_text() for path in (DEPLOY / "systemd/system").iterdir())]
    told = {name for text in texts for name in re.findall(r"asgi-ipc ([a-z]+)\b", text)}
    existing = {command.name for command in app.registered_commands}
    assert told <= existing, told - existing


def test_the_log_formatter_works(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's handler writes one JSON object for each record."""
    import logging

    logger = logging.getLogger("asgi_ipc")
    before, level = logger.handlers[:], logger.level
    scope: dict[str, Any] = {}
    exec(next(block for block in blocks("python") if "class AsJson" in block), scope)
    try:
        logger.info("created segment %s", "/x-messages", extra={"event": "segment-created"})
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)
    assert json.loads(capsys.readouterr().err) == {
        "level": "INFO",
        "event": "segment-created",
        "text": "created segment /x-messages",
    }
