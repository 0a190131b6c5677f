"""What users see of the package without calling anything."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import asgi_ipc
from asgi_ipc import exceptions

STRICT_VERSION = re.compile(r"(\d+) \. (\d+) (\. (\d+))? ([ab](\d+))?\Z", re.VERBOSE)


def test_every_public_name_exists() -> None:
    """``__all__`` names what is there, sorted, without repeats."""
    assert sorted(set(asgi_ipc.__all__)) == sorted(asgi_ipc.__all__)
    for name in asgi_ipc.__all__:
        assert hasattr(asgi_ipc, name)


def test_the_version_lets_channels_1_start() -> None:
    """It parses as distutils' StrictVersion did, is 1.3.0 or later, and is the package's."""
    match = STRICT_VERSION.match(asgi_ipc.__version__)
    assert match is not None
    major, minor, _, patch, *_ = match.groups()
    assert (int(major), int(minor), int(patch or 0)) >= (1, 3, 0)
    assert metadata.version("asgi_ipc") == asgi_ipc.__version__


def test_the_package_says_that_it_is_typed() -> None:
    """``py.typed`` is beside the code."""
    assert asgi_ipc.__file__ is not None
    assert (Path(asgi_ipc.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("module", ["exceptions", "names", "capacity", "aio", "sync"])
def test_every_public_module_names_what_it_offers(module: str) -> None:
    """``__all__`` of each public module is complete enough to exist."""
    loaded = importlib.import_module(f"asgi_ipc.{module}")
    for name in loaded.__all__:
        assert hasattr(loaded, name)


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_exception_is_of_one_family(name: str) -> None:
    """One ``except IPCError`` catches everything the package raises on purpose."""
    assert issubclass(getattr(exceptions, name), exceptions.IPCError)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (exceptions.InvalidName, TypeError),
        (exceptions.InvalidMessage, AssertionError),
        (exceptions.UnserialisableValue, TypeError),
        (exceptions.SegmentPermission, PermissionError),
        (exceptions.SharedMemoryFull, OSError),
    ],
)
def test_what_upstream_code_catches_is_caught(
    error: type[Exception], base: type[Exception]
) -> None:
    """The errors are also what the original packages raised."""
    assert issubclass(error, base)


@pytest.mark.parametrize("error", [exceptions.ChannelFull, exceptions.MessageTooLarge])
def test_third_parties_can_raise_the_layers_errors(error: type[Exception]) -> None:
    """They accept any arguments, or none."""
    assert str(error()) == ""
    assert error("a", 1).args == ("a", 1)


def test_importing_is_silent() -> None:
    """No warning, no output, nothing in shared memory."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import asgi_ipc"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
