"""The script that makes the environments."""

import json
import subprocess
from pathlib import Path

import pytest

from . import stack

CONTRACT = {
    "Django": "1.11.29",
    "channels": "1.1.8",
    "daphne": "1.4.2",
    "asgiref": "1.1.2",
    "Twisted": "22.10.0",
    "autobahn": "23.1.2",
    "txaio": "23.1.1",
    "six": "1.17.0",
    "setuptools": "65.5.0",
    "hyperlink": "21.0.0",
}


def test_environment_is_the_real_stack(stack_python: Path) -> None:
    """The environment has the exact releases, and this checkout's asgi_ipc."""
    code = (
        "import asgi_ipc, importlib.metadata as m, json, sys;"
        f"print(json.dumps([asgi_ipc.__file__, {{n: m.version(n) for n in {[*CONTRACT]}}}]))"
    )
    output = subprocess.run([stack_python, "-c", code], check=True, capture_output=True).stdout
    location, versions = json.loads(output)
    assert versions == CONTRACT
    assert Path(location) == stack.PROJECT_ROOT / "asgi_ipc" / "__init__.py"


def test_environment_is_kept(stack_python: Path) -> None:
    """An environment that is up to date is not made again."""
    stamp = stack_python.parents[1] / "stack.json"
    made = stamp.stat().st_mtime_ns
    assert stack.ensure("channels1") == stack_python
    assert stamp.stat().st_mtime_ns == made


def test_no_fitting_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that cannot run the stack is refused by name."""
    monkeypatch.setenv("ASGI_IPC_STACK_PYTHON", "/bin/false")
    with pytest.raises(stack.StackError, match=r"/bin/false is no working Python 3\.11"):
        stack.find_python()
