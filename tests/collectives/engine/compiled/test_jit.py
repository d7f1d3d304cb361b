"""Where compiled code is kept: the same sources compile once, wherever they lie."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import collectives
from collectives.caches import private_folder
from collectives.engine import selftest
from collectives.engine.compiled import jit
from tests.paths import REPOSITORY

WARM_UP = "from collectives.engine.selftest import warm_up; import collectives; warm_up(); print(collectives.__file__)"


@pytest.mark.slow
def test_a_copy_of_the_sources_compiles_nothing(tmp_path: Path) -> None:
    """What this checkout compiled serves a copy elsewhere; in a cache of its own, where no other process compiles."""
    environment = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
    compiled = Path("narrowgauge/compiled") / jit.source_stamp()[:16]
    warm_up(REPOSITORY, environment)
    shutil.copytree(Path(environment["XDG_CACHE_HOME"]) / compiled, tmp_path / "cache" / compiled)
    before = stamps(tmp_path / "cache" / compiled)
    assert any(name.startswith("loop.advance") for name in before)

    sources = shutil.ignore_patterns("*.pyc", "*.nb*")
    shutil.copytree(Path(collectives.__file__).parent, tmp_path / "copy" / "collectives", ignore=sources)
    warm_up(tmp_path / "copy", {**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert stamps(tmp_path / "cache" / compiled) == before
    assert not list(tmp_path.glob("copy/**/*.nb*"))


def warm_up(folder: Path, environment: dict[str, str]) -> None:
    """In a new process, with the sources in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", WARM_UP], cwd=folder, check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith(str(folder))


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def copied(folder: Path) -> Path:
    """What this checkout compiled, copied to `folder`, without the mark that it is complete."""
    stamp = jit.source_stamp()[:16]
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    warm_up(REPOSITORY, environment)
    private_folder(folder)
    shutil.copytree(Path(environment["XDG_CACHE_HOME"]) / "narrowgauge/compiled" / stamp, folder / stamp)
    for name in (selftest.COMPLETE, selftest.LOCK):
        (folder / stamp / name).unlink(missing_ok=True)
    return folder / stamp


def started(script: str, **environment: str) -> subprocess.Popen[str]:
    """A process that runs `script`, which sees `selftest`, with these variables and without the user's own cache."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", f"from collectives.engine import selftest\n{script}"], cwd=REPOSITORY, text=True,
        env={**kept, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """The engine runs all the same, from a private folder among the temporary files, and says so once."""
    (tmp_path / "file").write_text("")
    folder = copied(tmp_path / f"narrowgauge-{os.geteuid()}")
    before = stamps(folder)
    process = started("selftest.warm_up()", XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert said.count("compiled code is kept in") == 1, said
    assert "Not a directory" in said
    assert stamps(folder).items() >= before.items()
    assert (folder / selftest.COMPLETE).exists()


@pytest.mark.slow
def test_a_held_lock_delays_nobody_for_long(tmp_path: Path) -> None:
    """Whoever holds it is stopped, or has been waiting for something else since yesterday."""
    folder = copied(tmp_path / "narrowgauge")
    with open(folder / selftest.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = started("selftest.PATIENCE_S = 0.5; selftest.warm_up()", NUMBA_CACHE_DIR=str(tmp_path))
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert "compiling without it" in said


def test_locks_are_in_the_users_own_folder_and_of_no_use_once_all_is_compiled(tmp_path: Path) -> None:
    """Somebody else has taken, in the folder for temporary files, the name that locks had once."""
    folder = copied(tmp_path / "narrowgauge")
    (tmp_path / f"narrowgauge-{os.getuid()}-{jit.source_stamp()[:16]}.lock").mkdir()
    with open(folder / selftest.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = started(
            "selftest.PATIENCE_S = 10_000; selftest.warm_up()", NUMBA_CACHE_DIR=str(tmp_path), TMPDIR=str(tmp_path)
        )
        (folder / selftest.COMPLETE).touch()
        said, _ = process.communicate(timeout=300)
        assert (process.returncode, said) == (0, "")


def test_code_that_others_may_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Numba unpickles what it finds in its cache."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    stamp = jit.source_stamp()[:16]
    usual = jit.compiled_folder.__wrapped__()
    assert usual == tmp_path / "narrowgauge/compiled" / stamp
    for folder in (usual, usual.parent, usual.parent.parent):
        folder.chmod(0o777)
        caplog.clear()
        assert jit.compiled_folder.__wrapped__() == tmp_path / "temporary" / f"narrowgauge-{os.geteuid()}" / stamp
        assert f"{folder} may be written by other users (its mode is 777)" in caplog.text
        folder.chmod(0o700)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    assert jit.compiled_folder.__wrapped__() == tmp_path / "chosen/narrowgauge" / stamp


def test_what_old_versions_compiled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    every = tmp_path / "narrowgauge/compiled"
    for name, days in (("old", 31), ("recent", 29)):
        (every / name).mkdir(parents=True)
        (every / name / "loop.nbc").write_text("")
        os.utime(every / name, (time.time() - days * 86400,) * 2)
    jit.compiled_folder.__wrapped__()
    assert sorted(folder.name for folder in every.iterdir()) == sorted(["recent", jit.source_stamp()[:16]])
