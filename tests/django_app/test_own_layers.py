"""Tests of a project that mixes ``OwnChannelLayers`` in, run by Django's runner and by pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_ipc import AsyncIPCChannelLayer

SETTINGS = """
import os
SECRET_KEY = "x"
INSTALLED_APPS = ["asgi_ipc.django"]
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.channels.IPCChannelLayer",
        "CONFIG": {"prefix": os.environ["SITE_PREFIX"], "expiry": 60, "message_memory": 8 << 20},
        "TEST_CONFIG": {"expiry": 5},
    },
    "memory": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
}
"""
TESTS = """
from channels.layers import get_channel_layer
from django.test import SimpleTestCase
from asgi_ipc.django.test import OwnChannelLayers

class Room(OwnChannelLayers):
    async def test_one_hears_oneself_only(self):
        layer = get_channel_layer()
        assert (layer.expiry, layer.message_memory) == (5, 8 << 20)
        mine = await layer.new_channel()
        await layer.group_add("room", mine)
        for n in range(200):
            assert await layer.group_count("room") == 1
            await layer.group_send("room", {"who": type(self).__name__, "n": n})
            assert await layer.receive(mine) == {"who": type(self).__name__, "n": n}

    def test_what_another_test_left_is_not_there(self):
        layer = get_channel_layer()
        assert layer.sync.receive("left", 0) is None
        assert get_channel_layer("memory") is not None
        layer.sync.send("left", {})

    test_and_again = test_what_another_test_left_is_not_there

class One(Room, SimpleTestCase): pass
class Two(Room, SimpleTestCase): pass
class Three(Room, SimpleTestCase): pass
del Room
"""

RUNNERS = {
    "django": ["-m", "django", "test"],
    "django in parallel": ["-m", "django", "test", "--parallel", "3"],
    "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests.py"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_each_test_has_layers_of_its_own(prefix: str, tmp_path: Path, runner: str) -> None:
    """Beside a running site of the same settings, which hears nothing; nothing is left."""
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "tests.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text("import django\ndjango.setup()\n")
    site = AsyncIPCChannelLayer(prefix, message_memory=8 << 20, group_memory=4 << 20)
    site.sync.group_add("room", "site")
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": str(tmp_path),
        "SITE_PREFIX": prefix,
    }
    done = subprocess.run(
        [sys.executable, *RUNNERS[runner]], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout or "Ran 9 tests" in done.stderr
    assert site.sync.receive("site", 0) is None
    pids = {name.split("-")[1] for name in os.listdir("/dev/shm") if name.startswith("test-")}
    assert not [pid for pid in pids if not Path(f"/proc/{pid}").exists()]
    site.unlink()
