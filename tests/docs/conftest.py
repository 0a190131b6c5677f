"""The site, built once, as `make docs` builds it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT

BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]


@pytest.fixture(scope="session", autouse=True)
def before_all_tests() -> None:
    """Let the collection after each test pass over what was imported, most of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built site; a warning of any part of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [*BUILD, str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "DeprecationWarning" not in done.stderr
    return folder
