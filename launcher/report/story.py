"""Sums over the events of a run: (events) -> points of the curves, totals of each rank, moments. No I/O.

Points and totals leave out each rank's first report, as `tally` does: its seconds include start-up and compiling. The
seconds of a point or a rank are split in three:

    computing   forward and backward pass of attached models (`collectives.attach`), if the script attaches one
    waiting     for communication
    rest        the remainder: data, optimizer, and computing where it is not measured

events.jsonl grows with steps x ranks and may have gigabytes, so events are added one by one and never kept. Memory is
bounded by `_MAX_HELD` points, the moments, and the totals of each rank.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from launcher.record.events import Event, Exited, Lost, Noted, Planned, Raised, Reported, Started
from launcher.record.run_state import signal_name
from launcher.record.tally import Line, Tally

MAX_POINTS = 1000
"""Of a curve: about one for each pixel of its width."""
_MAX_HELD = 4 * MAX_POINTS
"""Points held before they are thinned to half, so that thinning costs little per event."""
_MAX_MOMENTS = 200
"""Beyond this many only troubles and new plans are kept."""


@dataclass(frozen=True)
class Point:
    """Consecutive steps up to `step`, counted by `steps`. Seconds are totals of these steps, as the mean over ranks;
    `tokens` are the sum over ranks; `loss` is the mean over the steps that reported one. `at` is in seconds since 1970.
    """

    step: int
    at: float
    steps: int
    seconds: float
    tokens: float
    wait_s: float
    compute_s: float
    loss: float | None

    @property
    def rest_s(self) -> float:
        return max(0.0, self.seconds - self.wait_s - self.compute_s)


@dataclass
class Rank:
    """Totals of one rank since its first report, and its state. Times (`..._at`) are in seconds since 1970.

    Attributes:
        waits: seconds of waiting for each other rank, by "rank N".
    """

    started_at: float | None = None
    first_report_at: float | None = None
    last_report_at: float | None = None
    ended_at: float | None = None
    state: str = "not started"
    step: int | None = None
    compute_s: float = 0.0
    wait_s: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    num_bytes: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From its first report to its last."""
        return (self.last_report_at or 0.0) - (self.first_report_at or 0.0)

    @property
    def rest_s(self) -> float:
        return max(0.0, self.seconds - self.wait_s - self.compute_s)


@dataclass(frozen=True)
class Moment:
    """A line of the timeline. `kind` is "start", "step", "plan", "note", "trouble" or "end"."""

    at: float
    rank: int | None
    kind: str
    text: str


@dataclass
class Story:
    """The sums of a run, in the order in which things happened.

    Attributes:
        points: at most MAX_POINTS. The first report's point has 0 steps and 0 seconds.
        tally: the figures of summary.json.
    """

    ranks: dict[int, Rank]
    points: list[Point]
    moments: list[Moment]
    tally: Tally
    first_at: float | None
    last_at: float | None


