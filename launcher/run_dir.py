"""The folder of one run; every path in it is a property of `RunDir`.

runs/<name>-<id>/
    config.yaml     the job as resolved
    plan.json       which rank sits where, and the plan of the collectives
    events.jsonl    everything that happened, one JSON object a line
    summary.json    how it ended
    logs/rank-N.log
    checkpoints/
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import config
from launcher.events import Event, to_json
from launcher.job import Job


@dataclass(frozen=True)
class RunDir:
    """Paths of one run; `path` is absolute."""

    path: Path
    name: str
    id: str

    @classmethod
    def create(cls, job: Job) -> RunDir:
        """Make the folder of a new run, with the job as resolved in it."""
        run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
        run = cls(Path(job.runs_dir).resolve() / f"{job.name}-{run_id}", job.name, run_id)
        run.logs.mkdir(parents=True)
        run.checkpoints.mkdir()
        run.config.write_text(config.to_yaml(job), encoding="utf-8")
        return run

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

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

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def append(self, event: Event) -> None:
        """Add a line to events.jsonl."""
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(event)) + "\n")

    def write_plan(self, plan: dict[str, Any]) -> None:
        _write_json(self.plan, plan)

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write_json(self.summary, summary)


def last_words(text: str, max_lines: int = 60) -> str:
    """The last traceback in a log and what follows it, or its last lines if there is none. Of an error that torch's C++
    passed on, the list of places in torch is left out."""
    lines = text.rstrip().splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return "\n".join(lines[-20:])
    said = "\n".join(lines[starts[-1] :]).partition("\n\nAt:\n")[0]
    return "\n".join(said.splitlines()[-max_lines:])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write so that a reader sees the old content or the new, never half of it."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, path)
