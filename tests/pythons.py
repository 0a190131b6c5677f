"""The tests on every other Python there is: `make test-pythons`.

Those of `$PATH` (`python3.12`, `python3.13t`, ...) and of pyenv, the newest of each minor version,
but for the one that runs this. Each has an environment of its own, `.venv-3.12`. What is about
documents and benchmarks is left out: it says nothing about a Python.

    python -m tests.pythons [--quick] [what pytest takes]

Quick is the newest of them, and the core's tests, those that lie in `tests/` itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEAST = (3, 11)
NOT_OF_A_PYTHON = ["tests/docs", "tests/test_benchmarks.py", "tests/test_deployment_docs.py"]
_SAY = (
    "import sys, sysconfig as s; print(*sys.version_info[:3], s.get_config_var('Py_GIL_DISABLED'))"
)
_NAME = re.compile(r"python3\.\d+t?")


def _folders() -> list[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    return [*map(Path, os.environ["PATH"].split(":")), *sorted(pyenv.glob("*/bin"))]


def others() -> dict[str, Path]:
    """Return the other Pythons of this machine, oldest first: executable by ``3.12``, ``3.13t``."""
    found: dict[tuple[int, int, str], tuple[int, Path]] = {}
    for folder in _folders():
        for path in sorted(folder.glob("python3.*")):
            if not _NAME.fullmatch(path.name) or not os.access(path, os.X_OK):
                continue
            done = subprocess.run([path, "-c", _SAY], capture_output=True, text=True)
            if done.returncode:
                continue  # one of pyenv's, which only says that it is not chosen
            major, minor, micro, no_gil = done.stdout.split()
            key = (int(major), int(minor), "t" * (no_gil == "1"))
            if key[:2] >= LEAST and int(micro) >= found.get(key, (-1, path))[0]:
                found[key] = int(micro), path
    found.pop((*sys.version_info[:2], getattr(sys, "abiflags", "")), None)
    return {f"{key[0]}.{key[1]}{key[2]}": found[key][1] for key in sorted(found)}


def main(arguments: list[str]) -> int:
    """Run the tests on them; return how many of them were not content."""
    pythons = others()
    print(f"other Pythons here: {', '.join(pythons) or 'none'}", flush=True)
    what = ["tests"]
    if "--quick" in arguments:
        arguments.remove("--quick")
        pythons = dict(list(pythons.items())[-1:])
        what = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/test_*.py"))]
    chosen = arguments or [path for path in what if path not in NOT_OF_A_PYTHON]
    chosen += [f"--ignore={path}" for path in NOT_OF_A_PYTHON]
    failed = []
    for name, path in pythons.items():
        venv = f".venv-{name}"
        print(f"Python {name}: {path}", flush=True)
        subprocess.run(
            ["make", f"VENV={venv}", f"PYTHON={path}", f"{venv}/.ready"], cwd=ROOT, check=True
        )
        done = subprocess.run([f"{venv}/bin/python", "-m", "pytest", *chosen], cwd=ROOT)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed on Python {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
