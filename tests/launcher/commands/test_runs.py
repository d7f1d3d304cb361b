"""`launcher list | status | logs | stop | top` on runs of this machine: another process carries them out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.job import Job
from launcher.record.events import Exited, Reported, Started, to_json
from launcher.record.run_dir import RunDir
from tests.launcher.test_submit import SCRIPTED, Submitted
from tests.paths import REPOSITORY


def launcher(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=240)


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command without the seconds that imports take in a new process: its status, output and errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", ["launcher", *arguments])
        patch.setattr(sys, "stdout", sys.stdout)  # main() replaces both
        patch.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    """The folder of a run of two ranks, of which rank 1 is twice as fast and waits."""
    run = RunDir.create(Job(name="demo", entrypoint="x.py", workers={"count": 2}, runs_dir=str(tmp_path / "runs")))
    node = {"id": "n", "name": "box-1", "address": "10.0.0.1", "cpus": 2}
    seat = {"local_world_size": 2, "host_index": 0, "host_count": 1, "host": "box-1", "emulated": False, "node": node}
    run.write_plan({"seats": [{**seat, "rank": rank, "local_rank": rank} for rank in (0, 1)], "collectives": None})
    for rank in (0, 1):
        run.append(Started(rank, 100.0, 42 + rank, str(run.log(rank)), "eth0"))
        run.append_to_log(rank, f"I am {rank}\nwithout end")
    for step in (10, 20):
        for rank in (0, 1):
            run.append(
                Reported(
                    rank, 100.0 + step / 10, step, of=20, loss=3.0 - step / 10, tokens=100, wait_s=0.6 * rank,
                    num_bytes=1_000_000, samples=10.0 + 20 * rank, compute_s=0.8 - 0.4 * rank,
                    waits={"rank 0 (box-1)": 0.5} if rank else {},
                )
            )  # fmt: skip
    for rank in (0, 1):
        run.append(Exited(rank, 103.0, 0))
    run.write_summary(
        {"status": "finished", "steps": 20, "world_size": 2, "failure": None, "folder": str(run.path), "name": "demo"}
    )
    return run


def test_what_is_shown_of_a_run_that_is_over(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        status, out, err = in_process(capsys, *arguments)
        assert (status, err) == (0, "")
        return out

    where = ("--runs", str(finished.path.parent))
    (row,) = json.loads(said("list", "--json", *where))
    assert (row["run"], row["state"], row["ranks"], row["step"]) == (finished.path.name, "finished", 2, 20)
    assert abs(row["started_at"] - time.time()) < 600
    assert re.search(rf"{finished.path.name}  finished  \S+ \S+  2      20    local", said("list", *where))

    shown = json.loads(said("status", "demo", "--json", *where))
    ranks = shown["ranks"]
    assert [(rank["host"], rank["address"], rank["interface"], rank["state"], rank["step"]) for rank in ranks] == [
        ("box-1", "10.0.0.1", "eth0", "finished", 20)
    ] * 2
    assert [rank["share"] for rank in ranks] == [0.25, 0.75]
    assert [rank["waits_for"] for rank in ranks] == [None, ["rank 0 (box-1)", 0.5]]
    shown = said("status", str(finished.path))
    assert "demo" in shown
    assert re.search(r"1 +box-1 +10\.0\.0\.1 +eth0 +finished +20 +1\.0000 +75\.0%", shown)

    shown = said("top", "demo", *where)
    assert re.search(r"0 +box-1 +finished +20 +25\.0% +80\.0 +0\.0 +8\n", shown)
    assert re.search(r"1 +box-1 +finished +20 +75\.0% +40\.0 +60\.0 +8 +rank 0 \(box-1\), 50% of the time", shown)

    assert said("logs", "demo", *where) == (
        "[rank 0] I am 0\n[rank 0] without end\n[rank 1] I am 1\n[rank 1] without end\n"
    )
    assert said("logs", "demo", "-f", "--rank", "1", *where) == "I am 1\nwithout end\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["stop", "demo"], 2, r"demo-\S+ is over: finished"),
        (["status", "other"], 2, r"no run 'other' in /.*runs; found: demo-"),
        (["logs", "demo", "--rank", "2"], 2, r"no rank 2 in demo-\S+; it has 2, from 0 to 1"),
        (["status", "demo", "--address", "127.0.0.1:1"], 1, r"cannot reach the Ray cluster at '127.0.0.1:1'"),
        (["list", "--address", "127.0.0.1:1"], 1, r"cannot reach the Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_what_cannot_be(
    finished: RunDir, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    ended, _, err = in_process(capsys, *arguments, "--runs", str(finished.path.parent))
    assert ended == status, err
    assert re.search(words, err), err
    assert "Traceback" not in err


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "list", "--runs", str(tmp_path / "none")) == (0, f"no runs in {tmp_path / 'none'}\n", "")


def test_a_run_that_is_carried_out_elsewhere_is_not_stopped_here(
    finished: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.summary.unlink()
    finished.owner.write_text(json.dumps({"host": "box-9", "pid": 1, "started_at": 1.0}))
    status, _, err = in_process(capsys, "stop", str(finished.path))
    assert status == 2
    assert "is not carried out on this machine" in err
    assert "but on box-9; stop it there" in err


def test_detaching_is_for_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = in_process(capsys, "submit", "configs/quickstart.yaml", "--detach")
    assert status == 2
    assert "--detach is for runs on a cluster" in err


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_a_local_run_is_watched_and_stopped_from_another_terminal(tmp_path: Path, force: bool) -> None:
    script = {"workers": 2, "args": {"steps": 1000, "step-s": 0.05}, "collectives": {"backend": "gloo"}}
    submitted = Submitted(tmp_path, {**SCRIPTED, **script})
    submitted.wait_for(lambda: len(submitted.events("Reported")) > 10)
    where = ("--runs", str(submitted.runs))
    followed: list[str] = []
    follower = threading.Thread(target=lambda: followed.append(launcher("logs", "scripted", "-f", *where).stdout))
    follower.start()
    shown = json.loads(launcher("status", "scripted", "--json", *where).stdout)
    assert shown["state"] == "running"
    assert [(rank["state"], rank["address"], rank["interface"]) for rank in shown["ranks"]] == [
        ("running", "127.0.0.1", "lo")
    ] * 2
    assert [row["state"] for row in json.loads(launcher("list", "--json", *where).stdout)] == ["running"]
    done = launcher("stop", "scripted", *where, *(["--force"] if force else []))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{submitted.folder.name}: stopped\n"
    assert submitted.finish()[0] == 130
    assert submitted.summary["notes"]["niceness"] == os.nice(0)  # Ray's own workers are started at 15
    assert submitted.nothing_left()
    follower.join(timeout=120)
    assert len(followed) == 1
    assert {rank["state"] for rank in json.loads(launcher("status", "scripted", "--json", *where).stdout)["ranks"]} == {
        "stopped"
    }
    again = launcher("stop", "scripted", *where)
    assert (again.returncode, "is over: stopped" in again.stderr) == (2, True)


def test_events_read_back() -> None:
    event = Started(1, 2.0, 3, "x", "eth0")
    assert to_json(event)["interface"] == "eth0"
