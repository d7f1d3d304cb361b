"""Hands the metrics of a run to Ray, whose agent on the submitting node offers them to Prometheus some 10 s later.

Beside cluster.py this is the only file that imports ray: metrics need no cluster of ours, only that Ray is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

from launcher.monitor.metrics import METRICS, RunMetrics
from launcher.record.events import Event
from launcher.record.seats import RankPlacement
from launcher.record.tally import Line


class RayMetrics:
    """A watcher of one run; Ray must be up."""

    def __init__(self, run: str, seats: Sequence[RankPlacement]) -> None:
        self._meter = RunMetrics(len(seats))
        self._run = {"run": run}
        self._of_rank = [{**self._run, "rank": str(seat.rank), "host": seat.host} for seat in seats]
        self._made: dict[str, Any] = {
            metric.name: (Gauge if metric.kind == "gauge" else Counter)(
                metric.name, metric.meaning, tag_keys=("run", "rank", "host") if metric.of_rank else ("run",)
            )
            for metric in METRICS
        }

    def on(self, event: Event, lines: Sequence[Line]) -> None:
        for update in self._meter.on(event, lines):
            made = self._made[update.metric]
            tags = self._run if update.rank is None else self._of_rank[update.rank]
            if isinstance(made, Gauge):
                made.set(update.value, tags)
            else:
                made.inc(update.value, tags)

    def close(self) -> None:
        """Nothing to do: Ray sends what there is when it ends."""
