"""`launcher probe`: the probe as a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collectives.errors import UsageError
from collectives.topology import Topology
from launcher import cli
from launcher.commands import probe
from launcher.config.job import Job
from tests.paths import REPOSITORY

JOB = Job.model_validate(
    {
        "name": "x" * 64,
        "entrypoint": "train.py",
        "args": {"steps": 3},
        "env": {"A": "b"},
        "workers": {"count": 3, "hosts": 2},
        "collectives": {"topology": "old.json", "timeout_s": 20.0},
    }
)


def test_the_jobs_workers_run_the_probe_instead() -> None:
    job = probe._as_job(JOB)
    assert Job.model_validate(job.model_dump()) == job
    assert (job.name, job.entrypoint, job.args) == ("x" * 58 + "-probe", "launcher.commands.probe:work", [])
    assert (job.workers, job.cluster, job.env) == (JOB.workers, JOB.cluster, JOB.env)
    assert (job.collectives.topology, job.collectives.timeout_s) == (None, 20.0)


def test_errors_are_reported_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"folder .*missing does not exist; create it first"):
        probe.probe(JOB, tmp_path / "missing" / "links.json", False)
    with pytest.raises(UsageError, match="emulate: these links are as fast as the job file says"):
        probe.probe(JOB.model_copy(update={"emulate": [100.0, 10.0]}), None, False)


def launcher(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", "probe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280)


@pytest.mark.slow
def test_the_links_between_a_jobs_hosts_are_measured(tmp_path: Path) -> None:
    """For real, with Ray: JSON on stdout, the same in the file, and a job can have it."""
    (tmp_path / "job.yaml").write_text(
        f"name: farm\nentrypoint: launcher.examples.train_gpt\nruns_dir: {tmp_path}\nworkers: {{count: 3, hosts: 2}}\n"
    )
    saved = tmp_path / "links.json"
    done = launcher(str(tmp_path / "job.yaml"), "--set", "workers.count=2", "--json", "--save", str(saved))
    assert done.returncode == 0, done.stderr
    topology = Topology.from_json(done.stdout)
    assert [(host.name, host.ranks) for host in topology.hosts] == [("host-0", (0,)), ("host-1", (1,))]
    assert min(host.up_bytes_per_s for host in topology.hosts) > 0
    assert Topology.load(saved) == topology
    (folder,) = tmp_path.glob("farm-probe-*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert Topology.from_json(summary["notes"]["probe"]["topology"]) == topology


def test_a_mistake_ends_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: farm\nentrypoint: launcher.examples.train_gpt\nworkers: {count: 2, hosts: 2}\nemulate: [100, 50]\n"
    )
    done = CliRunner().invoke(cli.app, ["probe", str(tmp_path / "job.yaml")])
    assert done.exit_code == 2
    assert "launcher probe: emulate: these links" in done.output
