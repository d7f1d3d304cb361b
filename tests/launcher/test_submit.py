"""`launcher submit` for real: a process, Ray, workers, and what is left when it is over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.paths import REPOSITORY

MARK = "TEST_OF_SUBMIT"
RUN_S = 280.0  # bounds a run that hangs; pytest ends the test soon after
SCRIPTED = {"entrypoint": "tests/launcher/scripted.py", "name": "scripted"}
TINY_GPT = {
    "rebalance": False,  # shares by measured speed would give the two runs other samples

    "name": "tiny",
    "entrypoint": "launcher.examples.train_gpt",
    "args": {
        "steps": 4, "batch": 2, "context": 16, "layers": 1, "width": 16, "heads": 2,
        "report-every": 1, "heldout-windows": 8, "sample-bytes": 5,
    },
    "workers": {"count": 2, "hosts": 2},
}  # fmt: skip


class Submitted:
    """A running `launcher submit`, in a session of its own; what it starts has a mark in its environment."""

    def __init__(self, folder: Path, job: dict[str, Any], *arguments: str) -> None:
        self.runs = folder / "runs"
        file = folder / "job.yaml"
        file.write_text(json.dumps({**job, "runs_dir": str(self.runs)}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher.cli", "submit", str(file), *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, MARK: str(folder)},
        )

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=RUN_S)
        return self.process.returncode, out, err

    @property
    def folder(self) -> Path:
        (found,) = self.runs.iterdir()
        return found

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text()))

    def events(self, kind: str) -> list[dict[str, Any]]:
        paths = list(self.runs.glob("*/events.jsonl"))
        lines = paths[0].read_text().splitlines() if paths else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_for(self, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + RUN_S
        while not check():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """It and everything that it started, whoever its parent is by now: Ray's processes, agents, workers."""
        return [process for process in psutil.process_iter() if marked(process, str(self.runs.parent))]

    def nothing_left(self) -> bool:
        """Whether all that is gone, or goes within some seconds."""
        _, alive = psutil.wait_procs(self.processes(), timeout=120)
        return not alive


def marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.fixture(scope="module")
def losses_over_the_engine(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train_tiny_gpt(tmp_path_factory.mktemp("engine"), "narrowgauge")


def test_a_model_is_trained_over_the_engine(losses_over_the_engine: list[float]) -> None:
    assert len(losses_over_the_engine) == 8


@pytest.mark.slow
def test_a_model_is_trained_over_gloo_alike(tmp_path: Path, losses_over_the_engine: list[float]) -> None:
    assert train_tiny_gpt(tmp_path, "gloo") == pytest.approx(losses_over_the_engine, rel=1e-4)


def train_tiny_gpt(folder: Path, backend: str) -> list[float]:
    """Train, check what is left of the run, and give the losses by rank and step."""
    submitted = Submitted(folder, {**TINY_GPT, "collectives": {"backend": backend}}, "--json")
    status, out, err = submitted.finish()
    assert status == 0, err
    summary = json.loads(out)
    assert summary == submitted.summary
    reports = sorted(submitted.events("Reported"), key=lambda event: (event["rank"], event["step"]))
    assert [(event["rank"], event["step"]) for event in reports] == [(r, s) for r in (0, 1) for s in (1, 2, 3, 4)]
    check_summary(summary, backend)
    check_folder(submitted.folder)
    return [event["loss"] for event in reports]


def check_summary(summary: dict[str, Any], backend: str) -> None:
    assert (summary["status"], summary["backend"], summary["world_size"]) == ("finished", backend, 2)
    assert [line.split()[0] for line in summary["hosts"]] == ["host-0", "host-1"]
    assert summary["steps"] == 4
    assert 5 < summary["first_loss"] < 6
    assert summary["final_loss"] < summary["first_loss"]
    assert 4 < summary["heldout_loss"] < 6
    assert summary["tokens_per_s"] > 0
    assert summary["step_s"] > 0
    assert 0 < summary["comm_wait_s"] < summary["step_s"]
    assert 0 < summary["seconds_to_first_step"] < summary["wall_s"]
    assert summary["failure"] is None
    assert summary["collectives"]["ops"] >= 4
    assert 2.5 < summary["notes"]["unigram_entropy"] < 4
    assert set(summary["versions"]) == {"python", "narrowgauge", "torch", "ray", "numba", "numpy"}
    assert (summary["plan"] is not None) == (backend == "narrowgauge")


def check_folder(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000004"]
    names = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and checkpoints not in path.parents
    }
    logs = {"logs/rank-0.log", "logs/rank-1.log"}
    assert names == {"config.yaml", "plan.json", "events.jsonl", "summary.json", "launcher.json", "report.html", *logs}
    plan = json.loads((folder / "plan.json").read_text())
    assert [(seat["rank"], seat["host"]) for seat in plan["seats"]] == [(0, "host-0"), (1, "host-1")]
    text = "".join((folder / name).read_text() for name in names)
    assert "TOKEN" not in text.upper().replace("TOKENS", "")


@pytest.mark.slow
def test_an_exception_in_one_worker(tmp_path: Path) -> None:
    job = {**SCRIPTED, "workers": {"count": 3, "hosts": 3}, "args": {"steps": 50, "step-s": 0.05, "end": "raise@1:3"}}
    submitted = Submitted(tmp_path, job)
    status, out, err = submitted.finish()
    assert status == 1
    assert "Traceback" not in err
    failure = submitted.summary["failure"]
    assert (failure["rank"], failure["host"]) == (1, "host-1")
    assert failure["what"] == "ValueError: the test wanted this"
    assert sorted(other["rank"] for other in failure["others"]) == [0, 2]
    last = out.rstrip().splitlines()
    assert last[-1] == f"its log: {submitted.folder}/logs/rank-1.log"
    assert last[-2] == "rank 1 on host-1: ValueError: the test wanted this"
    assert "    Traceback (most recent call last):" in last
    assert '    raise ValueError("the test wanted this")' in out
    page = (submitted.folder / "report.html").read_text()
    assert "Why it failed: rank 1 on" in page
    assert "ValueError: the test wanted this" in page
    assert not (submitted.folder / "tensorboard").exists()


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    submitted = Submitted(tmp_path, {**SCRIPTED, "workers": 1, "collectives": {"backend": "gloo"}})
    assert submitted.process.stdout is not None
    assert submitted.process.stdout.readline().startswith("run ")
    submitted.process.stdout.close()
    assert submitted.process.wait(timeout=RUN_S) == 0
    assert submitted.process.stderr is not None
    assert submitted.process.stderr.read() == "the reader of the output is gone; the run continues\n"
    assert (submitted.summary["status"], submitted.summary["steps"]) == ("finished", 5)


DDP = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
for step in range(1000):
    if (dist.get_rank(), step) == (1, 3):
        sys.exit(0)
    model(torch.ones(2, 4)).sum().backward()
"""


@pytest.mark.slow
def test_a_worker_that_ends_before_the_others_do(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(DDP)
    submitted = Submitted(tmp_path, {"name": "early", "entrypoint": str(tmp_path / "early.py"), "workers": 3})
    status, out, _ = submitted.finish()
    assert status == 1
    (others, seconds) = (submitted.summary["failure"]["others"], re.findall("^  then .*", out, re.MULTILINE))
    assert sorted(other["rank"] for other in others) == [0, 2]
    assert {event["culprit"] for event in submitted.events("Raised")} == {1}
    assert all(re.search(r"\): (GroupClosed|PeerLost): ", line) and ".log" not in line for line in seconds)
    assert "\nAt:" not in out
    assert re.fullmatch(
        r"rank 1 on .*: ended with status 0 while the others still needed it \(fewer steps\?\)",
        out.rstrip().splitlines()[-2],
    )
    assert out.rstrip().endswith(f"its log: {submitted.folder}/logs/rank-1.log")


def kill_a_worker(tmp_path: Path) -> tuple[Submitted, float, dict[str, Any], str]:
    """Kill rank 2 of 4 in the middle of training: the run, the time of the kill, the victim's start and the output."""
    job = {**SCRIPTED, "workers": {"count": 4, "hosts": 2}, "args": {"steps": 100000, "step-s": 0.02}}
    submitted = Submitted(tmp_path, job)
    submitted.wait_for(lambda: len(submitted.events("Reported")) > 12)
    (victim,) = [event for event in submitted.events("Started") if event["rank"] == 2]
    killed_at = time.time()
    os.kill(victim["pid"], signal.SIGKILL)
    status, out, _ = submitted.finish()
    assert status == 1
    return submitted, killed_at, victim, out


@pytest.mark.measured
def test_a_killed_worker_ends_the_others_within_seconds(tmp_path: Path) -> None:
    submitted, killed_at, _, _ = kill_a_worker(tmp_path)
    exited = submitted.events("Exited")
    assert len(exited) == 4
    assert max(event["at"] for event in exited) - killed_at < 5


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_training(tmp_path: Path) -> None:
    submitted, _, victim, out = kill_a_worker(tmp_path)
    for event in submitted.events("Exited"):
        assert event["code"] == (-9 if event["rank"] == 2 else 1)
    for survivor in (0, 1, 3):
        said = (submitted.folder / "logs" / f"rank-{survivor}.log").read_text()
        error = said[said.rindex("PeerLost") :]
        assert re.search(r"\brank 2\b", error)
        assert "host-1" in error
        assert victim["log"] in error
    assert out.rstrip().splitlines()[-2:] == [
        "rank 2 on host-1: killed by signal 9 (SIGKILL)",
        f"its log: {victim['log']}",
    ]
    assert submitted.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting", "training"])
def test_ctrl_c_stops_everything(tmp_path: Path, when: str) -> None:
    job = {**SCRIPTED, "workers": 2, "args": {"steps": 100000, "step-s": 0.02}, "collectives": {"backend": "gloo"}}
    submitted = Submitted(tmp_path, job)
    if when == "training":
        submitted.wait_for(lambda: len(submitted.events("Reported")) > 4)
    else:
        submitted.wait_for(lambda: len(submitted.processes()) > 3)
    os.killpg(submitted.process.pid, signal.SIGINT)
    status, _, err = submitted.finish()
    assert status == 130
    assert "Traceback" not in err
    assert submitted.summary["status"] == "stopped"
    assert submitted.summary["failure"] is None
    assert submitted.nothing_left()


@pytest.mark.slow
def test_a_script_that_knows_nothing_of_us_runs_on_the_engine(tmp_path: Path) -> None:
    job = {"name": "plain", "entrypoint": "launcher/examples/plain_ddp.py", "args": ["--steps", "5"], "workers": 2}
    submitted = Submitted(tmp_path, job, "--logs")
    status, out, err = submitted.finish()
    assert status == 0, err
    assert re.search(r"\[rank 0\] step 4: loss \d", out)
    assert submitted.summary["collectives"]["ops"] >= 5
    assert submitted.summary["steps"] is None
