"""systemd-logind, the kernel's settings, the versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc._operator.doctor import Finding

from .grounds import EXAMINE, commands, ground, heard, needs_mount, of, shm

if TYPE_CHECKING:
    from ..conftest import Child

Start = Callable[..., "Child"]

PERSON = 54321

BOOTED = (shm("size=64m"), "mount -t tmpfs tmpfs /run", "mkdir -p /run/systemd/system")


def say_no(place: str, name: str, value: str = "no") -> str:
    text = f"[Login]\\nRemoveIPC={value}\\n"
    return f"mkdir -p {place} && printf '{text}' > {place}/{name}"


def found(start: Start, *mounts: str, user: int = PERSON) -> Finding:
    child = start(EXAMINE + f"show(user={user})", wrapper=ground(*mounts))
    findings = heard(child)
    child.end()
    return of(findings, "remove-ipc")


@needs_mount
@pytest.mark.parametrize(
    ("commands_", "user", "severity"),
    [
        ((), PERSON, "warning"),
        ((), 999, "ok"),
        ((), 0, "ok"),
        ((say_no("/run/systemd/logind.conf.d", "x.conf"),), PERSON, "ok"),
        ((say_no("/run/systemd/logind.conf.d", "x.conf", "FALSE"),), PERSON, "ok"),
        ((say_no("/run/systemd/logind.conf.d", "x.conf", "maybe"),), PERSON, "warning"),
        (
            (
                say_no("/run/systemd/logind.conf.d", "10-no.conf"),
                say_no("/run/systemd/logind.conf.d", "20-yes.conf", "yes"),
            ),
            PERSON,
            "warning",
        ),
        (
            (
                say_no("/run/systemd/logind.conf.d", "20-no.conf"),
                say_no("/run/systemd/logind.conf.d", "10-yes.conf", "yes"),
            ),
            PERSON,
            "ok",
        ),
        (
            (
                "mount -t tmpfs tmpfs /etc/systemd",
                say_no("/etc/systemd", "logind.conf"),
            ),
            PERSON,
            "ok",
        ),
        (
            (
                "mount -t tmpfs tmpfs /etc/systemd",
                say_no("/etc/systemd/logind.conf.d", "x.conf", "yes"),
                say_no("/run/systemd/logind.conf.d", "x.conf"),
            ),
            PERSON,
            "warning",
        ),
        (
            (
                "mkdir -p /var/lib/systemd",
                "mount -t tmpfs tmpfs /var/lib/systemd",
                "mkdir /var/lib/systemd/linger",
                f"touch /var/lib/systemd/linger/{PERSON}",
            ),
            PERSON,
            "ok",
        ),
    ],
    ids=[
        "default",
        "system user",
        "root",
        "said no",
        "said false",
        "said nothing clear",
        "the last yes holds",
        "the last no holds",
        "in logind.conf",
        "/etc before /run",
        "lingers",
    ],
)
def test_remove_ipc(start: Start, commands_: tuple[str, ...], user: int, severity: str) -> None:
    """Found as systemd-logind reads it, and only held against users who are people."""
    finding = found(start, *BOOTED, *commands_, user=user)
    assert finding.severity == severity
    if severity == "warning":
        assert "RemoveIPC=yes" in finding.detail


@needs_mount
def test_the_remedy_for_remove_ipc_is_one(start: Start) -> None:
    """What it says to write is read as a no."""
    mounts = (*BOOTED, "mount -t tmpfs tmpfs /etc/systemd")
    remedy = commands(found(start, *mounts))
    assert found(start, *mounts, *remedy[1:3]).severity == "ok"
    assert remedy[3] == "systemctl restart systemd-logind"


@needs_mount
def test_without_systemd_nobody_deletes(start: Start) -> None:
    """In a container, say."""
    finding = found(start, shm("size=64m"), "mount -t tmpfs tmpfs /run")
    assert finding.severity == "ok"


@needs_mount
@pytest.mark.parametrize("value", [0, 2])
def test_protected_regular_does_no_harm(start: Start, tmp_path: Path, value: int) -> None:
    """Whatever it is: said, and green."""
    (tmp_path / "value").write_text(f"{value}\n")
    child = start(
        EXAMINE + "show()",
        wrapper=ground(
            shm("size=64m"), f"mount --bind {tmp_path}/value /proc/sys/fs/protected_regular"
        ),
    )
    finding = of(heard(child), "protected-regular")
    child.end()
    assert finding.severity == "ok"
    assert finding.numbers["value"] == value


def test_versions_that_do_not_fit_are_an_error(start: Start, tmp_path: Path) -> None:
    """What was installed with an old version of something: named, with what is needed."""
    info = tmp_path / "msgpack-0.6.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: msgpack\nVersion: 0.6.2\n")
    child = start(EXAMINE + f"sys.path.insert(0, {str(tmp_path)!r})\nshow()")
    finding = of(heard(child), "versions")
    child.end()
    assert finding.severity == "error"
    assert "msgpack 0.6.2, and 1.0.5 is needed" in finding.detail
