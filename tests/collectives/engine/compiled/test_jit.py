"""Where compiled code is kept: the same sources compile once, wherever they lie."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import collectives
from collectives.engine.compiled import jit
from tests.paths import REPOSITORY

WARM_UP = "from collectives.engine.selftest import warm_up; import collectives; warm_up(); print(collectives.__file__)"


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


def test_numbas_own_place_where_ours_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jit._folder.__wrapped__() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit._folder.__wrapped__() == str(tmp_path / "narrowgauge/compiled" / jit.source_stamp()[:16])
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert jit._folder.__wrapped__() is None


def test_what_old_versions_compiled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    every = tmp_path / "narrowgauge/compiled"
    for name, days in (("old", 31), ("recent", 29)):
        (every / name).mkdir(parents=True)
        (every / name / "loop.nbc").write_text("")
        os.utime(every / name, (time.time() - days * 86400,) * 2)
    jit._folder.__wrapped__()
    assert sorted(folder.name for folder in every.iterdir()) == sorted(["recent", jit.source_stamp()[:16]])
