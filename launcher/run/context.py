"""What a run knows of itself: where it is carried out (fixed), and how far it is (changes with every event)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from launcher.config.job import Job
from launcher.monitor.exporters import Watcher
from launcher.monitor.terminal import PlainView
from launcher.record.run_dir import RunDir
from launcher.record.seats import RankPlacement
from launcher.record.tally import Tally
from launcher.run.restart_policy import Attempt, Verdict, decide
from launcher.run.supervisor import Supervisor


@dataclass(frozen=True)
class RunContext:
    """Where a run is carried out.

    Args:
        dir: its folder.
        submitted_at: when the user submitted it, in seconds since 1970.
        cwd: where the workers start; None: where Ray unpacked the working directory on each node.
        force_requested: called at an interrupt; whether the workers are to be killed at once.
        resumed: the folder of the run whose checkpoints this one continues from.
        remembered: what the submitting machine remembers of the cluster, from `known_machines.cached_json`.
    """

    dir: RunDir
    submitted_at: float
    cwd: str | None
    force_requested: Callable[[], bool] = lambda: False
    resumed: Path | None = None
    remembered: str | None = None

    @classmethod
    def here(cls, job: Job, resumed: Path | None = None) -> RunContext:
        """For a run that this process was started for, in the working directory."""
        # Not time.time(): the seconds that Python took to import us belong to the time to the first step.
        submitted_at = psutil.Process().create_time()
        return cls(RunDir.create(job, resumed), submitted_at, os.getcwd(), resumed=resumed)


@dataclass
class RunProgress:
    """Everything known of a run while it lasts. `supervisor`, `tally` and `seats` are those of the current attempt."""

    job: Job
    context: RunContext
    view: PlainView
    supervisor: Supervisor = field(init=False)
    tally: Tally = field(init=False)
    seats: list[RankPlacement] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    started_at: float | None = None
    """When the workers of the first attempt were started."""
    attempts: list[Attempt] = field(default_factory=list)
    first_step_at: float | None = None
    saved: bool = False
    """Whether a checkpoint of this run was written."""

    def __post_init__(self) -> None:
        # A run that fails before its workers start has a summary, too, and that asks both.
        count = self.job.workers.count
        self.supervisor, self.tally = Supervisor(count, time.time(), self.job.timeout_s), Tally(count)

    @property
    def dir(self) -> RunDir:
        return self.context.dir

    @property
    def resume_from(self) -> Path | None:
        """Checkpoints that must be there. The run's own as soon as it has some: a rank 0 on another node that does not
        see them has to fail instead of starting at step 0."""
        folder = self.dir.path if self.saved else self.context.resumed
        return folder / "checkpoints" if folder else None

    def begin_attempt(self) -> None:
        """Reset what is known of the workers. `timeout_s` covers all attempts, so this one gets what is left of it."""
        # As many ranks as were placed, which a job with workers.max may have fewer of than it asked for.
        count, now = len(self.seats), time.time()
        used_s = now - self.started_at if self.started_at else 0.0
        limit_s = max(0.0, self.job.timeout_s - used_s) if self.job.timeout_s is not None else None
        self.supervisor, self.tally = Supervisor(count, now, limit_s), Tally(count)

    def mark_started(self) -> None:
        """Start the clock of the attempt; what was done before, such as compiling the engine, is not counted."""
        self.supervisor.started_at = time.time()
        self.started_at = self.started_at or self.supervisor.started_at

    def end_attempt(self) -> Verdict:
        """Record how the workers ended, and decide whether to start them again."""
        last = self.tally.last
        self.first_step_at = self.first_step_at or (self.tally.first.at if self.tally.first else None)
        self.attempts.append(
            Attempt(len(self.attempts) + 1, self.supervisor.status, self.supervisor.cause, last.step if last else None)
        )
        return decide(self.attempts, self.job.retries)

    def write_plan(self) -> None:
        self.dir.write_plan({"seats": [asdict(seat) for seat in self.seats], "collectives": self.tally.plan})
