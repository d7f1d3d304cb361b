"""What can go wrong before or around a run. What goes wrong inside one is a `supervisor.Failure`, not an exception.

LauncherError
├── ConfigError (ValueError)      the job file, or what it points to, is wrong; nothing was started
├── ClusterError (RuntimeError)   Ray could not be reached or has no room; nothing was started
├── LabError (RuntimeError)       a lab can't be made, found or changed; what was half made is gone again
└── EntrypointError (ValueError)  in a worker: the entrypoint is not there
"""

from __future__ import annotations

from dataclasses import dataclass


class LauncherError(Exception):
    """Root of everything that this package raises on purpose."""


class ClusterError(LauncherError, RuntimeError):
    """Ray could not be started or reached, or has no room for the workers."""


class LabError(LauncherError, RuntimeError):
    """A lab could not be made, found or changed."""


class EntrypointError(LauncherError, ValueError):
    """The module, file or function that a worker should run is not there."""


@dataclass(frozen=True)
class Place:
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
        place: Place,
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
