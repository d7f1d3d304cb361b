"""A run that somebody looks at, wherever it is: its folder, whether it is over, and how to wait for more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.errors import ClusterError
from launcher.monitor.columns import RunRow
from launcher.monitor.columns import status as as_status
from launcher.record import catalog
from launcher.record.catalog import Known, State
from launcher.record.replay import Reader
from launcher.record.run_dir import RunDir
from launcher.record.run_state import launcher_failure
from launcher.remote.client import RunFollower, early_end
from launcher.remote.ray_jobs import ClusterRun, Jobs


class Opened:
    """A run, for the time of a block."""

    def __init__(self, known: Known, jobs: Jobs | None = None) -> None:
        """
        Raises:
            ClusterError: its cluster can't be reached, and without it nothing is known.
        """
        self.known = known
        self._summary = catalog.read(known.folder / "summary.json") if known.folder else None
        asks = known.address is not None and self._summary is None
        self.jobs = (jobs or Jobs(str(known.address))) if asks else None
        self._found = self.jobs.one(known.name) if self.jobs else None
        self._watch = (
            RunFollower(self.jobs, self._found) if self.jobs and self._found and not known.written_here else None
        )

    def __enter__(self) -> Opened:
        if self._watch is not None:
            self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._watch is not None:
            if self._watch.over and self.known.folder is not None and (self._watch.folder / "summary.json").exists():
                self._watch.settle(self.known.folder)
            self._watch.__exit__(*error)

    @property
    def folder(self) -> Path:
        """The run's folder, or a copy that follows it."""
        if self._watch is not None:
            return self._watch.folder
        assert self.known.folder is not None
        return self.known.folder

    @property
    def over(self) -> bool:
        """Whether no more comes."""
        return self._watch.over if self._watch is not None else self.state() in catalog.OVER

    def catch_up(self) -> None:
        """Take in what there is now."""
        if self._watch is not None:
            self._watch.catch_up()

    def follow(self) -> None:
        """Follow the run from now on."""
        if self._watch is not None:
            self._watch.start()

    def advance(self, timeout_s: float) -> None:
        """Wait for more, at most that long."""
        if self._watch is not None:
            self._watch.advance(timeout_s)
        else:
            time.sleep(timeout_s)

    def state(self) -> State:
        """What the run is doing now."""
        if self.jobs is None:
            return catalog.state_here(self.folder)
        self._found = self.jobs.one(self.known.name)
        return catalog.state_there(self._found.state, catalog.read(self.folder / "summary.json"))

    def told(self, reader: Reader) -> dict[str, Any]:
        """What `launcher status` tells."""
        state, summary = self.state(), reader.summary()
        failure = summary["failure"] if summary else None
        if summary is None and self._found is not None and self._found.over:
            what = early_end(self._found, self._watch.others if self._watch else [])
            failure = launcher_failure(what)
        latest = reader.replay.tally.last
        row = RunRow(
            self.known.name,
            state,
            self._found.started_at if self._found else started_at(self.known),
            reader.replay.world_size,
            latest.step if latest else None,
            self.known.address,
        )
        return {**as_status(row, reader.seats(), reader.replay, failure), "folder": self._kept(summary)}

    def _kept(self, summary: dict[str, Any] | None) -> str | None:
        if self.known.folder is not None:
            return str(self.known.folder)
        return str(summary["folder"]) if summary else None


def rows(local: Sequence[Known], address: str | None) -> tuple[list[RunRow], list[str]]:
    """The lines of `launcher list`, oldest run first, and what is wrong with clusters that can't be asked."""
    clusters: dict[str, list[ClusterRun]] = {}
    unreachable: list[str] = []
    open_ones = {run.address for run in local if run.address and not (run.folder and _summary(run.folder))}
    for each in sorted({*open_ones, *([address] if address else [])}):
        try:
            clusters[each] = Jobs(each).all()
        except ClusterError as error:
            unreachable.append(str(error))
    there = {found.id: (each, found) for each, all_found in clusters.items() for found in all_found}
    listed = [_row_here(run, there.get(run.name)) for run in local]
    listed += [_row_there(*there[name]) for name in there if name not in {run.name for run in local}]
    return sorted(listed, key=lambda row: row.started_at or 0.0), unreachable


def _row_here(run: Known, there: tuple[str, ClusterRun] | None) -> RunRow:
    assert run.folder is not None
    summary = _summary(run.folder)
    state: State
    if run.address is None or summary:
        state = catalog.state_here(run.folder)
    else:
        state = catalog.state_there(there[1].state, None) if there else "unknown"
    step = summary["steps"] if summary else None
    ranks = summary["world_size"] if summary else None
    if summary is None:
        reader = Reader(run.folder)
        reader.new_lines()
        ranks, step = reader.replay.world_size, reader.replay.tally.last.step if reader.replay.tally.last else None
    return RunRow(run.name, state, started_at(run), ranks, step, run.address)


def _row_there(address: str, found: ClusterRun) -> RunRow:
    ranks = found.told["job"]["workers"]["count"]
    return RunRow(found.id, catalog.state_there(found.state, None), found.started_at, ranks, None, address)


def started_at(run: Known) -> float | None:
    """When a run was made, by its id, in seconds since 1970."""
    try:
        return datetime.strptime(RunDir.of(Path(run.name)).id[:15], "%Y%m%d-%H%M%S").timestamp()
    except ValueError:
        return None


def _summary(folder: Path) -> dict[str, Any] | None:
    return catalog.read(folder / "summary.json")
