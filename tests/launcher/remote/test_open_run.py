"""`launcher list | status | logs | stop` on runs of a cluster, and the driver's first check, without a cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from collectives.version import __version__
from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.record import catalog
from launcher.record.events import Exited, Reported, Started
from launcher.record.replay import Reader
from launcher.record.run_dir import RunDir
from launcher.remote import driver, open_run, ray_jobs
from launcher.remote.feed import FedRunDir, Feed, FeedView
from launcher.remote.open_run import OpenRun
from launcher.remote.ray_jobs import METADATA, ClusterRun, Jobs
from tests.launcher.commands.test_runs import in_process

ADDRESS = "head:6379"
NODE = {"id": "n", "name": "box-1", "address": "10.0.0.1", "cpus": 2}
SEAT = {"local_world_size": 2, "host_index": 0, "host_count": 1, "host": "box-1", "emulated": False, "node": NODE}


class OneRun(Jobs):
    """A cluster with one run, whose driver has printed `printed`."""

    def __init__(self, found: ClusterRun, printed: str) -> None:
        self.address, self.found, self.printed = ADDRESS, found, printed
        self.stops: list[tuple[str, bool]] = []

    def all(self) -> list[ClusterRun]:
        return [self.found]

    def one(self, run: str) -> ClusterRun:
        assert run == self.found.id
        return self.found

    def output(self, run: str) -> str:
        assert run == self.found.id
        return self.printed

    def follow(self, run: str) -> Iterator[str]:
        half = len(self.output(run)) // 2
        yield self.printed[:half]
        yield self.printed[half:]

    def stop(self, run: str, *, force: bool = False) -> ClusterRun:
        self.stops.append((run, force))
        self.found = replace(self.found, state="STOPPED")
        return self.found


class Driver:
    """What a driver on another machine does of a run of two ranks, and its output."""

    def __init__(self, job: Job, far: Path, name: str) -> None:
        self.output = io.StringIO()
        self.dir = FedRunDir.fed(RunDir(far / name, job.name, name.removeprefix(f"{job.name}-")), Feed(self.output))
        self.dir.make(job)
        self.dir.write_plan({"seats": [{**SEAT, "rank": rank, "local_rank": rank} for rank in (0, 1)]})
        view = FeedView(self.dir, self.dir.feed, self.output)
        for rank in (0, 1):
            self.dir.append(Started(rank, 1.0, 7, str(self.dir.log(rank)), "eth0"))
            view.log(rank, f"I am {rank}")
            self.dir.append(
                Reported(
                    rank, 2.0, 10, of=20, loss=3.0, tokens=100, wait_s=0.0, num_bytes=0, samples=10.0, compute_s=0.5,
                    waits={},
                )
            )  # fmt: skip

    def finish(self) -> None:
        for rank in (0, 1):
            self.dir.append(Exited(rank, 3.0, 0))
        summary = {"status": "finished", "steps": 10, "world_size": 2, "failure": None, "name": self.dir.name}
        self.dir.write_summary({**summary, "folder": str(self.dir.path)})


class Case:
    """A run on a cluster without shared storage, and this machine's folder of runs."""

    def __init__(self, tmp_path: Path) -> None:
        self.runs = tmp_path / "runs"
        job = Job(name="demo", entrypoint="a.py", workers={"count": 2}, runs_dir=str(self.runs))
        self.ours = RunDir.create(job)
        self.ours.write_cluster({"address": ADDRESS, "token": "secret"})
        self.name = self.ours.path.name
        self.driver = Driver(job, tmp_path / "far", self.name)
        found = ClusterRun(self.name, "RUNNING", "", 1_700_000_000.0, {"job": job.model_dump()})
        self.jobs = OneRun(found, self.driver.output.getvalue())

    def ends(self, state: str, printed: str | None = None) -> None:
        self.jobs.found = replace(self.jobs.found, state=state)
        self.jobs.printed = self.driver.output.getvalue() if printed is None else printed


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    made = Case(tmp_path)

    def connect(address: str) -> Jobs:
        assert address == ADDRESS
        return made.jobs

    for module in (ray_jobs, open_run):
        monkeypatch.setattr(module, "Jobs", connect)
    return made


