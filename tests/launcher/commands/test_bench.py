"""`launcher bench`: the bench as a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from collectives.bench.report import Report
from collectives.errors import UsageError
from launcher.commands import bench
from launcher.config.job import Job
from tests.paths import REPOSITORY

JOB = Job.model_validate(
    {"name": "x" * 64, "entrypoint": "train.py", "args": {"steps": 3}, "workers": {"count": 2, "hosts": 2}}
)


def test_the_jobs_workers_run_the_bench_instead(tmp_path: Path) -> None:
    words = ["--sizes", "8:64:2x", "--no-gloo", "--json", "--save", str(tmp_path / "x.json"), "--round-s", "0.5"]
    job = bench._as_job(JOB, bench._parsed(words, "test"))
    assert Job.model_validate(job.model_dump()) == job
    assert (job.entrypoint, job.workers, job.collectives) == (
        "launcher.commands.bench:work",
        JOB.workers,
        JOB.collectives,
    )
    assert job.name == "x" * 58 + "-bench"
    again = bench._parsed(job.args, "test")
    assert (again.sizes, again.round_s, again.no_gloo) == ("8:64:2x", 0.5, True)
    assert (again.json, again.save, again.plot) == (False, None, None)


def test_a_limit_for_other_ranks_is_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"hosts": [{"name": "a", "ranks": [0]}]}')
    with pytest.raises(UsageError, match="1 ranks; wanted one of this group's 2"):
        bench.bench(JOB, ["--limit", str(tmp_path / "x.json")])


def test_every_option_reaches_the_workers() -> None:
    """But those for what the launcher does itself: show JSON, write files."""
    given = ["--collective", "all_reduce", "--sizes", "1M", "--dtype", "float32", "--codec", "int8", "--round-s", "0.5"]
    options = bench._parsed([*given, "--no-gloo", "--json"], "x")
    worker = vars(bench._parsed(bench._as_job(JOB, options).args, "x"))
    assert worker == {**vars(options), "json": False}


@pytest.mark.slow
def test_a_job_files_workers_are_measured(tmp_path: Path) -> None:
    """For real, with Ray: JSON on stdout, and Gloo is torch's own although workers replace it for scripts."""
    (tmp_path / "job.yaml").write_text(JOB.model_copy(update={"runs_dir": str(tmp_path)}).model_dump_json())
    command = [sys.executable, "-m", "launcher.cli", "bench", str(tmp_path / "job.yaml")]
    command += ["--set", "name=farm", "--set", "entrypoint=launcher.examples.train_gpt"]
    command += ["--sizes", "4k", "--round-s", "0.01", "--json", "--save", str(tmp_path / "saved.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280)
    assert done.returncode == 0, done.stderr
    report = Report.from_dict(json.loads(done.stdout))
    (row,) = report.rows
    assert (report.hosts, report.limit) == (("host-0", "host-1"), None)
    assert (row.num_bytes, row.wrong, row.gloo_wrong) == (4000, 0, 0)
    assert Report.from_dict(json.loads((tmp_path / "saved.json").read_text())) == report
    (folder,) = tmp_path.glob("farm-bench-*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
