"""Receivers of a run's events besides its record and its view: metrics for Prometheus, scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from launcher.config.job import Job
from launcher.record.events import Event
from launcher.record.run_dir import RunDir
from launcher.record.seats import RankPlacement
from launcher.record.tally import Line


class Watcher(Protocol):
    """Called in the loop of the run, for each event with the lines of progress that it completed, and once at the end.
    It must not block: an exporter that waits for a server would hold up the supervisor, too."""

    def on(self, event: Event, lines: Sequence[Line]) -> None: ...

    def close(self) -> None: ...


def watchers(job: Job, run_dir: RunDir, seats: Sequence[RankPlacement]) -> list[Watcher]:
    """The exporters of this job. Ray must be initialized.

    Raises:
        OSError: the folder for TensorBoard cannot be made.
    """
    from launcher.monitor.prometheus import RayMetrics

    found: list[Watcher] = [RayMetrics(run_dir.path.name, seats)]
    if job.tensorboard:
        from launcher.monitor.tensorboard import Scalars  # tensorboard is an optional dependency

        found.append(Scalars(run_dir.tensorboard))
    return found
