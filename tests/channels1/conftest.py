"""Fixtures: the stack's interpreter, running sites, scripts inside the stack."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import stack
from .running_site import (
    SITE_DIRECTORY,
    Site,
    new_prefix,
    remove_shared_memory_of,
    shared_memory_of,
)

SKIP_VARIABLE = "ASGI_IPC_SKIP_CHANNELS1"
# "original" runs what the original can do as well: a check of the tests themselves.
ENVIRONMENT_VARIABLE = "ASGI_IPC_CHANNELS1_ENVIRONMENT"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow for the time that the first of these tests may need to make the environment."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def stack_python() -> Path:
    """Return the interpreter of the Channels 1 stack, which is made when it is missing."""
    if os.environ.get(SKIP_VARIABLE) == "1":
        pytest.skip(f"{SKIP_VARIABLE}=1")
    return stack.ensure(os.environ.get(ENVIRONMENT_VARIABLE, "channels1"))


@contextmanager
def run_site(stack_python: Path, directory: Path, **environment: str) -> Iterator[Site]:
    """Give a site whose processes all end with status 0 and which leaves nothing behind."""
    site = Site(stack_python, directory, environment)
    try:
        yield site
    finally:
        statuses = site.stop()
        print(site.report())
        assert shared_memory_of(site.prefix) == []
    assert set(statuses.values()) <= {0}, f"not every process ended with status 0: {statuses}"


@pytest.fixture
def empty_site(stack_python: Path, tmp_path: Path) -> Iterator[Site]:
    """Give a site of which no process runs yet."""
    with run_site(stack_python, tmp_path / "site") as site:
        yield site


@pytest.fixture
def new_site(empty_site: Site) -> Site:
    """Give a running site of the test's own: daphne, a worker, a worker with four threads."""
    empty_site.start_all()
    return empty_site


@pytest.fixture(scope="module")
def site(stack_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a running site that the tests of a module share."""
    with run_site(stack_python, tmp_path_factory.mktemp("channels1") / "site") as site:
        site.start_all()
        yield site


RunInside = Callable[..., str]


def kill_session(leader: int) -> None:
    """Kill whatever is left of a script and its children."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing is left


@pytest.fixture
def run_inside(stack_python: Path, tmp_path: Path) -> Iterator[RunInside]:
    """Give a function that runs a script of `inside/` in the stack and returns its output.

    The script finds its prefix in the environment; a status other than 0 fails the test.
    """
    prefix = new_prefix()
    (tmp_path / "data").mkdir()

    def run(script: str, *arguments: str, deadline_s: float = 120.0) -> str:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "PYTHONPATH": str(SITE_DIRECTORY),
            "DJANGO_SETTINGS_MODULE": "demo.settings",
            "CHANNELS1_SITE_PREFIX": prefix,
            "CHANNELS1_SITE_DATA": str(tmp_path / "data"),
        }
        command = [str(stack_python), str(Path(__file__).parent / "inside" / script), *arguments]
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output = process.communicate(timeout=deadline_s)[0]
        except subprocess.TimeoutExpired:
            kill_session(process.pid)
            output = process.communicate()[0]
            pytest.fail(f"{script} has not ended after {deadline_s:g} s:\n{output}", pytrace=False)
        kill_session(process.pid)
        if process.returncode != 0:
            pytest.fail(f"{script} ended with {process.returncode}:\n{output}", pytrace=False)
        return output

    try:
        yield run
    finally:
        remove_shared_memory_of(prefix)
