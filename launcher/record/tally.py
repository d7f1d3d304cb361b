"""Adds up the ranks' reports: (events) -> lines to show during the run, figures for the summary. No I/O.

Definitions, over the steps after the first report (the first one carries start-up costs):

    step_s           = (time of rank 0's last report - time of its first) / steps between
    tokens_per_s     = tokens of all ranks / the same time
    comm_wait_s      = mean over ranks of the seconds waited for communication / steps between
    comm_wait_share  = comm_wait_s / step_s
    loss             = mean of the losses of all ranks that reported the step, weighted by tokens if all report some

Times are those of the lowest rank that reported, usually rank 0, so that differences between clocks cancel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from launcher.record.events import Event, Noted, Planned, Reported


@dataclass(frozen=True)
class Line:
    """Progress since the previous line; `step_s` is seconds per step. None means not known (yet)."""

    step: int
    at: float
    of: int | None
    loss: float | None
    tokens_per_s: float | None = None
    step_s: float | None = None
    wait_share: float | None = None
    left_s: float | None = None


@dataclass
class Tally:
    """The sums so far; memory grows with the number of ranks, not of steps."""

    world_size: int
    first: Line | None = None
    last: Line | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    latest: dict[int, Reported] = field(default_factory=dict)
    _open: dict[int, dict[int, Reported]] = field(default_factory=dict)
    _tokens: int = 0
    _waited_s: float = 0.0

    def on(self, event: Event) -> list[Line]:
        """Apply an event; gives the lines that it completes."""
        if isinstance(event, Planned):
            self.plan = event.plan
        elif isinstance(event, Noted):
            for name, value in event.values.items():
                if event.rank == 0 or name not in self.notes:
                    self.notes[name] = value
        elif isinstance(event, Reported):
            self.latest[event.rank] = event
            if self.last is None or event.step > self.last.step:
                self._open.setdefault(event.step, {})[event.rank] = event
            return self._close(self._complete())
        return []

    def rest(self) -> list[Line]:
        """The lines of steps that not every rank has reported; call it once no more reports will come."""
        return self._close(sorted(self._open))

    def figures(self) -> dict[str, Any]:
        """steps, first_loss, final_loss, tokens_per_s, step_s, comm_wait_s and comm_wait_share; None where unknown."""
        first, last = self.first, self.last
        found: dict[str, Any] = {
            "steps": last.step if last else None,
            "first_loss": first.loss if first else None,
            "final_loss": last.loss if last else None,
            **dict.fromkeys(("tokens_per_s", "step_s", "comm_wait_s", "comm_wait_share")),
        }
        if first and last and last.step > first.step:
            seconds, steps = max(last.at - first.at, 1e-9), last.step - first.step
            found["tokens_per_s"] = self._tokens / seconds
            found["step_s"] = seconds / steps
            found["comm_wait_s"] = self._waited_s / steps
            found["comm_wait_share"] = self._waited_s / seconds
        return found

    def _complete(self) -> list[int]:
        """Steps that every rank has reported, or that rank 0 has gone past: a rank that reports every tenth step, or
        none, must not hold back the lines of the others."""
        at_first = self.latest[0].step if 0 in self.latest else 0
        return [step for step in sorted(self._open) if len(self._open[step]) == self.world_size or step < at_first]

    def _close(self, steps: list[int]) -> list[Line]:
        lines = []
        for step in steps:
            reports = self._open.pop(step)
            self.last = self._line(step, reports)
            self.first = self.first or self.last
            lines.append(self.last)
        return lines

    def _line(self, step: int, reports: dict[int, Reported]) -> Line:
        loss = _mean_loss([report for report in reports.values() if report.loss is not None])
        at, of = reports[min(reports)].at, reports[min(reports)].of
        if self.first is None or self.last is None:
            return Line(step, at, of, loss)
        tokens = sum(report.tokens for report in reports.values())
        waited_s = sum(report.wait_s for report in reports.values()) / len(reports)
        self._tokens += tokens
        self._waited_s += waited_s
        seconds = max(at - self.last.at, 1e-9)
        mean_s = (at - self.first.at) / (step - self.first.step)
        return Line(
            step=step,
            at=at,
            of=of,
            loss=loss,
            tokens_per_s=tokens / seconds if tokens else None,
            step_s=seconds / (step - self.last.step),
            wait_share=min(waited_s / seconds, 1.0),
            left_s=(of - step) * mean_s if of else None,
        )


def _mean_loss(reports: list[Reported]) -> float | None:
    """Weighted by tokens, since shares of a batch may differ; unweighted if some rank reports no tokens."""
    if not reports:
        return None
    weights = [report.tokens for report in reports]
    weights = weights if min(weights) > 0 and len(set(weights)) > 1 else [1] * len(reports)
    return sum((report.loss or 0.0) * weight for report, weight in zip(reports, weights, strict=True)) / sum(weights)
