"""Errors before or around a run. A failure of a worker is a `run_state.Failure`, not an exception.

LauncherError
├── ConfigError (ValueError)        the job file, or a file it names, is wrong; nothing was started
├── ClusterError (RuntimeError)     Ray cannot be started or reached, or has no room; nothing was started
├── PackingError (ValueError)       the working directory cannot be sent to a cluster; nothing was started
├── RunError (ValueError)           no such run, or the command does not apply to it
├── LabError (RuntimeError)         a lab cannot be created, found or changed; a partly created one was removed
├── ReportError (ValueError)        not the folder of a run, or its files are not what the launcher wrote
├── EntrypointError (ValueError)    in a worker: the entrypoint does not exist
└── CheckpointError (RuntimeError)  in a worker: a checkpoint cannot be written, read or loaded
"""

from __future__ import annotations

from dataclasses import dataclass


class LauncherError(Exception):
    """Base class of the errors that this package raises on purpose."""


class ClusterError(LauncherError, RuntimeError):
    """Ray cannot be started or reached, or has no room for the workers."""


class PackingError(LauncherError, ValueError):
    """The working directory is too large to send, or cannot be read."""


class RunError(LauncherError, ValueError):
    """There is no such run, several match the name, or the command does not apply to it."""


class LabError(LauncherError, RuntimeError):
    """A lab cannot be created, found or changed."""


class ReportError(LauncherError, ValueError):
    """No report can be made of a run's folder."""


class EntrypointError(LauncherError, ValueError):
    """The module, file or function that a worker should run does not exist."""


class CheckpointError(LauncherError, RuntimeError):
    """A checkpoint cannot be written or read, or is of another model. Raised on all ranks together."""


@dataclass(frozen=True)
class SourcePosition:
    """A position in the user's input; lines and columns count from 1."""

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
    """One error in a job file, in lines: position and what, got, wanted, nearest, next.

    Attributes:
        place: file, line and column.
        others: how many more errors the same file has.
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
        lines += [f"  and {others} more error{'s' if others > 1 else ''} after this one"] if others else []
        super().__init__("\n".join(lines))
        self.place = place
        self.others = others


@dataclass(frozen=True)
class Contradiction:
    """Two parts of a lab file that contradict each other. `path` leads to the later one."""

    path: tuple[str | int, ...]
    what: str
    got: str
    wanted: str
    nearest: str | None = None
