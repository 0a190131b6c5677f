"""The real Channels 1 stack, in environments of its own.

Channels 1.1.8 runs on Django 1.11, which knows no Python newer than 3.11 and no package of the
day, so it cannot share an environment with the tests. This script makes two, and keeps them:

- `channels1`: the stack, with this checkout's `asgi_ipc` on its path (nothing to reinstall after
  a change of the code);
- `original`: the same stack with `asgi_ipc==1.4.2` from the package index, for benchmarks that
  run both side by side.

They live in `.stack/` in the root of the checkout (or in `ASGI_IPC_STACK_DIR`). An environment
is made again when its pins, its files or its Python change, and never otherwise. Two processes
that ask at once wait for each other; one that dies half way leaves no stamp, so the next one
starts over.

    python tests/channels1/stack.py                 # make both, print their interpreters
    python tests/channels1/stack.py channels1       # make one
    python tests/channels1/stack.py --remove        # delete both

A Python 3.11 is needed: the running one, `ASGI_IPC_STACK_PYTHON`, or `python3.11` on the path.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT_ROOT = HERE.parent.parent
NEEDED_PYTHON = (3, 11)

# Every package is pinned and installed with --no-deps, dependencies of dependencies included:
# the four legacy packages declare ranges that today's releases no longer fit.
LEGACY = ("Django==1.11.29", "channels==1.1.8", "daphne==1.4.2", "asgiref==1.1.2")
COMMON = (
    *LEGACY,
    "Twisted==22.10.0",
    "autobahn==23.1.2",
    "txaio==23.1.1",
    "six==1.17.0",
    "setuptools==65.5.0",
    "pytz==2025.2",
    "attrs==25.3.0",
    "hyperlink==21.0.0",
    "idna==3.10",
    "Incremental==24.7.2",
    "constantly==23.10.4",
    "Automat==25.4.16",
    "zope.interface==7.2",
    "cryptography==45.0.7",
    "cffi==1.17.1",
    "pycparser==2.22",
    "typing_extensions==4.15.0",
    "packaging==25.0",
    "msgpack==1.1.1",
    "posix_ipc==1.3.2",
    # For the suite that Daphne ships inside its package.
    "hypothesis==6.98.0",
    "sortedcontainers==2.4.0",
)
PINS: dict[str, tuple[str, ...]] = {
    "channels1": COMMON,
    # original_shims.py makes msgpack fit; see there.
    "original": (*COMMON, "asgi_ipc==1.4.2"),
}


SHIMS = {"channels1": ("legacy_shims",), "original": ("legacy_shims", "original_shims")}


class StackError(Exception):
    """An environment cannot be made; the message says what is missing."""


def stack_directory() -> Path:
    """Return the directory that holds the environments."""
    named = os.environ.get("ASGI_IPC_STACK_DIR")
    return Path(named).resolve() if named else PROJECT_ROOT / ".stack"


def find_python() -> str:
    """Return the path of a Python 3.11.

    Raises:
        StackError: there is none, or the named one is another version.
    """
    named = os.environ.get("ASGI_IPC_STACK_PYTHON")
    if not named and sys.version_info[:2] == NEEDED_PYTHON:
        return os.path.realpath(sys.executable)
    candidate = named or shutil.which("python3.11")
    wanted = ".".join(map(str, NEEDED_PYTHON))
    if candidate is None:
        raise StackError(
            f"Django 1.11 needs Python {wanted}, and neither is this one, nor is there a "
            f"python{wanted} on the path; name one in ASGI_IPC_STACK_PYTHON"
        )
    # A version manager's launcher may be on the path without the version behind it.
    asked = subprocess.run(
        [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"],
        capture_output=True,
        text=True,
        check=False,
    )
    version, _, executable = asked.stdout.strip().partition(" ")
    if asked.returncode != 0 or version != wanted:
        raise StackError(
            f"{candidate} is no working Python {wanted}: {asked.stdout}{asked.stderr}".strip()
        )
    return os.path.realpath(executable)


def ensure(name: str = "channels1") -> Path:
    """Make the environment `name` if it is missing or out of date; return its interpreter.

    Takes about 20 s when it has to install, 1 ms when it has not.

    Raises:
        StackError: no Python 3.11, or an installation failed (with its output).
    """
    directory = stack_directory() / name
    interpreter = directory / "bin" / "python"
    with _locked(name):
        base_python = find_python()
        wanted = _fingerprint(name, base_python)
        stamp = directory / "stack.json"
        if _read_stamp(stamp) == wanted and interpreter.exists():
            return interpreter
        print(f"making the environment {name} in {directory}", file=sys.stderr, flush=True)
        if directory.exists():
            shutil.rmtree(directory)
        _run([base_python, "-m", "venv", str(directory)])
        _run([str(interpreter), "-m", "pip", "install", "--no-deps", "--quiet", *PINS[name]])
        _add_files(name, directory)
        _run([str(interpreter), "-c", "import django, channels, daphne.server, asgiref"])
        stamp.write_text(json.dumps({"fingerprint": wanted, "pins": PINS[name]}, indent=2))
    return interpreter


def remove() -> None:
    """Delete the environments."""
    for name in PINS:
        with _locked(name):
            shutil.rmtree(stack_directory() / name, ignore_errors=True)


def _add_files(name: str, directory: Path) -> None:
    packages = next(directory.glob("lib/python3.*/site-packages"))
    for shim in SHIMS[name]:
        shutil.copy(HERE / f"{shim}.py", packages / f"{shim}.py")
        # "import" lines of .pth files run at start-up, before anything imports Django.
        (packages / f"{shim}.pth").write_text(f"import {shim}\n")
    if name == "channels1":
        (packages / "asgi_ipc_checkout.pth").write_text(f"{PROJECT_ROOT}\n")
    else:
        # asgi_ipc 1.4.2 asks pkg_resources for its requirements when it is imported, and msgpack
        # had another name then.
        metadata = packages / "msgpack_python-0.5.6.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: msgpack-python\nVersion: 0.5.6\n"
        )


def _fingerprint(name: str, base_python: str) -> str:
    parts = [
        name,
        base_python,
        str(PROJECT_ROOT),
        *PINS[name],
        *((HERE / f"{shim}.py").read_text() for shim in SHIMS[name]),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_stamp(stamp: Path) -> str | None:
    try:
        value = json.loads(stamp.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value.get("fingerprint") if isinstance(value, dict) else None


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise StackError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")


@contextmanager
def _locked(name: str) -> Iterator[None]:
    directory = stack_directory()
    directory.mkdir(parents=True, exist_ok=True)
    # The directory hides itself from git; nobody else has to know about it.
    (directory / ".gitignore").write_text("*\n")
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="make the environments of the Channels 1 stack")
    parser.add_argument("names", nargs="*", metavar="NAME", help=" or ".join(PINS))
    parser.add_argument("--remove", action="store_true", help="delete them instead")
    options = parser.parse_args()
    for name in options.names:
        if name not in PINS:
            parser.error(f"no environment {name!r}; there are {', '.join(PINS)}")
    if options.remove:
        remove()
        return 0
    try:
        for name in options.names or PINS:
            print(ensure(name))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
