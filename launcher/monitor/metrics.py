"""The metrics of a run for Prometheus: their names, and how events update them. No I/O and no Ray.

docs/reference/metrics.md is generated from this table. Ray puts "ray_" before each name. Sums are counters and not
gauges, so that a scrape that is missed loses nothing: rates and averages are left to the query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.record.events import Event, Planned, Reported
from launcher.record.tally import Line


@dataclass(frozen=True)
class Metric:
    """A gauge is the last value, a counter the sum over the run. With `of_rank` it has the tags rank and host besides
    run."""

    name: str
    kind: Literal["gauge", "counter"]
    of_rank: bool
    meaning: str


@dataclass(frozen=True)
class Update:
    """Set a gauge to `value`, or add it to a counter. A `rank` of None means the whole run."""

    metric: str
    value: float
    rank: int | None = None


METRICS = (
    Metric("narrowgauge_step", "gauge", False, "Steps done."),
    Metric("narrowgauge_steps", "gauge", False, "The last step that will be done, if the script reports it."),
    Metric("narrowgauge_loss", "gauge", False, "Loss, mean over ranks."),
    Metric("narrowgauge_step_seconds", "gauge", False, "Seconds per step since the report before."),
    Metric("narrowgauge_tokens_per_second", "gauge", False, "Tokens (or samples) of all ranks per second."),
    Metric("narrowgauge_wait_ratio", "gauge", False, "Share of the time spent waiting for communication, 0 to 1."),
    Metric(
        "narrowgauge_plan_seconds", "gauge", False, "Predicted seconds of the all-reduce that the plan was made for."
    ),
    Metric("narrowgauge_plans_total", "counter", False, "Plans that took effect; more than one if links changed."),
    Metric("narrowgauge_compute_seconds_total", "counter", True, "Seconds of forward and backward (attached models)."),
    Metric("narrowgauge_wait_seconds_total", "counter", True, "Seconds spent waiting for communication."),
    Metric("narrowgauge_message_bytes_total", "counter", True, "Bytes of all messages passed to collectives."),
    Metric("narrowgauge_tokens_total", "counter", True, "Tokens (or samples) trained on."),
    Metric("narrowgauge_batch_ratio", "gauge", True, "Share of the batch by samples (or tokens), 0 to 1."),
)


class RunMetrics:
    """Turns the events of a run into updates."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._amounts: dict[int, float] = {}

    def on(self, event: Event, lines: Sequence[Line]) -> list[Update]:
        """The updates for an event and the lines of progress that it completed (`Tally.on`)."""
        updates = [update for line in lines for update in _of_line(line)]
        if isinstance(event, Planned):
            predicted = event.plan.get("predicted_s")
            updates += [Update("narrowgauge_plan_seconds", float(predicted))] if predicted is not None else []
            updates.append(Update("narrowgauge_plans_total", 1.0))
        if isinstance(event, Reported):
            updates += self._of_report(event)
        return updates

    def _of_report(self, report: Reported) -> Iterator[Update]:
        for name, value in (
            ("narrowgauge_compute_seconds_total", report.compute_s),
            ("narrowgauge_wait_seconds_total", report.wait_s),
            ("narrowgauge_message_bytes_total", report.num_bytes),
            ("narrowgauge_tokens_total", report.tokens),
        ):
            if value > 0:
                yield Update(name, float(value), report.rank)
        amount = report.samples or report.tokens
        if amount > 0:
            self._amounts[report.rank] = amount
        # Once a round and not at each report: ratios out of reports of different steps would not add up to 1.
        if len(self._amounts) == self._world_size and report.rank == max(self._amounts):
            total = sum(self._amounts.values())
            for rank, each in self._amounts.items():
                yield Update("narrowgauge_batch_ratio", each / total, rank)


def _of_line(line: Line) -> Iterator[Update]:
    for name, value in (
        ("narrowgauge_step", line.step),
        ("narrowgauge_steps", line.of),
        ("narrowgauge_loss", line.loss),
        ("narrowgauge_step_seconds", line.step_s),
        ("narrowgauge_tokens_per_second", line.tokens_per_s),
        ("narrowgauge_wait_ratio", line.wait_share),
    ):
        if value is not None:
            yield Update(name, float(value))