def build(events: Iterable[Event], world_size: int) -> Story:
    """Sum up the events of a run, in their order."""
    builder = _Builder(world_size)
    for event in events:
        builder.on(event)
    return builder.story()


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most `most` points with the same sums. Runs of equally many neighbours are merged; dropping points instead
    would lose the slow steps between them."""
    run = -(-len(points) // most) if points else 1
    return [merged(points[start : start + run]) for start in range(0, len(points), run)] if run > 1 else points


def merged(points: list[Point]) -> Point:
    """One point for several consecutive ones."""
    losses = [point for point in points if point.loss is not None]
    weight = sum(max(point.steps, 1) for point in losses)  # the first report counts 0 steps, but has a loss
    return Point(
        step=points[-1].step,
        at=points[-1].at,
        steps=sum(point.steps for point in points),
        seconds=sum(point.seconds for point in points),
        tokens=sum(point.tokens for point in points),
        wait_s=sum(point.wait_s for point in points),
        compute_s=sum(point.compute_s for point in points),
        loss=sum((point.loss or 0.0) * max(point.steps, 1) for point in losses) / weight if losses else None,
    )


class _Builder:
    """Adds events one by one. What it keeps grows with ranks, not with steps."""

    def __init__(self, world_size: int) -> None:
        self._tally = Tally(world_size)
        self._ranks = {rank: Rank() for rank in range(world_size)}
        self._points: list[Point] = []
        self._moments: list[Moment] = []
        self._compute_s: dict[int, float] = {}  # by step, of all ranks, until the tally has a line for the step
        self._before: Line | None = None
        self._first_at: float | None = None
        self._last_at: float | None = None
        self._fingerprint: Any = None

    def on(self, event: Event) -> None:
        # By min and max, since events of several ranks are not in order.
        self._first_at = event.at if self._first_at is None else min(event.at, self._first_at)
        self._last_at = event.at if self._last_at is None else max(event.at, self._last_at)
        rank = self._ranks.setdefault(event.rank, Rank())
        if isinstance(event, Reported):
            self._reported(rank, event)
        elif isinstance(event, Planned):
            self._planned(event)
        else:
            self._happened(rank, event)

    def story(self) -> Story:
        self._add(self._tally.rest())
        # Ranks have clocks of their own, and their events arrive in any order.
        self._moments.sort(key=lambda moment: moment.at)
        points = thinned(self._points, MAX_POINTS)
        return Story(self._ranks, points, self._moments, self._tally, self._first_at, self._last_at)

    def _reported(self, rank: Rank, report: Reported) -> None:
        if rank.first_report_at is None:
            rank.first_report_at = report.at
            if report.rank == 0:
                self._note(report.at, 0, "step", f"first report, at step {report.step}")
        else:
            rank.compute_s += report.compute_s
            rank.wait_s += report.wait_s
            rank.samples += report.samples
            rank.tokens += report.tokens
            rank.num_bytes += report.num_bytes
            for name, seconds in report.waits.items():
                rank.waits[name] = rank.waits.get(name, 0.0) + seconds
            self._compute_s[report.step] = self._compute_s.get(report.step, 0.0) + report.compute_s
        rank.last_report_at, rank.step = report.at, report.step
        self._add(self._tally.on(report))

    def _add(self, lines: list[Line]) -> None:
        for line in lines:
            before, self._before = self._before, line
            steps = line.step - before.step if before else 0  # scripts may report every few steps
            seconds = (line.step_s or 0.0) * steps
            # Ranks report the same steps, but a line is complete only when the last rank has.
            reported = [step for step in self._compute_s if step <= line.step]
            compute_s = sum(self._compute_s.pop(step) for step in reported) / len(self._ranks)
            tokens, wait_s = (line.tokens_per_s or 0.0) * seconds, (line.wait_share or 0.0) * seconds
            self._points.append(
                Point(line.step, line.at, steps, seconds, tokens, wait_s, compute_s if before else 0.0, line.loss)
            )
        if len(self._points) > _MAX_HELD:
            self._points = thinned(self._points, _MAX_HELD // 2)

    def _planned(self, event: Planned) -> None:
        self._tally.on(event)
        plan = event.plan
        again = self._fingerprint is not None  # the engine plans anew when it measures other links
        self._fingerprint = plan.get("fingerprint", 0)
        words = f"{'new plan' if again else 'plan'}: {plan.get('algorithm', '?')}"
        limit = f", limited by {plan['bottleneck']}" if plan.get("bottleneck") else ""
        self._note(event.at, event.rank, "plan", words + limit)

    def _happened(self, rank: Rank, event: Event) -> None:
        """What changes a rank's state or is only a line of the timeline."""
        kind, text = "note", ""
        if isinstance(event, Started):
            rank.started_at, rank.ended_at, rank.state = event.at, None, "running"
            kind, text = "start", f"process {event.pid} started"
        elif isinstance(event, Exited):
            rank.ended_at = event.at
            rank.state, kind, text = _end(event.code)
        elif isinstance(event, Lost):
            rank.ended_at, rank.state = event.at, "lost"
            kind, text = "trouble", event.reason
        elif isinstance(event, Raised):
            kind, text = "trouble", f"{event.kind}: {event.message}"
        elif isinstance(event, Noted):
            self._tally.on(event)
            text = ", ".join(f"{name}: {value}" for name, value in event.values.items() if name != "collectives")
        else:
            text = _in_words(event)
        if text:
            self._note(event.at, event.rank, kind, text)

    def _note(self, at: float, rank: int, kind: str, text: str) -> None:
        """Keep a moment: starts and notes only while there is room, troubles and plans always."""
        if len(self._moments) < _MAX_MOMENTS or kind in ("trouble", "plan"):
            self._moments.append(Moment(at, rank, kind, text))


def _in_words(event: Event) -> str:
    """Name and fields of an event that has no case of its own here, such as one of a newer version."""
    values = [f"{each.name} {getattr(event, each.name)}" for each in fields(event) if each.name not in ("rank", "at")]
    return ", ".join([type(event).__name__, *values])


def _end(code: int) -> tuple[str, str, str]:
    """State of the rank, kind of moment and text for an exit status.

    SIGTERM is no failure of the rank: the launcher sends it to the others after a failure, and to all on `stop`.
    """
    if code == 0:
        return "finished", "end", "ended with status 0"
    if code == -signal.SIGTERM:
        return "stopped", "end", f"stopped by {signal_name(signal.SIGTERM)}"
    if code < 0:
        return "failed", "trouble", f"killed by {signal_name(-code)}"
    return "failed", "trouble", f"ended with status {code}"
