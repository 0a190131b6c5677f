"""What the system around does: systemd-logind, the kernel's settings, the versions."""

from __future__ import annotations

import os
import platform
import pwd
import re
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from importlib import metadata
from pathlib import Path

from ... import __version__
from ..._shm import layout as L
from .case import Case
from .finding import Finding, Number, error, ok, warning

__all__ = ["check_system", "removes_ipc"]

_BOOTED = Path("/run/systemd/system")  # there if systemd is what runs the machine
_PLACES = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd")
_LINGER = Path("/var/lib/systemd/linger")
_LAST_SYSTEM_UID = 999  # systemd's own line between system users and people
_YES = {"1", "yes", "y", "true", "t", "on"}
_NO = {"0", "no", "n", "false", "f", "off"}
_NEEDED = {"posix_ipc": (1, 1), "msgpack": (1, 0, 5)}
_LEAST_PYTHON = (3, 11)


def check_system(case: Case) -> Iterator[Finding]:
    """Look at what is the same for every site on the machine."""
    yield _remove_ipc(case)
    yield _protected_regular()
    yield _versions()


# -- systemd-logind ----------------------------------------------------------------------


def removes_ipc() -> tuple[bool, str]:
    """Return logind's ``RemoveIPC=`` as it is configured, and the file that says so."""
    value, said_by = True, "its default"
    for path in _logind_files():
        parser = RawConfigParser(strict=False, interpolation=None, allow_no_value=True)
        parser.optionxform = str  # type: ignore[method-assign,assignment]
        try:
            parser.read_string(path.read_text(errors="replace"))
        except (OSError, ValueError, KeyError):
            continue  # unreadable, or not what systemd would take
        except Exception as exc:
            if type(exc).__module__ != "configparser":
                raise
            continue  # lines before the first section and the like: systemd skips them too
        word = (parser.get("Login", "RemoveIPC", fallback="") or "").strip().lower()
        if word in _YES | _NO:
            value, said_by = word in _YES, str(path)
    return value, said_by


def _logind_files() -> list[Path]:
    """Return logind's configuration in the order it is read: the last one that speaks holds."""
    main = [Path(place, "logind.conf") for place in _PLACES]
    files = [path for path in main if path.exists()][:1]
    drop_ins: dict[str, Path] = {}
    for place in reversed(_PLACES):  # of one name, the first place's masks the others'
        for path in Path(place, "logind.conf.d").glob("*.conf"):
            drop_ins[path.name] = path
    return files + [drop_ins[name] for name in sorted(drop_ins)]


def _remove_ipc(case: Case) -> Finding:
    if not _BOOTED.is_dir():
        return ok("remove-ipc", "no systemd-logind here that would delete segments")
    value, said_by = removes_ipc()
    name = _name_of(case.user)
    says = f"RemoveIPC={'yes' if value else 'no'} by {said_by}"
    numbers: dict[str, Number] = {"remove_ipc": value, "said_by": said_by, "user": case.user}
    if not value:
        return ok("remove-ipc", "systemd-logind deletes nobody's segments", says, **numbers)
    if case.user <= _LAST_SYSTEM_UID:
        return ok(
            "remove-ipc",
            f"{name} is a system user, whose segments systemd-logind leaves alone",
            f"{says}, for users above {_LAST_SYSTEM_UID}",
            **numbers,
        )
    if (_LINGER / name).exists():
        return ok(
            "remove-ipc",
            f"{name} lingers, so systemd-logind leaves its segments alone",
            f"{says}, when a user's last session ends; {_LINGER / name} keeps it",
            **numbers,
        )
    return warning(
        "remove-ipc",
        f"systemd-logind deletes the segments when {name} logs out",
        f"{says}: when the last session of user {case.user} ends, all that is theirs in /dev/shm "
        "goes, underneath the processes that run",
        "run the site as a system user (useradd --system), or let this one linger, or say no:\n"
        f"$ loginctl enable-linger {name}\n"
        "$ mkdir -p /etc/systemd/logind.conf.d\n"
        "$ printf '[Login]\\nRemoveIPC=no\\n' > /etc/systemd/logind.conf.d/asgi_ipc.conf\n"
        "$ systemctl restart systemd-logind",
        **numbers,
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # of a container, say: no name for it here


# -- the kernel --------------------------------------------------------------------------


def _protected_regular() -> Finding:
    try:
        value = int(Path("/proc/sys/fs/protected_regular").read_text())
    except (OSError, ValueError):
        return ok("protected-regular", "fs.protected_regular is not known here")
    effect = (
        "the kernel refuses to create over another user's file in a sticky directory, even to "
        "root; segments are opened without creating first, so that it never applies to them"
        if value
        else "the kernel lets files be created over; who owns a segment is checked on attaching"
    )
    return ok("protected-regular", f"fs.protected_regular is {value}", effect, value=value)


# -- versions ----------------------------------------------------------------------------


def _versions() -> Finding:
    found: dict[str, Number] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "asgi_ipc": __version__,
        "layout": str(L.LAYOUT_VERSION),
    }
    wrong = []
    if sys.version_info < _LEAST_PYTHON:
        wrong.append(f"Python {found['python']}, and 3.11 is needed")
    for name, least in _NEEDED.items():
        try:
            version = found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "no"
            if name == "posix_ipc":
                continue  # it is done without where there is none
            wrong.append(f"{name} is not installed as a package")
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        if numbers < least:
            wrong.append(f"{name} {version}, and {'.'.join(map(str, least))} is needed")
    if not hasattr(os, "eventfd"):
        found["eventfd"] = "no"
    listed = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if wrong:
        return error(
            "versions",
            "what is installed does not fit",
            f"{'; '.join(wrong)} ({listed})",
            "$ python -m pip install --upgrade asgi_ipc",
            **found,
        )
    return ok("versions", "the versions fit", listed, **found)
