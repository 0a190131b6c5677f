"""The ground it stands on: the shared-memory filesystem and the memory behind it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..._shm import layout as L
from .case import Case
from .finding import Finding, Number, error, mib, ok, warning

__all__ = ["check_filesystem"]

_PLACE = "/dev/shm"  # noqa: S108
_CONTAINER_BYTES = 64 << 20  # what Docker and Kubernetes give when nothing is said
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")  # near the end a segment takes what there is
_CONTAINER_REMEDY = """\
give the container more; what is not used costs nothing:
$ docker run --shm-size={size}m ...
in Compose: shm_size: {size}m
in Kubernetes: an emptyDir with medium: Memory and sizeLimit: {size}Mi, mounted at /dev/shm"""


def check_filesystem(case: Case) -> Iterator[Finding]:
    """Look at the filesystem, at its free space, and at the memory behind it."""
    if case.shm != _PLACE:
        yield error(
            "shm-missing",
            f"there is no {_PLACE}",
            "POSIX shared memory lives there: no segment can be created",
            f"mount it:\n$ mkdir -p {_PLACE}\n"
            f"$ mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs {_PLACE}",
        )
        return
    info, space = os.stat(case.shm), os.statvfs(case.shm)
    kind = _kind_of(info.st_dev)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    problems = list(_unfit(case.shm, info, space, kind))
    yield from problems
    if not problems:
        yield ok(
            "shm-filesystem",
            f"{case.shm} is fit for use",
            f"{kind or 'filesystem'} of {mib(size)}, mode {stat.S_IMODE(info.st_mode):#o}",
            size_bytes=size,
            free_bytes=free,
            kind=kind,
        )
    wanted = sum(_unbacked_bytes(case))
    yield _space(case, size, free, wanted)
    if kind in ("tmpfs", "ramfs"):
        yield from _memory(wanted)


def _kind_of(device: int) -> str:
    """Return the type of the filesystem with this number; "" if it cannot be told."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", errors="replace") as mounts:
            for line in mounts:
                # "36 35 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=65536k"
                before, _, after = line.partition(" - ")
                if before.split()[2] == number:
                    return after.split()[0]
    except (OSError, IndexError):
        pass  # no /proc here
    return ""


def _unfit(
    path: str, info: os.stat_result, space: os.statvfs_result, kind: str
) -> Iterator[Finding]:
    if kind and kind not in ("tmpfs", "ramfs"):
        yield warning(
            "shm-disk",
            f"{path} is on a disk",
            f"its filesystem is {kind}: everything works, and every message may be written back",
            f"mount a tmpfs there:\n$ mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs {path}",
            kind=kind,
        )
    if space.f_flag & os.ST_RDONLY:
        yield error(
            "shm-readonly",
            f"{path} is mounted read-only",
            "no segment can be created or grow",
            f"remount it, or in a container leave it out of --read-only:\n"
            f"$ mount -o remount,rw {path}\n$ docker run --tmpfs {path}:rw,mode=1777 ...",
        )
    mode = stat.S_IMODE(info.st_mode)
    # A pod's emptyDir is like that, and nobody else is in the pod.
    if mode & 0o002 and not mode & stat.S_ISVTX and "KUBERNETES_SERVICE_HOST" not in os.environ:
        yield warning(
            "shm-unsticky",
            f"anybody may delete anybody's segments in {path}",
            f"its mode is {mode:#o}, without the sticky bit",
            f"$ chmod 1777 {path}",
            mode=mode,
        )
    if space.f_files and not space.f_favail:
        yield error(
            "shm-inodes",
            f"{path} has no room for another file",
            f"all of its {space.f_files} inodes are in use: each segment and each waiting event "
            "loop needs one",
            f"remove what is not needed, or\n$ mount -o remount,nr_inodes=0 {path}",
            inodes=space.f_files,
        )


def _unbacked_bytes(case: Case) -> list[int]:
    """Return what each segment may still take from the filesystem."""
    return [max(0, raw.full_bytes - raw.backed_bytes) for raw in case.segments]


def _space(case: Case, size: int, free: int, wanted: int) -> Finding:
    configured = sum(raw.full_bytes for raw in case.segments)
    detail = (
        f"{mib(free)} of {mib(size)} are free; the two segments may grow to {mib(configured)} "
        f"and have {mib(configured - wanted)} of that already"
    )
    numbers: dict[str, Number] = {
        "size_bytes": size,
        "free_bytes": free,
        "configured_bytes": configured,
        "wanted_bytes": wanted,
    }
    if size == _CONTAINER_BYTES and free < wanted:
        megabytes = (configured * 5 // 4 >> 20) + 1
        return warning(
            "shm-docker",
            f"{case.shm} has the 64 MiB that containers get by default",
            f"{detail}: when it is full, a send raises ChannelFull",
            _CONTAINER_REMEDY.format(size=megabytes),
            **numbers,
        )
    needed_now = [
        min(_PAGE_BYTES, wanted)
        if raw.info
        else 8 * (L.heap_start(raw.full_bytes) + L.GRANULE_WORDS)
        for raw in case.segments
    ]
    remedy = (
        "see what takes the space, or enlarge it (of a container: --shm-size), or lower "
        "message_memory and group_memory:\n"
        f"$ du -sh {case.shm}/*\n"
        f"$ mount -o remount,size={(size - free + wanted >> 20) + 1}m {case.shm}"
    )
    if free < sum(needed_now) and wanted:
        return error(
            "shm-full",
            f"{case.shm} is full",
            f"{detail}: a segment cannot be created, and a send that needs new memory raises "
            "ChannelFull",
            remedy,
            **numbers,
        )
    if free < wanted:
        return warning(
            "shm-space",
            f"{case.shm} cannot hold all that the segments may take",
            f"{detail}: when it is full, a send raises ChannelFull",
            remedy,
            **numbers,
        )
    return ok("shm-space", f"{case.shm} has room for both segments", detail, **numbers)


def _memory(wanted: int) -> Iterator[Finding]:
    """Compare with the memory there is: a tmpfs may be larger than that."""
    limits = dict(_available())
    if not limits:
        return
    where, least = min(limits.items(), key=lambda item: item[1])
    detail = f"{mib(least)} are available {where}, and the segments may still take {mib(wanted)}"
    numbers: dict[str, Number] = {"available_bytes": least, "wanted_bytes": wanted}
    if least >= wanted:
        yield ok("memory-available", "the memory behind it is there", detail, **numbers)
        return
    yield warning(
        "memory-available",
        "there is less memory than the segments may take",
        f"{detail}: the kernel would swap, or kill a process for it",
        "lower message_memory and group_memory, or give the machine or its control group more "
        "(systemd: MemoryMax=; docker: --memory)",
        **numbers,
    )


def _available() -> Iterator[tuple[str, int]]:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    yield "on this machine", int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # no /proc here
    for directory, limit_file, usage_file in _control_groups():
        try:
            limit = (directory / limit_file).read_text().strip()
            usage = (directory / usage_file).read_text().strip()
            if limit != "max" and int(limit) < 1 << 60:
                yield f"in the control group {directory}", max(0, int(limit) - int(usage))
        except (OSError, ValueError):
            pass  # the root has no limits; a container does not see those above it


def _control_groups() -> Iterator[tuple[Path, str, str]]:
    """Return where this process's memory limits stand, for both versions of control groups."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no /proc here
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            here = root / path.lstrip("/")
            names = ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            here = root / "memory" / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        for directory in (here, *here.parents):
            if not directory.is_relative_to(root):
                break
            yield directory, *names
