"""What is uploaded: built, checked, installed where there is no compiler, and tested from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import asgi_ipc

from ..docs.blocks import PAGES
from ..pythons import others

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OF_THE_REPOSITORY = re.compile(
    r"https://(?:github\.com/django/asgi_ipc/blob|raw\.githubusercontent\.com/django/asgi_ipc)/main/(\S+)"
)
PYTHONS = {"this": Path(sys.executable), **others()}


def run(*command: str | Path, cwd: Path | None = None, path: str | None = None) -> str:
    """Run something that has to succeed; return what it says."""
    env = None if path is None else {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the source distribution and the wheel that is made of it lie."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def test_an_index_takes_it(dist: Path) -> None:
    """Both files, with a README that it can show."""
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()))


def test_the_wheel_has_the_whole_package_and_nothing_else(dist: Path) -> None:
    """Every file of the package that is not compiled, and the licence."""
    (wheel,) = dist.glob("*.whl")
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "asgi_ipc"
    here = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file()}
    assert there == {name for name in here if "__pycache__" not in name}
    assert any(name.endswith("LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_the_tests_run_from_the_source_distribution(dist: Path, tmp_path: Path) -> None:
    """As many as here are found in it, and some of them run."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    pytest_on = (sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider")

    def collected(root: Path) -> set[str]:
        return set(run(*pytest_on, "--collect-only", cwd=root).splitlines()[:-1])

    assert collected(source) == collected(ROOT)
    # The package beside the tests is the one that is tested.
    run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/test_public.py",
        "tests/test_names.py",
        cwd=source,
    )


TRIES_IT = """
import asyncio
from asgi_ipc import AsyncIPCChannelLayer

async def main():
    layer = AsyncIPCChannelLayer(prefix="test-wheel-{pid}")
    try:
        await layer.send("c", {{"text": "hello"}})
        print(await layer.receive_async(["c"]))
    finally:
        layer.unlink()

asyncio.run(main())
"""


@pytest.mark.parametrize("python", PYTHONS)
def test_it_installs_without_a_compiler(dist: Path, tmp_path: Path, python: str) -> None:
    """On each Python of this machine, in an environment of its own, and works there."""
    (wheel,) = dist.glob("*.whl")
    venv = tmp_path / "venv"
    run(PYTHONS[python], "-m", "venv", venv)
    there = venv / "bin"
    run(
        there / "python",
        "-m",
        "pip",
        "install",
        "-q",
        f"asgi_ipc[cli] @ {wheel.as_uri()}",
        path=str(there),
    )
    program = TRIES_IT.format(pid=os.getpid())
    assert run(there / "python", "-c", program, cwd=tmp_path) == "('c', {'text': 'hello'})\n"
    assert asgi_ipc.__version__ in run(there / "asgi-ipc", "--version", path=str(there))


def test_the_readme_reads_the_same_on_an_index() -> None:
    """Its links and pictures are absolute, and lead to what is in the repository."""
    assert not re.findall(r"\]\((?!https?://)", README)
    addresses = OF_THE_REPOSITORY.findall(README)
    assert addresses
    for address in addresses:
        assert (ROOT / address.partition("#")[0]).exists(), address


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_to_be_installed_is_this_package(page: Path) -> None:
    """Before 2.0, pip takes the archived 1.4.2 unless it is asked for a beta."""
    for line in re.findall(r"pip install [^`\n]*asgi_ipc[^`\n]*", page.read_text()):
        assert "b" not in asgi_ipc.__version__ or "asgi_ipc>=2.0b1" in re.sub(r"\[.*?\]", "", line)
