"""Running the command and reading what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jsonschema
import pytest

import asgi_ipc

if TYPE_CHECKING:
    from ..conftest import Child

assert asgi_ipc.__file__ is not None
SCHEMA = json.loads((Path(asgi_ipc.__file__).parent / "_cli" / "schema.json").read_text())
COMMAND = (sys.executable, "-m", "asgi_ipc")


@cache
def _validator(definition: str) -> Any:
    schema = {"$ref": f"#/$defs/{definition}", "$defs": SCHEMA["$defs"]}
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema, format_checker=jsonschema.FormatChecker())


def validate(document: Any, definition: str) -> None:
    """Fail unless a document is what the schema says about it."""
    _validator(definition).validate(document)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def document(self, definition: str) -> Any:
        """Return its output as JSON, checked against the schema."""
        document = json.loads(self.out)
        validate(document, definition)
        return document


Run = Callable[..., Done]

SPAWNER = """
import contextlib, gc, io, json, os, sys, traceback
from asgi_ipc.__main__ import main
sys.argv = ["asgi-ipc", "stats", "-p", "test-no-such"]
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
    main()  # imports what is imported late
gc.freeze()
while line := os.read(0, 1 << 20):
    order = json.loads(line)
    pid = os.fork()
    if not pid:
        for fd, path in enumerate(order["files"]):
            os.dup2(os.open(path, os.O_RDWR), fd)
        os.environ["ASGI_IPC_PREFIX"] = order["prefix"]
        sys.argv = ["asgi-ipc", *order["arguments"]]
        code = 70
        try:
            main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # not through the teardown of all that was imported
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def spawner() -> Iterator[subprocess.Popen[str]]:
    """Start a process that has the command imported and forks for each run of it.

    Each run is the real command in a process of its own, without the third of a second that
    importing takes.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SPAWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.communicate()


@pytest.fixture
def run(prefix: str, spawner: subprocess.Popen[str], tmp_path: Path) -> Run:
    """Run the command on this test's site: ``run("stats", "--json", code=0)``."""

    def run_one(*arguments: str, code: int | None = 0, stdin: str = "") -> Done:
        files = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
        for file, text in zip(files, (stdin, "", ""), strict=True):
            file.write_text(text)
        order = {"files": [str(f) for f in files], "prefix": prefix, "arguments": arguments}
        assert spawner.stdin is not None and spawner.stdout is not None
        spawner.stdin.write(json.dumps(order) + "\n")
        spawner.stdin.flush()
        done = Done(int(spawner.stdout.readline()), files[1].read_text(), files[2].read_text())
        assert code is None or done.code == code, (arguments, done)
        return done

    return run_one


@pytest.fixture
def read(run: Run) -> Callable[..., Any]:
    """Run a command with ``--json`` and return its document: ``read("peek", "jobs")``."""

    def read_one(command: str, *arguments: str, definition: str = "", code: int = 0) -> Any:
        done = run(command, *arguments, "--json", code=code)
        return done.document(definition or ("error" if code > 1 else command))

    return read_one


HOLDER = """
from asgi_ipc._shm.segment import LockBusy
layer = IPCChannelLayer(PREFIX, **SIZES)
segment = getattr(layer.core._site, sys.argv[2]).segment
def hold():
    say("holding")
    os.kill(os.getpid(), signal.SIGSTOP)
    return True
has_held = False
while not has_held:
    try:
        has_held = segment.transact(hold)
    except LockBusy:
        pass  # somebody looks at it just now
say("let go")
"""


@pytest.fixture
def stopped_holder(start: Callable[..., Child]) -> Callable[[str], Child]:
    """Start a process that is stopped while it holds the lock of a segment."""

    def start_one(which: str = "messages") -> Child:
        child = start(HOLDER, which)
        child.expect("holding")
        child.wait_for_state("T")
        return child

    return start_one
