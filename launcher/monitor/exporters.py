"""Who else wants to see the events of a run: metrics for Prometheus, scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from launcher.config.job import Job
from launcher.record.events import Event
from launcher.record.run_dir import RunDir
from launcher.record.seats import RankPlacement
from launcher.record.tally import Line


class Watcher(Protocol):
    """Gets each event, together with the lines of progress that it completed, and a last call at the end."""

    def on(self, event: Event, lines: Sequence[Line]) -> None: ...

    def close(self) -> None: ...


def watchers(job: Job, run_dir: RunDir, seats: Sequence[RankPlacement]) -> list[Watcher]:
    """Those of this job; Ray must be up.

    Raises:
        OSError: the folder of the scalars can't be made.
    """
    from launcher.monitor.prometheus import RayMetrics

    found: list[Watcher] = [RayMetrics(run_dir.path.name, seats)]
    if job.tensorboard:
        from launcher.monitor.tensorboard import Scalars  # tensorboard is an optional dependency

        found.append(Scalars(run_dir.tensorboard))
    return found
