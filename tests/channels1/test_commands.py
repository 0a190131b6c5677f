"""Commands of a site other than daphne and runworker, and the example's own run.py."""

import os
import signal
import subprocess
import sys

import httpx
import pytest
from websockets.sync.client import connect

from .running_site import (
    DEADLINE_S,
    SITE_DIRECTORY,
    Site,
    poll_until,
    remove_shared_memory_of,
    shared_memory_of,
    wait_until_working,
)


def processes_of_session(leader: int) -> list[int]:
    """Return the pids of a session's processes."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getsid(int(entry)) == leader:
                found.append(int(entry))
        except ProcessLookupError:
            pass  # ended meanwhile
    return found


@pytest.mark.parametrize("arguments", [("--noreload",), ()], ids=["main-thread", "reloader"])
def test_runserver(empty_site: Site, arguments: tuple[str, ...]) -> None:
    """runserver, daphne and four workers in one process, serves, and Ctrl-C ends all of it.

    Its autoreloader keeps the main thread to itself, so that the reactor runs in another one.
    """
    address = f"127.0.0.1:{empty_site.port}"
    server = empty_site.start("python", "manage.py", "runserver", *arguments, address)
    try:
        empty_site.wait_until_answering()
        body = os.urandom(1_000_000)
        answer = httpx.post(f"{empty_site.url}/request/body", content=body, timeout=DEADLINE_S)
        assert answer.json()["body_bytes"] == len(body)
        with connect(f"{empty_site.ws_url}/rooms/here") as socket:
            assert socket.recv(timeout=DEADLINE_S) == "joined"
            for number in range(20):
                socket.send(str(number))
                assert socket.recv(timeout=DEADLINE_S) == str(number)
    finally:
        # As a terminal does it: to every process of the group.
        os.killpg(server.pid, signal.SIGINT)
    assert server.exit_status() == 0
    poll_until(lambda: processes_of_session(server.pid) == [], "the end of the reloader's child")


def test_delayed_message(empty_site: Site) -> None:
    """A message that a view delays is kept by rundelay and sent when it is due."""
    migration = empty_site.start("python", "manage.py", "migrate")
    assert migration.exit_status() == 0
    delayer = empty_site.start("python", "manage.py", "rundelay", "--sleep", "0.1")
    empty_site.start_all()
    delayer.wait_for_log("Listening on asgi.delay")
    with connect(f"{empty_site.ws_url}/rooms/late") as socket:
        assert socket.recv(timeout=DEADLINE_S) == "joined"
        httpx.post(
            f"{empty_site.url}/background/late",
            data={"text": "after a while", "delay_ms": "50"},
            timeout=DEADLINE_S,
        ).raise_for_status()
        assert socket.recv(timeout=DEADLINE_S) == "AFTER A WHILE"


def test_worker_without_channels(empty_site: Site) -> None:
    """A worker whose filter matches nothing idles and ends with status 0 on SIGTERM."""
    worker = empty_site.start_worker(1, "--only-channels", "nothing.*")
    wait_until_working(worker)
    worker.ask_to_end()
    assert worker.exit_status() == 0


def test_processes_end_while_idle_and_while_busy(empty_site: Site) -> None:
    """SIGTERM and SIGINT end daphne and both kinds of worker with status 0, idle or not."""
    for number in (signal.SIGTERM, signal.SIGINT):
        for busy in (False, True):
            daphne = empty_site.start_daphne()
            workers = [empty_site.start_worker(), empty_site.start_worker(4)]
            for worker in workers:
                wait_until_working(worker)
            empty_site.wait_until_answering()
            if busy:
                with httpx.Client(base_url=empty_site.url, timeout=DEADLINE_S) as client:
                    for _ in range(20):
                        client.get("/")
            for process in (*workers, daphne):
                process.ask_to_end(number)
            assert [process.exit_status() for process in (*workers, daphne)] == [0, 0, 0]


def test_run_script(empty_site: Site) -> None:
    """One command runs the site; it starts again what is killed; Ctrl-C ends and removes all."""
    environment = {
        **empty_site.environment,
        "ASGI_IPC_STACK_DIR": str(empty_site.python.parents[2]),
    }
    command = [sys.executable, "run.py", "--port", str(empty_site.port)]
    process = subprocess.Popen(
        command,
        cwd=SITE_DIRECTORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = ""
    try:
        empty_site.wait_until_answering()
        pid = int(httpx.get(empty_site.url, timeout=DEADLINE_S).headers["x-worker-pid"])
        os.kill(pid, signal.SIGKILL)
        seen: set[int] = set()

        def two_others_answer() -> bool:
            answer = httpx.get(empty_site.url, timeout=DEADLINE_S)
            seen.add(int(answer.headers["x-worker-pid"]))
            return len(seen - {pid}) == 2

        poll_until(two_others_answer, "answers of both workers after one was killed")
        process.send_signal(signal.SIGINT)
    except BaseException:
        process.terminate()
        raise
    finally:
        output = process.communicate(timeout=DEADLINE_S)[0]
        print(output)
        left = shared_memory_of(empty_site.prefix)
        remove_shared_memory_of(empty_site.prefix)
    assert process.returncode == 0
    assert left == []
    assert output.count("ended with 0") == 3
    assert output.count("ended with -9") == 1
