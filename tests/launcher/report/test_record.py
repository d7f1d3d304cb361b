"""Reading run folders, whole ones and what a crash leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import report
from launcher.errors import ReportError
from launcher.record.events import Noted, Reported
from launcher.record.run_dir import RunDir
from launcher.report import record
from tests.launcher.report.made import folder


def test_a_whole_run(tmp_path: Path) -> None:
    path = folder(tmp_path, ranks=2, steps=3)
    found = record.read(path)
    assert found.name == path.name
    assert found.summary is not None
    assert found.plan is not None
    assert sorted(found.logs) == [0, 1]
    assert found.logs[0].startswith("Traceback")
    assert len([event for event in record.events(path) if isinstance(event, Reported)]) == 6


def test_paths_of_a_folder_are_those_of_the_run_that_made_it(tmp_path: Path) -> None:
    path = folder(tmp_path, steps=1)
    run = RunDir.of(path)
    assert (run.path, run.name, f"{run.name}-{run.id}") == (path, "made-4", path.name)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path, ranks=1, hosts=1, steps=2)
    before = len(list(record.events(path)))
    with (path / "events.jsonl").open("a") as file:
        file.write('{"event": "Reported", "rank": 0, "at": 17')
    assert len(list(record.events(path))) == before


def test_an_event_of_an_unknown_kind_is_a_note(tmp_path: Path) -> None:
    path = folder(tmp_path, steps=0)
    (path / "events.jsonl").write_text('{"event": "Later", "rank": 0, "at": 1, "more": [2]}\n')
    assert list(record.events(path)) == [Noted(0, 1.0, {"Later": {"more": [2]}})]
    assert "Later: {&#39;more&#39;: [2]}" in report.write(path).read_text()


def test_what_a_crash_leaves_is_enough(tmp_path: Path) -> None:
    path = folder(tmp_path, steps=0, summary=False)
    for name in ("plan.json", "events.jsonl", "logs/rank-0.log"):
        (path / name).unlink()
    assert "no summary when this page was made" in report.write(path).read_text()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: (path / "config.yaml").unlink(), "found no config.yaml in it; wanted the folder of a run"),
        (lambda path: (path / "events.jsonl").write_text("\n"), "events.jsonl, line 1: not JSON"),
        (lambda path: (path / "events.jsonl").write_text("[]\n"), "events.jsonl, line 1: not an event: []"),
        (
            lambda path: (path / "events.jsonl").write_text('{"event": "Reported", "rank": 0, "at": 1}\n'),
            "events.jsonl, line 1: not a Reported",
        ),
        (
            lambda path: (path / "events.jsonl").write_text('{"event": "Started", "rank": "x", "at": 1}\n'),
            "events.jsonl, line 1: not a Started: ",
        ),
        (lambda path: (path / "plan.json").write_text("{"), "plan.json: not JSON"),
        (lambda path: (path / "summary.json").write_text("[]"), "summary.json: got list; wanted an object"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, spoil: Callable[[Path], object], told: str) -> None:
    path = folder(tmp_path, steps=1)
    spoil(path)
    with pytest.raises(ReportError) as error:
        report.write(path)
    assert told in str(error.value)
    assert not (path / "report.html").exists()


def launcher(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", "report", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_the_command(tmp_path: Path) -> None:
    path = folder(tmp_path, steps=2)
    done = launcher(str(path))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(path / "report.html"), "")
    assert (path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-run"], "launcher report: no-such-run: found nothing; wanted the folder of a run"),
        ([], "launcher report: give either a run's folder or --grafana"),
        (["x", "--grafana"], "launcher report: give either a run's folder or --grafana"),
    ],
)
def test_the_command_refuses(words: list[str], told: str) -> None:
    done = launcher(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(told)
    assert "Traceback" not in done.stderr
