"""Folders for cached files: this user's alone, or refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from collectives.caches import cache_folder, private_folder, temporary_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_made_when_it_is_asked_for_and_for_this_user_alone(home: Path) -> None:
    before = os.umask(0o002)
    try:
        assert not cache_folder("links").exists()
        assert not (home / "narrowgauge").exists()
        folder = cache_folder("links", make=True)
    finally:
        os.umask(before)
    assert folder == home / "narrowgauge" / "links"
    assert mode(folder) == mode(folder.parent) == 0o700


def test_a_folder_that_others_may_write_is_refused(home: Path) -> None:
    folder = cache_folder("links", make=True)
    for each, bits in ((folder, 0o770), (folder, 0o707), (folder.parent, 0o777)):
        each.chmod(bits)
        for make in (False, True):
            with pytest.raises(
                PermissionError, match=rf"{each} may be written by other users \(its mode is {bits:o}\)"
            ):
                cache_folder("links", make)
        each.chmod(0o755)
    assert cache_folder("links") == folder
    assert mode(folder) == mode(folder.parent) == 0o700


def test_a_folder_of_another_user_is_refused(home: Path) -> None:
    folder = cache_folder("links", make=True)
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder away")
    os.chown(folder, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to user 65534, and this process is user 0's"):
        cache_folder("links")
    (home / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        private_folder(home / "link")


def test_processes_of_a_user_share_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = temporary_folder()
    assert folder == temporary_folder() == tmp_path / f"narrowgauge-{os.geteuid()}"
    assert mode(folder) == 0o700


def test_a_temporary_folder_that_somebody_else_has_made_first_is_not_used(tmp_path: Path) -> None:
    """By a link, or by a folder that they may write; in its place comes one that goes with its process."""
    script = (
        "import os\nfrom collectives.caches import temporary_folder\nmade = temporary_folder()\nprint(made)\n"
        "child = os.fork()\nif child == 0: raise SystemExit\nos.waitpid(child, 0)\nassert made.is_dir()"
    )
    (tmp_path / "theirs").mkdir()
    taken = tmp_path / f"narrowgauge-{os.geteuid()}"
    for take in (lambda: taken.symlink_to(tmp_path / "theirs"), lambda: (taken.mkdir(), taken.chmod(0o777))):
        take()
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        made = Path(done.stdout.strip())
        assert made.parent == tmp_path
        assert made != taken
        assert not made.exists()
        taken.rmdir() if not taken.is_symlink() else taken.unlink()
