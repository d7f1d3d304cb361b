"""Which runs there are, on this machine and on a cluster, and which one a word means."""

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
"""killed: whoever carried it out is gone and left no summary. unknown: it is on another machine."""


@dataclass(frozen=True)
class Known:
    """A run that has a folder here, or is known to a cluster, or both.

    Args:
        name: of its folder, `<name of the job>-<id>`.
        folder: here, if there is one.
        address: of the cluster that it was handed to, if it was.
        written_here: the folder is written by whoever carries the run out, so it is up to date.
    """

    name: str
    folder: Path | None
    address: str | None
    written_here: bool = True


def here(runs_dir: Path) -> list[Known]:
    """The runs that have a folder in `runs_dir`, oldest first."""
    folders = [path.parent for path in runs_dir.glob("*/config.yaml")] if runs_dir.is_dir() else []
    return [of_folder(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime)]


def of_folder(folder: Path) -> Known:
    """The run that has this folder."""
    cluster = read(folder / "cluster.json")
    written = cluster is None or (folder / "launcher.json").exists() or (folder / "summary.json").exists()
    return Known(folder.name, folder, cluster["address"] if cluster else None, written)


def the_one(word: str, known: Sequence[Known], where: str) -> Known:
    """The run that a word means: its whole name, or the beginning of its name that no other has.

    Args:
        where: it was looked for, for people.

    Raises:
        RunError: none does, or several do.
    """
    exact = [run for run in known if run.name == word]
    fitting = exact or [run for run in known if run.name.startswith(word)]
    if len(fitting) == 1:
        return fitting[0]
    names = [run.name for run in (fitting or known)]
    shown = ", ".join(names[-5:]) + (f" and {len(names) - 5} older" if len(names) > 5 else "")
    if fitting:
        raise RunError(f"{len(fitting)} runs begin with {word!r}: {shown}; give more of the name")
    raise RunError(
        f"no run {word!r} {where}; "
        + (f"there: {shown}" if known else "there is none")
        + "; `--runs FOLDER` and `--address HOST:PORT` say where else to look"
    )


def state_here(folder: Path) -> State:
    """What a run that this machine, or one with the same folder, carries out is doing."""
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


def state_there(ray_state: str, summary: dict[str, Any] | None) -> State:
    """What a run on a cluster is doing, by what Ray says of its job and by its summary, if there is one."""
    if summary is not None:
        state: State = summary["status"]
        return state
    states: dict[str, State] = {"PENDING": "waiting", "RUNNING": "running", "STOPPED": "stopped"}
    return states.get(ray_state, "finished" if ray_state == "SUCCEEDED" else "failed")


def process_of(owner: dict[str, Any]) -> psutil.Process | None:
    """The process that carries out a run on this machine, if it lives: pids are used again, so its age counts, too."""
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started_at"]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file of a run, if it is there."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
