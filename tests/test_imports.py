"""Imports point one way: the rooms of the package, bottom up."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import asgi_ipc
from docs.storeys import DESIGN, read_modules, read_rooms, redraw, room_of

# A room may import from rooms above its own line in this list, never from its own or below.
ROOMS = [
    {"_asgiref"},
    {"exceptions"},
    {"_process", "_options", "names", "capacity"},
    {"_shm"},
    {"_memory"},
    {"_store"},
    {"_wake"},
    {"_receive", "_drive"},
    {"aio"},
    {"sync", "channels"},
    {"asgi_ipc", "core", "encoding", "interface", "worker", "tracing", "pytest_plugin"},
    {"_operator"},
    {"metrics", "_cli"},
    {"__main__"},
    {"django"},
]
THIRD_PARTY = {"posix_ipc", "msgpack"}
AT_HOME = {
    "_asgiref": {"asgiref"},
    "pytest_plugin": {"pytest"},
    "channels": {"channels", "django"},
    "django": {"channels", "django"},
    "_cli": {"rich", "typer"},
    "metrics": {"prometheus_client"},
    "tracing": {"opentelemetry"},
    "_drive": {"twisted", "zope"},
}

assert asgi_ipc.__file__ is not None
PACKAGE = Path(asgi_ipc.__file__).parent
MODULES = read_modules()
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def storey_of(room: str) -> int:
    for number, rooms in enumerate(ROOMS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} has no storey yet: give it a line in ROOMS")


@pytest.mark.parametrize("room", sorted(read_rooms(MODULES)))
def test_a_room_imports_only_from_the_rooms_below(room: str) -> None:
    """No import points up, and none sideways."""
    for other in read_rooms(MODULES)[room]:
        assert storey_of(other) < storey_of(room), f"{room} must not import {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside of a room, too, there is an order in which to read."""
    assert set(TopologicalSorter(MODULES).static_order()) == set(MODULES)


def test_the_drawing_of_the_rooms_is_true() -> None:
    """The design has the storeys as the code has them: ``python docs/storeys.py``."""
    assert DESIGN.read_text() == redraw(DESIGN.read_text())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_needs_nothing_but_its_two_dependencies(path: Path) -> None:
    """The standard library, posix_ipc and msgpack; others only where they are at home."""
    foreign: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            foreign.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            foreign.update(alias.name.split(".")[0] for alias in node.names)
    strange = foreign - set(sys.stdlib_module_names) - THIRD_PARTY - {"asgi_ipc"}
    assert strange <= AT_HOME.get(room_of(".".join(path.with_suffix("").parts)), set())


def test_importing_the_package_loads_no_framework() -> None:
    """Neither Django nor Channels nor Twisted comes along, installed or not; nor ctypes."""
    done = subprocess.run(
        [sys.executable, "-c", "import asgi_ipc, sys, json; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"django", "channels", "twisted", "asgiref", "daphne", "uvloop", "ctypes"}
