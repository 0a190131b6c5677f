"""Imports point one way: the rooms of the package, bottom up."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_ipc

# A module may import from rooms above its own line in this list, never from its own or below.
ROOMS = [
    {"exceptions", "_layout", "_own"},
    {"_scratch", "_spin", "_throttle", "_witness"},
    {"names", "capacity", "_codec", "_blocking", "_opening", "_waiting"},
    {"_segment"},
    {"_heap", "_check"},
    {"_table"},
    {"_queues", "_groups"},
    {"_records", "_fast", "_joining"},
    {"_slots", "_statistics", "_membership", "_bell", "_inotify", "_inbox"},
    {"_fanout"},
    {"_store"},
    {"_port", "_poll_loop", "_removing"},
    {"_twin"},
    {"_site"},
    {"_resting"},
    {"_reception"},
    {"aio"},
    {"_twisted"},
    {"sync"},
    {"__init__"},
    {"_procfs"},
    {"_image", "_reading"},
    {"_survey"},
    {"_inspect", "_peek"},
    {"_doctor", "metrics", "tracing"},
    {"channels", "interface", "worker"},
    {"cli"},
    {"__main__", "pytest_plugin"},
]
THIRD_PARTY = {"posix_ipc", "msgpack"}
AT_HOME = {
    "pytest_plugin": {"pytest"},
    "channels": {"channels", "django"},
    "cli": {"rich", "typer"},
    "metrics": {"prometheus_client"},
    "tracing": {"opentelemetry"},
    "_twisted": {"twisted", "zope"},
}

assert asgi_ipc.__file__ is not None
PACKAGE = Path(asgi_ipc.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
PACKAGED = {str(path) for path in FILES}
MODULES = [str(path.with_suffix("")) for path in FILES]


def room_of(module: str) -> int:
    for number, room in enumerate(ROOMS):
        if module.split("/")[0] in room:
            return number
    raise AssertionError(f"{module} has no room yet: give it a line in ROOMS")


def imports_of(module: str) -> tuple[set[str], set[str]]:
    """Return the names of sibling modules, and of foreign top-level packages.

    A folder is one room: what its files import from each other does not count.
    """
    siblings: set[str] = set()
    foreign: set[str] = set()
    own_level = module.count("/")
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level == own_level:
                continue
            if node.module:
                siblings.add(node.module.split(".")[0])
            else:
                siblings.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            foreign.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            foreign.update(alias.name.split(".")[0] for alias in node.names)
    return siblings, foreign


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_rooms_below(module: str) -> None:
    """No import points up, and none sideways but for the pairs that say so."""
    siblings, _ = imports_of(module)
    for sibling in siblings:
        name = (
            sibling if (PACKAGE / sibling).exists() or f"{sibling}.py" in PACKAGED else "__init__"
        )
        assert room_of(name) < room_of(module), f"{module} must not import {sibling}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_needs_nothing_but_its_two_dependencies(module: str) -> None:
    """The standard library, posix_ipc and msgpack; others only where they are at home."""
    _, foreign = imports_of(module)
    strange = foreign - set(sys.stdlib_module_names) - THIRD_PARTY - {"asgi_ipc"}
    assert strange <= AT_HOME.get(module.split("/")[0], set())


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
