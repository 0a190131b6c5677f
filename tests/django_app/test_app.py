"""``asgi_ipc.django`` in a project: its checks, and ``manage.py asgi_ipc``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Manage = Callable[..., subprocess.CompletedProcess[str]]
BACKEND = "asgi_ipc.channels.IPCChannelLayer"

MANAGE = """
import json, os, sys
from django.conf import settings
settings.configure(
    DEBUG=bool(os.environ.get("SITE_DEBUG")),
    SECRET_KEY="x",
    INSTALLED_APPS=["asgi_ipc.django"],
    CHANNEL_LAYERS=json.loads(os.environ["SITE_LAYERS"]),
)
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def manage(tmp_path: Path) -> Manage:
    """Run ``manage.py`` of a project with these channel layers."""
    (tmp_path / "manage.py").write_text(MANAGE)

    def run(layers: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "SITE_LAYERS": json.dumps(layers)}
        return subprocess.run(
            [sys.executable, str(tmp_path / "manage.py"), *arguments],
            env=env,
            capture_output=True,
            text=True,
        )

    return run


def layer(backend: str = BACKEND, **options: Any) -> dict[str, Any]:
    """One entry of CHANNEL_LAYERS."""
    return {"BACKEND": backend, "CONFIG": options}


def test_a_project_that_is_well_is_told_nothing(manage: Manage, prefix: str) -> None:
    """And nothing is attached to."""
    done = manage({"default": layer(prefix=prefix)}, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no issues" in done.stdout
    assert not Path(f"/dev/shm/{prefix}-messages").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hosts": ["redis"], "symmetric_encryption_keys": ["x"]}, "hosts, symmetric_encryption"),
        ({"prefix": "site:"}, "'site' would do"),
        ({"channel_capacity": [["a", 1]]}, "channel_capacity must be a dict"),
        ({"capacity": 0}, "capacity must be at least 1"),
    ],
)
@pytest.mark.parametrize("backend", [BACKEND, "asgi_ipc.IPCChannelLayer"])
def test_options_are_checked_before_anything_starts(
    manage: Manage, backend: str, options: dict[str, Any], says: str
) -> None:
    """Not at the first websocket."""
    done = manage({"default": layer(backend, **options)}, "check")
    assert done.returncode == 1
    assert "asgi_ipc.E001" in done.stderr
    assert "CHANNEL_LAYERS['default']" in done.stderr
    assert says in done.stderr


def test_a_backend_that_cannot_be_imported_is_named(manage: Manage) -> None:
    """As far as it is written."""
    done = manage({"default": layer("asgi_ipc.channels.Layer")}, "check")
    assert done.returncode == 1
    assert "asgi_ipc.E002" in done.stderr


def test_a_layer_in_memory_is_not_for_production(
    manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches one process only; while one develops that is enough."""
    layers = {"default": layer("channels.layers.InMemoryChannelLayer")}
    assert "asgi_ipc.W001" in manage(layers, "check").stderr
    monkeypatch.setenv("SITE_DEBUG", "1")
    assert "asgi_ipc.W001" not in manage(layers, "check").stderr


def test_a_deployment_is_examined(manage: Manage, prefix: str, make_layer: MakeLayer) -> None:
    """By the doctor: what differs from the settings, say."""
    make_layer().sync.send("c", {})
    done = manage({"default": layer(prefix=prefix, message_memory=64 << 20)}, "check", "--deploy")
    assert "asgi_ipc.segment-size" in done.stderr
    assert "CHANNEL_LAYERS['default']" in done.stderr


def test_the_command_takes_its_prefix_from_the_settings(
    manage: Manage, prefix: str, make_layer: MakeLayer
) -> None:
    """Of the layer that is asked for; what it prints and how it ends is its own."""
    make_layer().sync.send("jobs", {"n": 1})
    layers = {"default": layer(prefix=f"{prefix}-none"), "other": layer(prefix=prefix)}
    done = manage(layers, "asgi_ipc", "--layer", "other", "peek", "jobs", "--json")
    assert json.loads(done.stdout)["messages"][0]["message"] == {"n": 1}
    done = manage(layers, "asgi_ipc", "stats")
    assert done.returncode == 3
    assert f"{prefix}-none" in done.stderr
    done = manage(layers, "asgi_ipc", "--layer", "third", "stats")
    assert "it has 'default', 'other'" in done.stderr
    assert "manage.py asgi_ipc" in manage(layers, "asgi_ipc").stdout


def test_the_doctor_compares_with_the_settings(
    manage: Manage, prefix: str, make_layer: MakeLayer
) -> None:
    """Sizes and mode, as nobody types them."""
    make_layer().sync.send("c", {})
    layers = {"default": layer(prefix=prefix, message_memory=64 << 20, mode=0o660)}
    found = json.loads(manage(layers, "asgi_ipc", "doctor", "--json").stdout)["findings"]
    assert {"segment-size", "segment-mode"} <= {one["code"] for one in found}
