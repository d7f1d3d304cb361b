"""How a driver's early end is explained, where it keeps the run, and paths from one machine to another."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.driver import folder
from launcher.job import Job
from launcher.jobs import Found
from launcher.remote import _from_here, _moved, early_end
from launcher.run_dir import RunDir


@pytest.mark.parametrize(
    ("state", "output", "words"),
    [
        ("FAILED", ["/usr/bin/python: No module named launcher.driver"], "the head's `python` has no narrowgauge"),
        ("FAILED", ["ModuleNotFoundError: No module named 'collectives'"], "the head's `python` has no narrowgauge"),
        ("FAILED", ["boom"], "the driver of x-1 ended without a summary, FAILED: why; it wrote:\nboom"),
        ("STOPPED", [], "the run x-1 was stopped before it had begun"),
    ],
)
def test_early_end(state: str, output: list[str], words: str) -> None:
    assert early_end(Found("x-1", state, "why", None, {}), output).startswith(words)


def test_paths_in_a_summary_move_with_its_folder() -> None:
    there = {"folder": "/far/x-1", "failure": {"log": "/far/x-1/logs/rank-0.log"}, "other": ["/far/x-12", 3, None]}
    assert _moved(there, "/far/x-1", "/here/y") == {
        "folder": "/here/y",
        "failure": {"log": "/here/y/logs/rank-0.log"},
        "other": ["/far/x-12", 3, None],
    }


def test_a_path_below_the_working_directory_travels_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(
        name="x", entrypoint=str(tmp_path / "a.py"), workers={"count": 1}, collectives={"topology": "/data/t.json"}
    )
    assert _from_here(job).entrypoint == "a.py"
    assert _from_here(job).collectives.topology == "/data/t.json"


def test_a_run_is_kept_in_the_submitters_folder_only_if_it_is_that_very_folder(tmp_path: Path) -> None:
    job = Job(name="demo", entrypoint="a.py", workers={"count": 1}, runs_dir=str(tmp_path / "runs"))
    theirs = RunDir.create(job)
    theirs.write_cluster({"address": "x:1", "token": "secret"})
    told = {"folder": str(theirs.path), "id": theirs.id, "token": "secret"}
    assert folder(told, job, tmp_path).path == theirs.path
    ours = folder({**told, "token": "another"}, job, tmp_path)
    assert ours.path == tmp_path / "narrowgauge" / theirs.path.name
    assert ours.logs.is_dir()
