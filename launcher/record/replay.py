"""The current state of a run, from its folder: its events are applied again to the same classes by which the supervisor
decided, so that an observer arrives at the same state and the same lines. No I/O but reading."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config import job_file
from launcher.config.job import Job
from launcher.record.events import Event, Reported, Retried, Started, from_json
from launcher.record.run_dir import RunDir
from launcher.record.run_state import RunState
from launcher.record.seats import Node, RankPlacement
from launcher.record.tail import Tail
from launcher.record.tally import Line, Tally


@dataclass(frozen=True)
class RankProgress:
    """Of one rank between its last two reports. None means not known (yet).

    Args:
        share: its fraction of all ranks' samples, or of their tokens if the model is not attached.
        compute_s: seconds of forward and backward per step.
        wait_s: seconds waited for communication per step.
        bytes_per_s: bytes of messages per second.
        waits_for: the name of the rank that it waited for most, and the fraction of the time.
    """

    share: float | None = None
    compute_s: float | None = None
    wait_s: float | None = None
    bytes_per_s: float | None = None
    waits_for: tuple[str, float] | None = None


@dataclass
class Replay:
    """What is known of a run after the events so far."""

    world_size: int
    state: RunState = field(init=False)
    tally: Tally = field(init=False)
    interfaces: dict[int, str | None] = field(default_factory=dict)
    before: dict[int, Reported] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Reset what is known of the workers, for a new attempt."""
        self.state = RunState(self.world_size)
        self.tally = Tally(self.world_size)
        self.before.clear()

    def on(self, event: Event) -> list[Line]:
        """Apply an event; gives the lines of progress that it completes."""
        if isinstance(event, Retried):
            self.begin()
            return []
        if isinstance(event, Started):
            self.interfaces[event.rank] = event.interface
        if isinstance(event, Reported) and event.rank in self.tally.latest:
            self.before[event.rank] = self.tally.latest[event.rank]
        # The time of the event stands for the supervisor's clock; deadlines come out the same up to the nodes' clocks.
        self.state.apply(event, event.at)
        return self.tally.on(event)

    def mark_stopped(self) -> None:
        """Count failures as stops: the run was interrupted, which the events do not record."""
        for worker in self.state.workers:
            worker.state = "stopped" if worker.state == "failed" else worker.state

    def paces(self) -> list[RankProgress]:
        """The progress of each rank."""
        latest = self.tally.latest
        weights = {rank: _weight(report, self.before.get(rank)) for rank, report in latest.items()}
        total = sum(weights.values())
        return [
            _pace(latest.get(rank), self.before.get(rank), weights[rank] / total if total and rank in weights else None)
            for rank in range(self.world_size)
        ]


def _weight(last: Reported, before: Reported | None) -> float:
    """Samples or tokens per step."""
    return (last.samples or last.tokens) / max(last.step - before.step if before else 1, 1)


def _pace(last: Reported | None, before: Reported | None, share: float | None) -> RankProgress:
    if last is None or before is None or last.step <= before.step or last.at <= before.at:
        return RankProgress(share)
    steps, seconds = last.step - before.step, last.at - before.at
    name = max(last.waits, key=lambda name: last.waits[name], default=None)
    return RankProgress(
        share,
        compute_s=last.compute_s / steps if last.compute_s else None,
        wait_s=last.wait_s / steps,
        bytes_per_s=last.num_bytes / seconds,
        waits_for=(name, last.waits[name] / seconds) if name else None,
    )


class Reader:
    """Reads a run's folder as it grows."""

    def __init__(self, folder: Path) -> None:
        self.dir = RunDir.of(folder)
        self.job: Job = job_file.load_resolved(self.dir.config)
        self.replay = Replay(len(self.seats()) or self.job.workers.count)
        self._events = Tail(self.dir.events)
        self._stages = Tail(self.dir.stages)

    def new_lines(self) -> list[Line]:
        """Apply the new events; gives the lines of progress that they complete.

        A job with `workers: {max: ...}` may have fewer ranks than it asked for. The plan, which is written before any
        event, says how many.
        """
        seats = len(self.seats())
        if seats and seats != self.replay.world_size:
            self.replay = Replay(seats)
        events = [from_json(json.loads(line)) for line in self._events.new_lines()]
        return [line for event in events for line in self.replay.on(event)]

    def new_stages(self) -> list[str]:
        """New messages of the launcher, on a cluster."""
        return self._stages.new_lines()

    def summary(self) -> dict[str, Any] | None:
        """How the run ended, if it has."""
        return _json(self.dir.summary)

    def seats(self) -> list[RankPlacement]:
        """The placement of the ranks; empty until it is decided."""
        plan = _json(self.dir.plan) or {"seats": []}
        return [RankPlacement(**{**seat, "node": Node(**seat["node"])}) for seat in plan["seats"]]


def _json(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