@pytest.fixture(params=["the submitter's folder", "another machine"])
def where(request: pytest.FixtureRequest, case: Case, tmp_path: Path) -> list[str]:
    """The options by which a command finds the run: in the folder of runs, or on the cluster alone."""
    if request.param == "another machine":
        return ["--address", ADDRESS, "--runs", str(tmp_path / "none")]
    return ["--runs", str(case.runs)]


def test_a_run_on_a_cluster_is_listed(case: Case, where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = in_process(capsys, "list", "--json", *where)
    (row,) = json.loads(out)
    assert status == 0
    assert (row["run"], row["state"], row["ranks"]) == (case.name, "running", 2)


def test_the_status_of_a_run_that_is_carried_out_elsewhere(
    case: Case, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = in_process(capsys, "status", "demo", "--json", *where)
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert (shown["state"], shown["step"], shown["failure"]) == ("running", 10, None)
    assert [(rank["host"], rank["interface"], rank["state"]) for rank in shown["ranks"]] == [
        ("box-1", "eth0", "running")
    ] * 2
    assert shown["folder"] == (None if "--address" in where else str(case.ours.path))


def test_a_driver_that_did_not_start_is_the_runs_failure(
    case: Case, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    case.ends("FAILED", "Traceback\nboom\n")
    status, out, err = in_process(capsys, "status", "demo", "--json", *where)
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert shown["state"] == "failed"
    wanted = f"the driver of {case.name} ended without a summary, FAILED: ; its output:\\nTraceback\\nboom"
    assert wanted in json.dumps(shown["failure"])


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_the_logs_of_a_run_that_is_carried_out_elsewhere(
    case: Case, where: list[str], follow: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    case.driver.finish()
    case.ends("SUCCEEDED")
    assert in_process(capsys, "logs", "demo", *follow, *where) == (0, "[rank 0] I am 0\n[rank 1] I am 1\n", "")


@pytest.mark.parametrize("force", [False, True])
def test_a_run_on_a_cluster_is_stopped_there_and_once(
    case: Case, where: list[str], force: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("stop", "demo", *(["--force"] if force else []), *where)
    assert in_process(capsys, *words) == (0, f"{case.name}: stopped\n", "")
    status, _, err = in_process(capsys, *words)
    assert status == 2
    assert f"{case.name} is over: stopped" in err
    assert case.jobs.stops == [(case.name, force)]


def test_a_run_that_is_over_when_it_is_looked_at_is_kept_and_needs_no_cluster_again(case: Case) -> None:
    case.driver.finish()
    case.ends("SUCCEEDED")
    with OpenRun(catalog.from_folder(case.ours.path)) as observed:
        assert observed.folder != case.ours.path
        observed.catch_up()
        assert observed.over
    assert json.loads(case.ours.summary.read_text())["folder"] == str(case.ours.path)
    with OpenRun(catalog.from_folder(case.ours.path)) as observed:
        assert observed.jobs is None
        assert observed.folder == case.ours.path
        assert observed.status(Reader(observed.folder))["state"] == "finished"


def test_a_run_on_shared_storage_is_read_from_its_own_folder(case: Case) -> None:
    case.ours.owner.write_text(json.dumps({"host": "box-9", "pid": 1, "started_at": 1.0}))
    with OpenRun(catalog.from_folder(case.ours.path)) as observed:
        assert observed.folder == case.ours.path
        assert (observed.state(), observed.over) == ("running", False)
        case.ends("STOPPED")
        assert (observed.state(), observed.over) == ("stopped", True)


def test_a_driver_of_another_version_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"metadata": {METADATA: json.dumps({"version": "0.0.1"})}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    with pytest.raises(ClusterError, match=rf"submitter has narrowgauge 0\.0\.1, this node has {__version__};"):
        driver.main()
