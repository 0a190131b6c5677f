"""The fixture ``asgi_ipc_layer`` in projects of its own, run by pytester."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project that knows the fixture, run in an interpreter of its own."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\naddopts = -p asgi_ipc.pytest_plugin -p no:cacheprovider\n")
    return pytester


def _left_by(pid: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"pytest-{pid}-")]


TESTS = """
import asyncio, os
import pytest

seen = set()

@pytest.mark.parametrize("number", range(3))
def test_own_prefix_and_empty(asgi_ipc_layer, number):
    print("PID", os.getpid())
    assert asgi_ipc_layer.prefix not in seen
    seen.add(asgi_ipc_layer.prefix)
    assert asgi_ipc_layer.sync.receive("c", 0) is None
    assert asgi_ipc_layer.sync.group_count("g") == 0
    asgi_ipc_layer.sync.send("c", {"n": number})
    asgi_ipc_layer.sync.group_add("g", "c")

def test_receives_in_loops(asgi_ipc_layer):
    async def main():
        name = await asgi_ipc_layer.new_channel()
        receive = asyncio.create_task(asgi_ipc_layer.receive(name))
        await asyncio.sleep(0)
        await asgi_ipc_layer.send(name, {"n": 1})
        assert await receive == {"n": 1}
        asyncio.create_task(asgi_ipc_layer.receive(name))
        await asyncio.sleep(0)
    asyncio.run(main())

def test_closed_by_the_test(asgi_ipc_layer):
    asgi_ipc_layer.close_now()

def test_unlinked_by_the_test(asgi_ipc_layer):
    asgi_ipc_layer.unlink()

def test_that_fails(asgi_ipc_layer):
    asgi_ipc_layer.sync.send("c", {})
    assert False, "on purpose"
"""


def test_each_test_has_a_layer_of_its_own_that_goes(project: pytest.Pytester) -> None:
    """Also when the test fails, closes or removes it."""
    project.makepyfile(TESTS)
    result = project.runpytest_subprocess("-s")
    result.assert_outcomes(passed=6, failed=1)
    (pid,) = {line.split()[-1] for line in result.outlines if "PID " in line}
    assert _left_by(pid) == []


def test_it_is_the_channels_backend_where_channels_is_installed(
    project: pytest.Pytester,
) -> None:
    """Usable with Channels' own helpers."""
    project.makepyfile(
        """
        from channels.layers import BaseChannelLayer
        from asgi_ipc.channels import IPCChannelLayer

        def test_kind(asgi_ipc_layer):
            assert isinstance(asgi_ipc_layer, IPCChannelLayer)
            assert isinstance(asgi_ipc_layer, BaseChannelLayer)
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_it_is_the_core_where_channels_is_missing(project: pytest.Pytester) -> None:
    """And neither Django nor Channels is imported."""
    project.makeconftest(
        """
        import importlib.abc, sys

        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("channels", "django"):
                    raise ModuleNotFoundError(name)

        find_spec = __import__("importlib.util").util.find_spec
        def without_channels(name, package=None):
            return None if name == "channels" else find_spec(name, package)
        __import__("importlib.util").util.find_spec = without_channels
        sys.meta_path.insert(0, Missing())
        """
    )
    project.makepyfile(
        """
        import sys
        from asgi_ipc import AsyncIPCChannelLayer

        def test_kind(asgi_ipc_layer):
            assert type(asgi_ipc_layer) is AsyncIPCChannelLayer
            asgi_ipc_layer.sync.send("c", {"n": 1})
            assert asgi_ipc_layer.sync.receive("c", 0) == {"n": 1}
            assert not {"channels", "django"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_session_that_does_not_ask_for_it_loads_nothing(project: pytest.Pytester) -> None:
    """Channels and Django stay out of sessions that have nothing to do with them."""
    project.makepyfile(
        """
        import sys

        def test_nothing():
            assert not {"channels", "django", "asgiref"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_pytest_finds_it_by_itself(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the installed package's entry point."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    pytester.makepyfile("def test_it(asgi_ipc_layer):\n    assert asgi_ipc_layer.prefix")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
