"""Passes the metrics of a run to Ray, whose agent on the driver's node exports them to Prometheus about 10 s later.

Ray's own exporter and not one of ours: its port is known to those who scrape the cluster already, and it outlives the
run.
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
    """The watcher of one run. Ray must be initialized."""

    def __init__(self, run: str, seats: Sequence[RankPlacement]) -> None:
        self._metrics = RunMetrics(len(seats))
        self._run = {"run": run}
        self._of_rank = [{**self._run, "rank": str(seat.rank), "host": seat.host} for seat in seats]
        self._instruments: dict[str, Any] = {
            metric.name: (Gauge if metric.kind == "gauge" else Counter)(
                metric.name, metric.meaning, tag_keys=("run", "rank", "host") if metric.of_rank else ("run",)
            )
            for metric in METRICS
        }

    def on(self, event: Event, lines: Sequence[Line]) -> None:
        for update in self._metrics.on(event, lines):
            instrument = self._instruments[update.metric]
            tags = self._run if update.rank is None else self._of_rank[update.rank]
            if isinstance(instrument, Gauge):
                instrument.set(update.value, tags)
            else:
                instrument.inc(update.value, tags)

    def close(self) -> None:
        """Nothing to do: Ray sends the last values at its shutdown."""
