"""The folder of one run; every path in it is a property of `RunDir`.

runs/<name>-<id>/
    config.yaml     the job as resolved
    launcher.json   the process that carries out the run, so that other processes can observe and stop it
    cluster.json    the address and the token of a run that was submitted to a cluster
    launcher.log    the launcher's messages, on a cluster
    plan.json       the placement of the ranks, and the plan of the collectives
    events.jsonl    everything that happened, one JSON object per line
    summary.json    how it ended
    logs/rank-N.log
    checkpoints/
    traces/         if the job asks for them
    tensorboard/    if the job asks for it
    report.html     a page about all of it
    resumed_from    the folder of the run whose checkpoints it continues from, if any

Text files that a person can read and that need no server: a run stays readable after a crash of anything, and after its
machine is gone. events.jsonl is only appended to; the files that are replaced are replaced as a whole.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from launcher.config import job_file
from launcher.config.job import Job
from launcher.record.events import Event, to_json

RESUMED_FROM = "resumed_from"
ATTEMPT = "======== attempt "
"""Begins the line in a log that separates the output of two attempts."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run; `path` is absolute."""

    path: Path
    name: str
    id: str

    @classmethod
    def create(cls, job: Job, resumed: Path | None = None) -> RunDir:
        """Make the folder of a new run; it holds the resolved job, and the folder of the run that it resumes.

        Raises:
            OSError: it cannot be made.
        """
        run_id = new_id()
        run = cls(Path(job.runs_dir).resolve() / f"{job.name}-{run_id}", job.name, run_id)
        run.make(job, resumed)
        return run

    @classmethod
    def of(cls, folder: Path) -> RunDir:
        """The paths of an existing run; that `folder` is one is not checked. Its name ends with the id, which has two
        hyphens in it."""
        path = folder.resolve()
        name, *run_id = path.name.rsplit("-", 3)
        return cls(path, name, "-".join(run_id))

    def make(self, job: Job, resumed: Path | None = None) -> None:
        """Make the folder, with the resolved job in it."""
        self.logs.mkdir(parents=True)
        self.checkpoints.mkdir()
        self.config.write_text(job_file.to_yaml(job), encoding="utf-8")
        if resumed is not None:
            (self.path / RESUMED_FROM).write_text(f"{resumed}\n", encoding="utf-8")

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def owner(self) -> Path:
        return self.path / "launcher.json"

    @property
    def cluster(self) -> Path:
        return self.path / "cluster.json"

    @property
    def stages(self) -> Path:
        return self.path / "launcher.log"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def traces(self) -> Path:
        return self.path / "traces"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def mark_attempt_in_logs(self, attempt: int) -> None:
        """Add a line to every log that says that another attempt begins."""
        for log in self.logs.glob("rank-*.log"):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{ATTEMPT}{attempt} ========\n")

    def append(self, event: Event) -> None:
        """Add a line to events.jsonl."""
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(event)) + "\n")

    def append_to_log(self, rank: int, text: str) -> None:
        """Add a worker's output to its log."""
        with self.log(rank).open("a", encoding="utf-8") as log:
            log.write(text)

    def write_owner(self) -> None:
        """Record that this process carries out the run. Its start time is recorded, too, since pids are reused."""
        me = psutil.Process()
        _write_json(self.owner, {"host": socket.gethostname(), "pid": me.pid, "started_at": me.create_time()})

    def write_cluster(self, where: dict[str, Any]) -> None:
        _write_json(self.cluster, where)

    def write_plan(self, plan: dict[str, Any]) -> None:
        _write_json(self.plan, plan)

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write_json(self.summary, summary)


def new_id() -> str:
    """Date and time with some random letters, so that runs sort by age and no two have the same id."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def last_traceback(text: str, max_lines: int = 60) -> str:
    """The last traceback in a log, of the last attempt, with what follows it; without a traceback the last lines. The
    list of C++ frames that torch appends to some errors is left out."""
    _, separator, last = text.rpartition(ATTEMPT)
    lines = last.rstrip().splitlines()[1 if separator else 0 :]
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return "\n".join(lines[-20:])
    shown = "\n".join(lines[starts[-1] :]).partition("\n\nAt:\n")[0]
    return "\n".join(shown.splitlines()[-max_lines:])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file so that a reader sees the old content or the new, never a part of it."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, path)
