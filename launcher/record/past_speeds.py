"""How fast the last run of a job was, from its folder: samples per second of each node, and the seconds of a step
besides forward, backward and waiting.

Samples are those that the attached model counted, else the reported tokens / the workload's tokens_per_sample.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.job import Job
from launcher.inventory.inventory import Rate
from launcher.record.events import Reported
from launcher.record.run_dir import RunDir


@dataclass(frozen=True)
class Earlier:
    """Speeds from an earlier run.

    Attributes:
        rates: samples per second of one worker, by "node/device".
        other_s: seconds of a step for optimizer, data and the like; the median rank's.
        step_bytes: of all messages of a step; None if there were none.
        rank_samples: of one rank in a step, the mean over ranks; None if unknown.
        run: name of its folder; None if no run has such figures.
    """

    rates: Mapping[str, Rate] = field(default_factory=dict)
    other_s: float = 0.0
    step_bytes: float | None = None
    rank_samples: float | None = None
    run: str | None = None


def earlier(job: Job, runs: Path | None = None) -> Earlier:
    """Speeds from the latest run of the same name whose reports contain samples.

    Args:
        runs: the folder of runs; None takes the job's.
    """
    found_in = (runs or Path(job.runs_dir)).glob(f"{job.name}-*/events.jsonl")
    own = [path for path in found_in if RunDir.of(path.parent).name == job.name]
    folders = sorted(own, key=lambda path: path.parent.name, reverse=True)
    for path in folders:
        try:
            seats = json.loads((path.parent / "plan.json").read_text(encoding="utf-8"))["seats"]
            events = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, KeyError):  # a run that ended before it had a plan
            continue
        found = from_reports(
            list(_reports(events)), _places(seats, job), path.parent.name, job.workload.tokens_per_sample
        )
        if found.rates:
            return found
    return Earlier()


def from_reports(
    reports: Sequence[Reported], places: Mapping[int, str], run: str, tokens_per_sample: float | None = None
) -> Earlier:
    """Speeds from the reports of a run; each rank's first one is left out, since it contains start-up costs.

    Args:
        places: "node/device" of each rank.
    """
    by_place: dict[str, list[float]] = {}
    others: list[float] = []
    step_bytes: list[float] = []
    rank_samples: list[float] = []
    for rank, place in places.items():
        own = [report for report in reports if report.rank == rank]
        later = own[1:]
        samples, compute_s = sum(one.samples for one in later), sum(one.compute_s for one in later)
        if not samples and tokens_per_sample:
            samples = sum(one.tokens for one in later) / tokens_per_sample
        if samples > 0 and compute_s > 0:
            by_place.setdefault(place, []).append(samples / compute_s)
            steps, seconds = own[-1].step - own[0].step, own[-1].at - own[0].at
            if steps > 0:
                others.append((seconds - compute_s - sum(one.wait_s for one in later)) / steps)
                step_bytes.append(sum(one.num_bytes for one in later) / steps)
                rank_samples.append(samples / steps)
    rates = {place: Rate(value=statistics.median(found), source=f"run {run}") for place, found in by_place.items()}
    if not others:
        return Earlier(rates, run=run if rates else None)
    return Earlier(
        rates,
        max(0.0, statistics.median(others)),
        statistics.median(step_bytes) or None,
        statistics.mean(rank_samples),
        run,
    )


def _places(seats: Sequence[Mapping[str, Any]], job: Job) -> dict[int, str]:
    device = "cpu" if job.workers.per == "cpu" else None
    return {
        seat["rank"]: f"{seat['node']['name']}/{seat.get('device', device)}"
        for seat in seats
        if seat.get("device", device) is not None
    }


def _reports(lines: Sequence[str]) -> Iterator[Reported]:
    for line in lines:
        try:
            event = json.loads(line)
            if event.pop("event") == Reported.__name__:
                yield Reported(**event)
        except (ValueError, TypeError, KeyError):  # half a line of a run that was cut off, or another version's
            continue
