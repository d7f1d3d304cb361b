"""Which runs exist on this machine, their states, and which one a name on the command line means."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from launcher.errors import RunError

State = Literal["waiting", "running", "finished", "failed", "stopped", "killed", "unknown"]
OVER: tuple[State, ...] = ("finished", "failed", "stopped", "killed")
"""killed: the process that carried it out is gone without a summary. unknown: that process is on another machine."""


@dataclass(frozen=True)
class Known:
    """A run that has a folder here, or is known to a cluster, or both.

    Args:
        name: of its folder, `<name of the job>-<id>`.
        folder: on this machine, if there is one.
        address: of the cluster that it was submitted to, if it was.
        written_here: the folder is written by the process that carries out the run, and so is up to date.
    """

    name: str
    folder: Path | None
    address: str | None
    written_here: bool = True


def local_runs(runs_dir: Path) -> list[Known]:
    """The runs with a folder in `runs_dir`, oldest first."""
    folders = [path.parent for path in runs_dir.glob("*/config.yaml")] if runs_dir.is_dir() else []
    return [from_folder(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime)]


def from_folder(folder: Path) -> Known:
    """The run of this folder."""
    cluster = read(folder / "cluster.json")
    # A driver on shared storage writes launcher.json here. Without that the folder has only what the submitter wrote.
    written = cluster is None or (folder / "launcher.json").exists() or (folder / "summary.json").exists()
    return Known(folder.name, folder, cluster["address"] if cluster else None, written)


def resolve_name(word: str, known: Sequence[Known], where: str) -> Known:
    """The run that a word names: by its whole name, or by a beginning of its name that no other run has.

    Args:
        where: the runs were searched for, as text for the error.

    Raises:
        RunError: it names none, or several.
    """
    exact = [run for run in known if run.name == word]
    matching = exact or [run for run in known if run.name.startswith(word)]
    if len(matching) == 1:
        return matching[0]
    names = [run.name for run in (matching or known)]
    shown = ", ".join(names[-5:]) + (f" and {len(names) - 5} older" if len(names) > 5 else "")
    if matching:
        raise RunError(f"{len(matching)} runs begin with {word!r}: {shown}; give more of the name")
    raise RunError(
        f"no run {word!r} {where}; "
        + (f"found: {shown}" if known else "there is none")
        + "; use `--runs FOLDER` and `--address HOST:PORT` to search elsewhere"
    )


def local_state(folder: Path) -> State:
    """The state of a run that is carried out on this machine, or on another one with the same folder."""
    summary = read(folder / "summary.json")
    if summary is not None:
        state: State = summary["status"]
        return state
    owner = read(folder / "launcher.json")
    if owner is None:
        return "waiting"
    if owner["host"] != socket.gethostname():
        return "unknown"
    return "running" if process_of(owner) else "killed"


def cluster_state(ray_state: str, summary: dict[str, Any] | None) -> State:
    """The state of a run on a cluster, by its summary if there is one, else by Ray's state of its job."""
    if summary is not None:
        state: State = summary["status"]
        return state
    states: dict[str, State] = {"PENDING": "waiting", "RUNNING": "running", "STOPPED": "stopped"}
    return states.get(ray_state, "finished" if ray_state == "SUCCEEDED" else "failed")


def process_of(owner: dict[str, Any]) -> psutil.Process | None:
    """The process that carries out a run on this machine, if it is alive. Pids are reused, so the start time must match
    as well; a zombie is over, though its parent has not collected it yet."""
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started_at"]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


def read(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file of a run; None if it does not exist."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
