"""Which run `launcher submit --resume RUN` means."""

from __future__ import annotations

import difflib
from pathlib import Path

from launcher.checkpoint import files
from launcher.config.job import Job
from launcher.errors import ConfigError, SourcePosition
from launcher.record.run_dir import RESUMED_FROM


def find(run: str, job: Job) -> Path:
    """The folder of the run to resume.

    A run that was itself resumed and has no checkpoint yet stands for the one that it resumed: a job that fails again
    and again in its first steps can be resumed by its newest name. On a cluster by address checkpoints may be where
    only rank 0 sees them, so the run is taken as named if none are visible here; rank 0 raises if it sees none either.

    Args:
        run: a run's folder, or its name under the job's runs_dir.

    Raises:
        ConfigError: there is no such run, or it has no checkpoint.
    """
    place = SourcePosition(f"--resume {run}")
    runs = Path(job.runs_dir).resolve()
    named = next((path for path in (runs / run, Path(run).resolve()) if (path / "config.yaml").is_file()), None)
    if named is None:
        raise _no_run(place, run, runs)
    seen = [named]
    # A chain of resumed runs; a run that was seen before would make it endless.
    while not files.steps(seen[-1] / "checkpoints"):
        record = seen[-1] / RESUMED_FROM
        earlier = Path(record.read_text(encoding="utf-8").strip()) if record.is_file() else None
        if (earlier is None or earlier in seen) and job.cluster.address is not None:
            return named
        if earlier is None or earlier in seen:
            raise ConfigError(
                place,
                "this run has no checkpoint",
                got=str(seen[-1] / "checkpoints"),
                wanted="a folder step-N in it, as launcher.checkpoint writes",
                next_step="submit without --resume. Scripts that use launcher.checkpoint save with "
                "checkpoint: {every_steps: ...}",
            )
        seen.append(earlier)
    return seen[-1]


def _no_run(place: SourcePosition, run: str, runs: Path) -> ConfigError:
    names = sorted(path.name for path in runs.iterdir() if (path / "config.yaml").is_file()) if runs.is_dir() else []
    nearest = next(iter(difflib.get_close_matches(run, names, n=1, cutoff=0.5)), None)
    newest = max(names, key=lambda name: (runs / name).stat().st_mtime, default=None)
    return ConfigError(
        place,
        "no such run",
        got=run,
        wanted=f"the folder of a run, or its name in {runs}" + (f", such as {newest}" if newest else ""),
        nearest=nearest,
    )
