"""Removing a site: only what is its own goes, whatever a neighbour put in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._wake.removing import remove_site
from asgi_ipc.exceptions import SegmentError

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")

AS_NOBODY = """
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
DOOR = "0123456789ab"


def left(prefix: str) -> list[str]:
    return sorted(name for name in os.listdir("/dev/shm") if prefix in name)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory with files, some of which are named as ours are."""
    for name in ("important", DOOR, "alive"):
        (tmp_path / name).write_text("somebody's")
    yield tmp_path
    assert sorted(os.listdir(tmp_path)) == sorted(["important", DOOR, "alive"])


@as_root
def test_a_symlink_of_another_user_is_not_followed(
    prefix: str, make_layer: MakeLayer, start: Start, victim: Path
) -> None:
    """Root removes a site whose directory of doors a stranger made a symlink of."""
    layer = make_layer()
    stranger = start(AS_NOBODY + f"os.symlink({str(victim)!r}, f'/dev/shm/{{PREFIX}}-bells')")
    stranger.end()
    with pytest.raises(SegmentError, match="is no directory"):
        layer.unlink()
    assert f"{prefix}-messages" in left(prefix)  # nothing was removed
    os.unlink(f"/dev/shm/{prefix}-bells")
    layer.unlink()
    assert left(prefix) == []


def test_an_own_symlink_is_not_followed_either(
    prefix: str, make_layer: MakeLayer, victim: Path
) -> None:
    """Who made it does not matter."""
    os.symlink(victim, f"/dev/shm/{prefix}-bells")
    with pytest.raises(SegmentError, match="is no directory"):
        make_layer().unlink()
    os.unlink(f"/dev/shm/{prefix}-bells")


def test_a_symlink_in_a_segments_place_goes_alone(prefix: str, tmp_path: Path) -> None:
    """The file behind it stays."""
    (tmp_path / "file").write_text("somebody's")
    os.symlink(tmp_path / "file", f"/dev/shm/{prefix}-messages")
    assert remove_site(prefix).paths == [f"/dev/shm/{prefix}-messages"]
    assert (tmp_path / "file").read_text() == "somebody's"


def test_files_that_are_not_ours_stay_among_the_doors(prefix: str) -> None:
    """Doors and the witness go by their names; whatever else is there is told."""
    directory = Path(f"/dev/shm/{prefix}-bells")
    directory.mkdir(0o700)
    for name in (DOOR, "ABCDEF012345", "notes.txt", "alive", "0123456789abc"):
        (directory / name).touch()
    (directory / "bbbbbbbbbbbb").mkdir()
    removed = remove_site(prefix)
    stay = ["0123456789abc", "ABCDEF012345", "bbbbbbbbbbbb", "notes.txt"]
    assert sorted(removed.strangers) == [f"{directory}/{name}" for name in stay]
    assert removed.paths == []
    assert sorted(os.listdir(directory)) == stay
    (directory / "bbbbbbbbbbbb").rmdir()


@as_root
def test_a_directory_of_another_user_is_refused(prefix: str, start: Start) -> None:
    """An ordinary user removes nothing in it, and is told whose it is; root does."""
    directory = Path(f"/dev/shm/{prefix}-bells")
    directory.mkdir()
    directory.chmod(0o777)
    (directory / DOOR).touch()
    code = """
layer = IPCChannelLayer(PREFIX, **SIZES)
try:
    layer.unlink()
except Exception as exc:
    say(type(exc).__name__, exc)
"""
    child = start("import asgi_ipc" + AS_NOBODY + code)
    os.chown(directory, 12345, 12345)
    assert "belongs to user 12345" in child.expect("SegmentPermission")
    child.end()
    assert os.listdir(directory) == [DOOR]
    remove_site(prefix)
    assert left(prefix) == []


@as_root
def test_members_of_a_group_remove_the_site_they_share(prefix: str, start: Start) -> None:
    """A directory of a group of ours that is not open to the world is the site's."""
    directory = Path(f"/dev/shm/{prefix}-bells")
    directory.mkdir()
    os.chown(directory, 12345, 54321)
    directory.chmod(0o770)
    (directory / DOOR).touch()
    child = start(
        """
from asgi_ipc._wake.removing import remove_site
from asgi_ipc.exceptions import SegmentError
os.setgroups([54321]); os.setgid(65534); os.setuid(65534)
try:
    remove_site(PREFIX)
except Exception as exc:  # /dev/shm is sticky: the directory itself is its maker's to remove
    say(exc)
"""
    )
    child.expect(f"/dev/shm/{prefix}-bells belongs to user 12345")
    child.end()
    assert os.listdir(directory) == []


def test_a_directory_in_a_segments_place_is_told(prefix: str, make_layer: MakeLayer) -> None:
    """Nothing is removed, since it is not known what it is."""
    make_layer().close_now()
    os.rename(f"/dev/shm/{prefix}-groups", f"/dev/shm/{prefix}-kept")
    os.mkdir(f"/dev/shm/{prefix}-groups")
    with pytest.raises(SegmentError, match="a directory stands in the place"):
        remove_site(prefix)
    assert len(left(prefix)) == 3
    os.rmdir(f"/dev/shm/{prefix}-groups")


def test_what_the_original_kept_goes_as_well(prefix: str) -> None:
    """Its semaphores stand beside the segments."""
    for name in (f"{prefix}-messages", f"sem.{prefix}-messages", f"sem.{prefix}-groups"):
        Path("/dev/shm", name).touch()
    assert len(remove_site(prefix).paths) == 3
    assert left(prefix) == []


def test_no_descriptor_left_is_told(prefix: str, start: Start) -> None:
    """It is a SegmentError with the remedy; nothing was removed, and it can be tried again."""
    child = start(
        """
import resource
from asgi_ipc.exceptions import SegmentError
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
layer.sync.receive("c", timeout=0.001)
layer.close_now()
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
try:
    layer.unlink()
except SegmentError as exc:
    said = str(exc)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
layer.unlink()
say(said)
"""
    )
    assert f"{prefix}-bells cannot be used" in (said := child.line())
    assert "ulimit -n" in said
    child.end()
