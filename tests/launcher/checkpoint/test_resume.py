"""Runs that are killed and go on: the losses are those of a run that nobody disturbed, step by step, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoint import resume
from launcher.config import job_file
from launcher.config.job import Cluster, Job
from launcher.errors import ConfigError
from launcher.record.run_dir import RunDir, last_traceback
from tests.launcher.test_submit import SCRIPTED, TINY_GPT, Submitted

STEPS = 60
JOB = {
    **TINY_GPT,
    "args": {**TINY_GPT["args"], "steps": STEPS},  # type: ignore[dict-item]
    "collectives": {"codec": "int8"},
    "checkpoint": {"every_steps": 10},
    "rebalance": False,
}


def losses(submitted: Submitted) -> dict[tuple[int, int], float]:
    """By rank and step; what came last counts."""
    return {(event["rank"], event["step"]): event["loss"] for event in submitted.events("Reported")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], float]:
    submitted = Submitted(tmp_path_factory.mktemp("undisturbed"), JOB)
    status, _, err = submitted.finish()
    assert status == 0, err
    found = losses(submitted)
    assert set(found) == {(rank, step) for rank in (0, 1) for step in range(1, STEPS + 1)}
    assert [event["step"] for event in submitted.events("Saved")] == [10, 20, 30, 40, 50, 60]
    assert (submitted.summary["resumed_from"], len(submitted.summary["attempts"])) == (None, 1)
    return found


def slowed(job: dict[str, Any]) -> dict[str, Any]:
    """With steps long enough to hit one: the kernel paces the link."""
    return {**job, "emulate": [2, 2]}


@pytest.mark.slow
def test_after_the_whole_job_was_killed(undisturbed: dict[tuple[int, int], float], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    first = Submitted(folders[0], slowed(JOB))
    first.wait_for(lambda: len(first.events("Saved")) >= 2)
    for process in first.processes():
        os.kill(process.pid, signal.SIGKILL)
    first.process.communicate()
    assert first.nothing_left()
    assert not (first.folder / "summary.json").exists()

    second = Submitted(folders[1], JOB, "--resume", str(first.folder))
    status, out, err = second.finish()
    assert status == 0, out + err
    (restored,) = second.events("Restored")
    assert restored["step"] >= 20
    assert f"resuming after step {restored['step']}, from {first.folder}/checkpoints/step-" in out
    assert second.summary["resumed_from"] == str(first.folder)
    assert second.summary["steps"] == STEPS
    gone_on = losses(second)
    assert min(step for _, step in gone_on) == restored["step"] + 1
    assert losses(first) | gone_on == undisturbed

    half = {**JOB, "workers": 1, "global_batch": 4, "args": {**JOB["args"], "steps": STEPS + 3}}  # type: ignore[dict-item]
    third = Submitted(folders[2], half, "--resume", str(second.folder))
    status, out, err = third.finish()
    assert status == 0, out + err
    assert sorted(losses(third)) == [(0, STEPS + 1), (0, STEPS + 2), (0, STEPS + 3)]
    assert "was saved by 2 ranks and this run has 1" in (third.folder / "logs" / "rank-0.log").read_text()


@pytest.mark.slow
def test_after_one_worker_was_killed(undisturbed: dict[tuple[int, int], float], tmp_path: Path) -> None:
    submitted = Submitted(tmp_path, slowed({**JOB, "retries": 2}))
    submitted.wait_for(lambda: len(submitted.events("Saved")) >= 2)
    os.kill(next(event["pid"] for event in submitted.events("Started") if event["rank"] == 1), signal.SIGKILL)
    status, out, err = submitted.finish()
    assert status == 0, out + err
    assert losses(submitted) == undisturbed
    attempts = submitted.summary["attempts"]
    assert [each["status"] for each in attempts] == ["failed", "finished"]
    assert (attempts[0]["rank"], attempts[0]["what"]) == (1, "killed by signal 9 (SIGKILL)")
    (retried,) = submitted.events("Retried")
    assert (retried["rank"], retried["attempt"]) == (1, 2)
    assert "attempt 2 of 3, after rank 1: killed by signal 9 (SIGKILL)" in out
    assert submitted.events("Restored")[0]["step"] >= 20
    assert (submitted.summary["status"], submitted.summary["failure"]) == ("finished", None)
    assert "======== attempt 2 ========" in (submitted.folder / "logs" / "rank-0.log").read_text()
    assert submitted.nothing_left()


@pytest.mark.slow
def test_an_error_of_the_users_is_not_tried_again(tmp_path: Path) -> None:
    job = {**SCRIPTED, "workers": 2, "args": {"end": "raise@1:1"}, "retries": 3, "collectives": {"backend": "gloo"}}
    submitted = Submitted(tmp_path, job)
    status, out, _ = submitted.finish()
    assert status == 1
    assert "not started again: rank 1 failed by itself before the first step was reported, and would fail again" in out
    assert len(submitted.summary["attempts"]) == 1
    assert submitted.events("Retried") == []


@pytest.mark.slow
def test_one_that_comes_again_is_given_up(tmp_path: Path) -> None:
    job = {**SCRIPTED, "workers": 2, "args": {"end": "kill@1:3"}, "retries": 1, "collectives": {"backend": "gloo"}}
    submitted = Submitted(tmp_path, job)
    status, out, _ = submitted.finish()
    assert status == 1
    assert "not started again: all 1 retries are used up" in out
    assert [each["status"] for each in submitted.summary["attempts"]] == ["failed", "failed"]
    assert submitted.summary["failure"]["what"] == "killed by signal 9 (SIGKILL)"
    assert submitted.nothing_left()


# ---- which run is meant --------------------------------------------------------------------------------------------


def a_run(tmp_path: Path, resumed: Path | None = None, steps: int = 0) -> tuple[Job, RunDir]:
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**TINY_GPT, "runs_dir": str(tmp_path / "runs")}))
    job = job_file.load(file)
    made = RunDir.create(job, resumed)
    if steps:
        (made.checkpoints / f"step-{steps:08d}").mkdir()
    return job, made


def test_a_run_is_named_by_folder_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, made = a_run(tmp_path, steps=3)
    assert resume.find(str(made.path), job) == made.path
    assert resume.find(made.path.name, job) == made.path
    monkeypatch.chdir(made.path.parent)
    assert resume.find(f"./{made.path.name}", job) == made.path


def test_a_resumed_run_without_a_checkpoint_stands_for_the_one_before(tmp_path: Path) -> None:
    _, first = a_run(tmp_path, steps=3)
    _, second = a_run(tmp_path, first.path)
    job, third = a_run(tmp_path, second.path)
    assert resume.find(str(third.path), job) == first.path


def test_runs_that_cannot_be_resumed(tmp_path: Path) -> None:
    job, made = a_run(tmp_path)
    with pytest.raises(ConfigError) as told:
        resume.find(str(made.path), job)
    assert "this run has no checkpoint" in str(told.value)
    assert f"got:     {made.checkpoints}" in str(told.value)
    with pytest.raises(ConfigError) as told:
        resume.find(made.path.name[:-1] + "x", job)
    assert str(told.value).startswith(f"--resume {made.path.name[:-1]}x: no such run")
    assert f"nearest: {made.path.name}" in str(told.value)


def test_last_words_are_those_of_the_last_attempt() -> None:
    first = "Traceback (most recent call last):\nValueError: first\n"
    assert last_traceback(f"{first}======== attempt 2 ========\nsecond\n") == "second"


def test_on_a_cluster_checkpoints_may_be_out_of_sight(tmp_path: Path) -> None:
    job, made = a_run(tmp_path)
    assert resume.find(str(made.path), job.model_copy(update={"cluster": Cluster(address="box-1:6379")})) == made.path
