"""The shared-memory filesystem: too small, full, and not what it should be."""

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

pytestmark = needs_mount

SHOW_CURE_SHOW = """
show()
os.system(sys.stdin.readline())
show()
"""


def found_on(start: Start, *mounts: str, code: str = "show()") -> list[Finding]:
    child = start(EXAMINE + code, wrapper=ground(*mounts))
    findings = heard(child)
    child.end()
    return findings


def test_dockers_default_is_recognised(start: Start) -> None:
    """64 MiB for 120 MiB: a warning that knows where they come from and what to say instead."""
    findings = found_on(
        start, shm("size=64m"), code="show(message_memory=100 << 20, group_memory=20 << 20)"
    )
    finding = of(findings, "shm-docker")
    assert finding.severity == "warning"
    assert finding.numbers["size_bytes"] == 64 << 20
    assert finding.numbers["configured_bytes"] == 120 << 20
    assert "--shm-size=151m" in finding.remedy  # a quarter more than the segments
    assert "sizeLimit: 151Mi" in finding.remedy


def test_dockers_default_is_enough_for_a_small_site(start: Start) -> None:
    """64 MiB for 12 MiB: green."""
    assert of(found_on(start, shm("size=64m")), "shm-space").severity == "ok"


def test_a_filesystem_smaller_than_the_segments_may_grow_is_a_warning(start: Start) -> None:
    """With the numbers on both sides, and a command that makes it large enough."""
    child = start(
        EXAMINE + SHOW_CURE_SHOW,
        wrapper=ground(shm("size=3m")),
    )
    finding = of(heard(child), "shm-space")
    assert finding.severity == "warning"
    assert finding.numbers["wanted_bytes"] == 12 << 20
    assert "3.0 MiB" in finding.detail
    assert "12.0 MiB" in finding.detail
    child.tell(commands(finding)[-1])
    assert of(heard(child), "shm-space").severity == "ok"
    child.end()


def test_what_the_segments_have_already_is_not_asked_for_twice(start: Start) -> None:
    """A segment that has grown needs only the rest."""
    findings = found_on(
        start,
        shm("size=20m"),
        code="""
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
for number in range(60):
    asyncio.run(layer.send(f"c{number}", {"body": b"x" * 100_000}))
show()
""",
    )
    numbers = of(findings, "shm-space").numbers
    assert isinstance(numbers["wanted_bytes"], int)
    assert numbers["wanted_bytes"] < (6 << 20) + 200_000  # 6 MB of the 12 MiB are there


def test_a_full_filesystem_is_an_error(start: Start) -> None:
    """No segment can be created, and none can grow."""
    findings = found_on(
        start,
        shm("size=2m"),
        code="""
with open("/dev/shm/fill", "wb") as file:
    try:
        while True:
            file.write(bytes(4096))
            file.flush()
    except OSError:
        pass
    show()
    os.ftruncate(file.fileno(), 0)
""",
    )
    finding = of(findings, "shm-full")
    assert finding.severity == "error"
    assert finding.numbers["free_bytes"] == 0
    assert "ChannelFull" in finding.detail


def test_a_filesystem_without_a_free_inode_is_an_error(start: Start) -> None:
    """Room for bytes and none for another file."""
    findings = found_on(
        start,
        shm("size=64m,nr_inodes=3"),
        code="""
for number in range(2):
    open(f"/dev/shm/fill-{number}", "wb").close()
show()
""",
    )
    assert of(findings, "shm-inodes").severity == "error"


def test_a_read_only_filesystem_is_an_error(start: Start) -> None:
    """As in a container that was started with --read-only."""
    finding = of(found_on(start, shm("ro,size=64m")), "shm-readonly")
    assert finding.severity == "error"
    assert commands(finding)[0] == "mount -o remount,rw /dev/shm"


def test_a_filesystem_without_the_sticky_bit_is_a_warning(start: Start) -> None:
    """Anybody may delete anybody's segments; the remedy is the right mode."""
    child = start(
        EXAMINE + SHOW_CURE_SHOW,
        wrapper=ground(shm("size=64m,mode=0777")),
    )
    finding = of(heard(child), "shm-unsticky")
    assert finding.severity == "warning"
    child.tell(commands(finding)[0])
    assert of(heard(child), "shm-filesystem").severity == "ok"
    child.end()


def test_a_pods_empty_dir_needs_no_sticky_bit(start: Start) -> None:
    """Kubernetes mounts it with mode 0777, and nobody else is in the pod."""
    findings = found_on(
        start,
        shm("size=64m,mode=0777"),
        code="""
os.environ["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
show()
""",
    )
    assert of(findings, "shm-filesystem").severity == "ok"


def test_a_disk_in_its_place_is_a_warning(start: Start, tmp_path: Path) -> None:
    """Works, and writes messages to a disk."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    kinds = {line.split()[1]: line.split()[2] for line in mounts}
    place = max((one for one in kinds if tmp_path.is_relative_to(one)), key=len)
    if kinds[place] == "tmpfs":
        pytest.skip("temporary files are in memory here, too")
    finding = of(found_on(start, f"mount --bind {tmp_path} /dev/shm"), "shm-disk")
    assert finding.severity == "warning"
    assert finding.numbers["kind"] == kinds[place]


def test_none_at_all_is_an_error(start: Start) -> None:
    """A chroot without /dev/shm: said alone, since nothing else can be looked at."""
    findings = found_on(start, "mount -t tmpfs tmpfs /dev")
    assert [one.code for one in findings] == ["shm-missing"]
    assert commands(findings[0])[0] == "mkdir -p /dev/shm"


def test_less_memory_than_the_segments_may_take_is_a_warning(start: Start, tmp_path: Path) -> None:
    """A tmpfs may be larger than what is behind it."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 10240 kB\nMemAvailable:  4096 kB\n")
    findings = found_on(start, shm("size=64m"), f"mount --bind {meminfo} /proc/meminfo")
    finding = of(findings, "memory-available")
    assert finding.severity == "warning"
    assert finding.numbers["available_bytes"] == 4 << 20
    assert finding.numbers["wanted_bytes"] == 12 << 20


def test_the_memory_limit_of_a_control_group_counts(start: Start, tmp_path: Path) -> None:
    """What systemd's MemoryMax= or docker's --memory leaves is what there is."""
    group = tmp_path / "group" / "site"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("10485760\n")
    (group / "memory.current").write_text("9437184\n")
    (tmp_path / "cgroup").write_text("0::/site\n")
    findings = found_on(
        start,
        shm("size=64m"),
        f"mount --bind {tmp_path}/group /sys/fs/cgroup",
        f"mount --bind {tmp_path}/cgroup /proc/$$/cgroup",
    )
    finding = of(findings, "memory-available")
    assert finding.severity == "warning"
    assert finding.numbers["available_bytes"] == 1 << 20
    assert "/site" in finding.detail
