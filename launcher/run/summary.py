"""The summary of a run, which `summary.json` holds and every command reads: (progress, problem) -> JSON."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

from launcher.monitor.terminal import format_placement
from launcher.record.run_state import Failure, launcher_failure
from launcher.run.context import RunProgress

VERSIONS_OF = ("narrowgauge", "torch", "ray", "numba", "numpy")
OWN_KEYS = ("heldout_loss", "collectives")
"""Notes that have a key of their own in the summary."""


def summarize(run: RunProgress, problem: str | None) -> dict[str, Any]:
    """How a run ended.

    Args:
        problem: why the launcher itself gave up, if it did; no rank is to blame then.
    """
    job, supervisor, tally, context = run.job, run.supervisor, run.tally, run.context
    first_step_at = run.first_step_at or (tally.first.at if tally.first else None)
    return {
        "name": job.name,
        "id": run.dir.id,
        "status": "failed" if problem else supervisor.status,
        "folder": str(run.dir.path),
        "backend": job.collectives.backend,
        "resumed_from": str(context.resumed) if context.resumed else None,
        "attempts": [attempt.to_json() for attempt in run.attempts],
        "world_size": supervisor.world_size,
        "hosts": format_placement(run.seats),
        **tally.figures(),
        "heldout_loss": tally.notes.get("heldout_loss"),
        "seconds_to_first_step": first_step_at - context.submitted_at if first_step_at else None,
        "wall_s": time.time() - context.submitted_at,
        "collectives": tally.notes.get("collectives"),
        "plan": tally.plan,
        "notes": {name: value for name, value in tally.notes.items() if name not in OWN_KEYS},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
        "failure": launcher_failure(problem) if problem else _failure(run),
    }


def _failure(run: RunProgress) -> dict[str, Any] | None:
    """The cause, and those who failed besides it."""
    cause = run.supervisor.cause
    if cause is None:
        return None
    others = [_failed_rank(run, failure) for failure in run.supervisor.failures if failure is not cause]
    return {**_failed_rank(run, cause), "others": others}


def _failed_rank(run: RunProgress, failure: Failure) -> dict[str, Any]:
    rank = failure.rank
    host = run.seats[rank].host if rank is not None else None
    log = str(run.dir.log(rank)) if rank is not None else None
    return {"rank": rank, "host": host, "what": failure.what, "log": log}
