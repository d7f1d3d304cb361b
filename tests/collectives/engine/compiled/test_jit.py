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

WARM_UP = "from collectives.engine.selftest import warm_up; import collectives; warm_up(); print(collectives.__file__)"


def test_a_copy_of_the_sources_compiles_nothing(tmp_path: Path) -> None:
    kept: list[dict[str, int]] = []
    for place in ("one", "two"):
        compiled = shutil.ignore_patterns("*.pyc", "*.nb*")
        shutil.copytree(Path(collectives.__file__).parent, tmp_path / place / "collectives", ignore=compiled)
        done = subprocess.run(
            [sys.executable, "-c", WARM_UP], cwd=tmp_path / place, check=True, capture_output=True, text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )  # fmt: skip
        assert done.stdout.startswith(str(tmp_path / place))
        files = (tmp_path / "cache/narrowgauge/compiled" / jit.source_stamp()[:16]).iterdir()
        kept.append({file.name: file.stat().st_mtime_ns for file in files})
    assert any(name.startswith("loop.advance") for name in kept[0])
    assert kept[0] == kept[1]
    assert not list(tmp_path.glob("*/collectives/engine/__pycache__/*.nb*"))


def test_numbas_own_place_where_ours_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jit._folder.__wrapped__() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit._folder.__wrapped__() == str(tmp_path / "narrowgauge/compiled" / jit.source_stamp()[:16])
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert jit._folder.__wrapped__() is None


def test_what_old_versions_compiled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    every = tmp_path / "narrowgauge/compiled"
    for name, days in (("old", 31), ("recent", 29)):
        (every / name).mkdir(parents=True)
        (every / name / "loop.nbc").write_text("")
        os.utime(every / name, (time.time() - days * 86400,) * 2)
    jit._folder.__wrapped__()
    assert sorted(folder.name for folder in every.iterdir()) == sorted(["recent", jit.source_stamp()[:16]])
