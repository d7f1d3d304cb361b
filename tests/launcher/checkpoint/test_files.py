"""Checkpoints on disk: what counts as whole, what is passed over and why, what stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.checkpoint import files


def write(folder: Path, step: int, text: str = "some state") -> Path:
    def fill(partial: Path) -> None:
        (partial / "state").mkdir()
        (partial / "state" / "data").write_text(f"{text} of {step}")
        (partial / "shared.pt").write_text("shared")

    written, num_bytes = files.write(folder, step, {"world_size": 2}, fill)
    assert num_bytes == len(f"{text} of {step}") + len("shared")
    return written


def edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (
        lambda path: (path / "state" / "data").write_text("some stale of 20"),
        "state/data has 16 bytes with SHA-256 [0-9a-f]{16}; wanted 16 bytes with SHA-256 [0-9a-f]{16}",
    ),
    "cut off": (lambda path: os.truncate(path / "state" / "data", 3), "state/data has 3 bytes .*; wanted 16 bytes"),
    "a file is gone": (
        lambda path: (path / "shared.pt").unlink(),
        r"shared.pt cannot be read \(No such file or directory\); wanted 6 bytes",
    ),
    "a file too many": (lambda path: (path / "more").touch(), "more is not in its manifest"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read .* not finished"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 40), "manifest.json is no JSON"),
    "no object": (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json lacks one of format, step"),
    "another step": (edit_manifest(lambda manifest: manifest.update(step=21)), "manifest.json is of step 21"),
    "another format": (edit_manifest(lambda manifest: manifest.update(format=2)), "format 2; this version reads 1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_one_is_passed_over_and_the_one_before_is_taken(tmp_path: Path, name: str) -> None:
    write(tmp_path, 10)
    newest = write(tmp_path, 20)
    damage, wanted = DAMAGE[name]
    damage(newest)
    told: list[str] = []
    found = files.newest(tmp_path, told.append)
    assert found == files.StoredCheckpoint(tmp_path / "step-00000010", 10, {"world_size": 2})
    with pytest.raises(files.Damaged, match=wanted):
        files.check(newest)
    (line,) = told
    assert line.startswith(f"skipping the checkpoint {newest}: ")


def test_none_is_left(tmp_path: Path) -> None:
    assert files.newest(tmp_path / "nowhere", print) is None
    shutil.rmtree(write(tmp_path, 1) / "state")
    assert files.newest(tmp_path, lambda _: None) is None


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 100, 20, 123456789):
        write(tmp_path, step)
    files.retain(tmp_path, 2)
    assert files.steps(tmp_path) == [100, 123456789]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-123456789"]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 5, "old")
    path = write(tmp_path, 5, "new")
    assert (path / "state" / "data").read_text() == "new of 5"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_what_goes_wrong_leaves_the_ones_before(tmp_path: Path) -> None:
    write(tmp_path, 5)

    def fail(partial: Path) -> None:
        (partial / "data").write_text("half")
        raise OSError("the test wanted this")

    with pytest.raises(OSError, match="the test wanted this"):
        files.write(tmp_path, 6, {}, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_what_was_cut_off_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / ".step-00000006.partial" / "state").mkdir(parents=True)
    (tmp_path / ".step-00000004.old").mkdir()
    (tmp_path / "something-else").mkdir()
    assert files.steps(tmp_path) == [5]
    write(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["something-else", "step-00000005", "step-00000007"]
