"""The folder of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.config import job_file
from launcher.config.job import Job
from launcher.record.events import Exited, Reported, from_script, to_json
from launcher.record.run_dir import RunDir, last_traceback


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(Job(name="demo", entrypoint="train.py", workers={"count": 2}, runs_dir=str(tmp_path / "runs")))


def test_every_path_is_in_the_folder(run: RunDir) -> None:
    assert run.path.name == f"demo-{run.id}"
    assert run.path.is_absolute()
    assert run.logs.is_dir()
    assert run.checkpoints.is_dir()
    names = [
        path.relative_to(run.path).as_posix() for path in (run.config, run.plan, run.events, run.summary, run.log(3))
    ]
    assert names == ["config.yaml", "plan.json", "events.jsonl", "summary.json", "logs/rank-3.log"]
    assert "name: demo" in run.config.read_text()


def test_two_runs_never_share_a_folder(run: RunDir) -> None:
    job = job_file.Job(name="demo", entrypoint="train.py", workers={"count": 2}, runs_dir=str(run.path.parent))
    assert RunDir.create(job).path != run.path


def test_a_summary_is_replaced_as_a_whole(run: RunDir) -> None:
    run.write_summary({"status": "failed"})
    run.write_summary({"status": "finished"})
    assert json.loads(run.summary.read_text()) == {"status": "finished"}
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.yaml", "logs", "summary.json"]


def test_events_are_lines_that_say_what_they_are(run: RunDir) -> None:
    run.append(Reported(1, 2.5, step=3, loss=0.5))
    run.append(Exited(1, 3.5, -9))
    first, second = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert (first["event"], first["rank"], first["step"], first["loss"]) == ("Reported", 1, 3, 0.5)
    assert second == {"event": "Exited", "rank": 1, "at": 3.5, "code": -9}


def test_what_a_script_sends_reads_back() -> None:
    event = Reported(1, 2.5, step=3, of=9, loss=0.5, tokens=7, wait_s=0.1, values={"lr": 0.1})
    assert from_script(to_json(event)) == event


@pytest.mark.parametrize(
    "message", [{}, {"event": "Exited", "rank": 0, "at": 1, "code": 0}, {"event": "Noted", "rank": 0}]
)
def test_a_script_may_not_send_anything_else(message: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a"):
        from_script(message)


def test_the_last_words_are_the_last_traceback() -> None:
    log = "step 1\nTraceback (most recent call last):\n  old\nKeyError\nstep 2\n"
    assert (
        last_traceback(log + "Traceback (most recent call last):\n  new\nE: x\n")
        == "Traceback (most recent call last):\n  new\nE: x"
    )
    assert last_traceback("\n".join(map(str, range(50)))) == "\n".join(map(str, range(30, 50)))
    assert last_traceback("") == ""
