"""Where a job is carried out: in this process, or by a driver on its cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil

from launcher.config.job import Job
from launcher.errors import RunError
from launcher.monitor.terminal import PlainView
from launcher.remote import client
from launcher.run.context import RunContext
from launcher.run.run import run


def run_job(job: Job, view: PlainView, *, follow_logs: bool = False, resumed: Path | None = None) -> dict[str, Any]:
    """Run a job here or on its cluster, and wait for its end.

    Args:
        view: where progress is shown.
        follow_logs: also show the workers' output.
        resumed: the folder of the run whose checkpoints this one continues from.

    Returns:
        The summary.

    Raises:
        LauncherError: from `run`, `client.submit` and `client.follow`.
    """
    if job.cluster.address is None:
        return run(job, view, follow_logs=follow_logs, context=RunContext.here(job, resumed))
    jobs, run_dir = client.submit(job, psutil.Process().create_time(), view, resumed)
    view.stage("Ctrl-C stops the run; it continues if this terminal is closed")
    return client.follow(jobs, run_dir, view, follow_logs=follow_logs)


def detach(job: Job, resumed: Path | None) -> None:
    """Submit a job to its cluster, print the run's name on stdout, and return (`launcher submit --detach`).

    Raises:
        RunError: the job has no cluster.
        LauncherError: from `client.submit`.
    """
    if job.cluster.address is None:
        raise RunError("--detach is for runs on a cluster, with cluster: {address: ...}; got cluster: local")
    _, run_dir = client.submit(job, time.time(), PlainView(sys.stderr), resumed)
    print(run_dir.path.name)
