"""What can go wrong before or around a run. What goes wrong inside one is a `supervisor.Failure`, not an exception.

LauncherError
├── ConfigError (ValueError)      the job file, or what it points to, is wrong; nothing was started
├── ClusterError (RuntimeError)   Ray could not be reached or has no room; nothing was started
├── PackingError (ValueError)     the working directory can't travel to a cluster; nothing was started
├── RunError (ValueError)         no such run, or not what can be done with it
├── LabError (RuntimeError)       a lab can't be made, found or changed; what was half made is gone again
├── ReportError (ValueError)      not the folder of a run, or its files are not what the launcher wrote
├── EntrypointError (ValueError)  in a worker: the entrypoint is not there
└── CheckpointError (RuntimeError)  in a worker: a checkpoint can't be written, read or loaded
"""

from __future__ import annotations

from dataclasses import dataclass


class LauncherError(Exception):
    """Root of everything that this package raises on purpose."""


class ClusterError(LauncherError, RuntimeError):
    """Ray could not be started or reached, or has no room for the workers."""


class PackingError(LauncherError, ValueError):
    """The working directory is too large to travel, or can't be read."""


class RunError(LauncherError, ValueError):
    """There is no such run, or it is over, or several have that name."""


class LabError(LauncherError, RuntimeError):
    """A lab could not be made, found or changed."""


class ReportError(LauncherError, ValueError):
    """A run's folder can't be reported on."""


class EntrypointError(LauncherError, ValueError):
    """The module, file or function that a worker should run is not there."""


class CheckpointError(LauncherError, RuntimeError):
    """A checkpoint could not be written or read, or is of another model; raised on all ranks alike."""


@dataclass(frozen=True)
class SourcePosition:
    """Where in the user's input something stands; lines and columns count from 1."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        if self.line is None:
            return self.source
        if self.column is None:
            return f"{self.source}, line {self.line}"
        return f"{self.source}, line {self.line}, column {self.column}"


class ConfigError(LauncherError, ValueError):
    """One mistake in a job file, told as place, what, got, wanted, nearest and next.

    Attributes:
        place: file, line and column of the mistake.
        others: how many more mistakes the same file has.
    """

    def __init__(
        self,
        place: SourcePosition,
        what: str,
        *,
        got: str | None = None,
        wanted: str | None = None,
        nearest: str | None = None,
        next_step: str | None = None,
        others: int = 0,
    ) -> None:
        lines = [f"{place}: {what}"]
        lines += [f"  got:     {got}"] if got else []
        lines += [f"  wanted:  {wanted}"] if wanted else []
        lines += [f"  nearest: {nearest}"] if nearest else []
        lines += [f"  next:    {next_step}"] if next_step else []
        lines += [f"  and {others} more mistake{'s' if others > 1 else ''} after this one"] if others else []
        super().__init__("\n".join(lines))
        self.place = place
        self.others = others


@dataclass(frozen=True)
class Contradiction:
    """Two parts of a lab file that don't fit together. `path` leads to the later one."""

    path: tuple[str | int, ...]
    what: str
    got: str
    wanted: str
    nearest: str | None = None
