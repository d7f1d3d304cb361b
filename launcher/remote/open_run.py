"""A run to be observed, wherever it is: its folder, whether it is over, and how to wait for more.

Three cases, which the commands need not distinguish: the run is carried out here; on a cluster that shares this
machine's storage, so that its folder is up to date; or on a cluster without that, whose folder is followed through the
feed.
"""

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
from launcher.remote.client import RunFollower, explain_missing_summary
from launcher.remote.ray_jobs import ClusterRun, Jobs


class OpenRun:
    """A run, for the duration of a block."""

    def __init__(self, known: Known, jobs: Jobs | None = None) -> None:
        """Find out where the run is observed.

        Args:
            jobs: its cluster, if the caller is connected to it already.

        Raises:
            ClusterError: its cluster cannot be reached. A run that has a summary here needs no cluster.
        """
        self.known = known
        self._summary = catalog.read(known.folder / "summary.json") if known.folder else None
        needs_cluster = known.address is not None and self._summary is None
        self.jobs = (jobs or Jobs(str(known.address))) if needs_cluster else None
        self._found = self.jobs.one(known.name) if self.jobs else None
        self._follower = (
            RunFollower(self.jobs, self._found) if self.jobs and self._found and not known.written_here else None
        )

    def __enter__(self) -> OpenRun:
        if self._follower is not None:
            self._follower.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._follower is not None:
            if (
                self._follower.over
                and self.known.folder is not None
                and (self._follower.folder / "summary.json").exists()
            ):
                self._follower.save_to(self.known.folder)
            self._follower.__exit__(*error)

    @property
    def folder(self) -> Path:
        """The run's folder, or a copy that follows it."""
        if self._follower is not None:
            return self._follower.folder
        assert self.known.folder is not None
        return self.known.folder

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._follower.over if self._follower is not None else self.state() in catalog.OVER

    def catch_up(self) -> None:
        """Bring the folder up to date, once."""
        if self._follower is not None:
            self._follower.catch_up()

    def follow(self) -> None:
        """Keep the folder up to date from now on; see `advance`."""
        if self._follower is not None:
            self._follower.start()

    def advance(self, timeout_s: float) -> None:
        """Wait for more, at most `timeout_s` seconds."""
        if self._follower is not None:
            self._follower.advance(timeout_s)
        else:
            time.sleep(timeout_s)

    def state(self) -> State:
        """The run's state now, by its summary, its process, or its cluster."""
        if self.jobs is None:
            return catalog.local_state(self.folder)
        self._found = self.jobs.one(self.known.name)
        return catalog.cluster_state(self._found.state, catalog.read(self.folder / "summary.json"))

    def status(self, reader: Reader) -> dict[str, Any]:
        """What `launcher status` shows, as `columns.status` has it, and where the run's folder is."""
        state, summary = self.state(), reader.summary()
        failure = summary["failure"] if summary else None
        if summary is None and self._found is not None and self._found.over:
            what = explain_missing_summary(self._found, self._follower.other_lines if self._follower else [])
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
        return {**as_status(row, reader.seats(), reader.replay, failure), "folder": self._lasting_folder(summary)}

    def _lasting_folder(self, summary: dict[str, Any] | None) -> str | None:
        if self.known.folder is not None:
            return str(self.known.folder)
        return str(summary["folder"]) if summary else None


def rows(local: Sequence[Known], address: str | None) -> tuple[list[RunRow], list[str]]:
    """The rows of `launcher list`, oldest run first, and the errors of clusters that cannot be reached.

    Args:
        local: runs with a folder on this machine.
        address: a further cluster to ask, besides those of the local runs.
    """
    clusters: dict[str, list[ClusterRun]] = {}
    unreachable: list[str] = []
    unfinished = {run.address for run in local if run.address and not (run.folder and _summary(run.folder))}
    for each in sorted({*unfinished, *([address] if address else [])}):
        try:
            clusters[each] = Jobs(each).all()
        except ClusterError as error:
            unreachable.append(str(error))
    # A run of this machine on a cluster is in both; its row is made from both.
    there = {found.id: (each, found) for each, all_found in clusters.items() for found in all_found}
    rows = [_row_here(run, there.get(run.name)) for run in local]
    rows += [_row_there(*there[name]) for name in there if name not in {run.name for run in local}]
    return sorted(rows, key=lambda row: row.started_at or 0.0), unreachable


def _row_here(run: Known, there: tuple[str, ClusterRun] | None) -> RunRow:
    assert run.folder is not None
    summary = _summary(run.folder)
    state: State
    if run.address is None or summary:
        state = catalog.local_state(run.folder)
    else:
        state = catalog.cluster_state(there[1].state, None) if there else "unknown"
    step = summary["steps"] if summary else None
    ranks = summary["world_size"] if summary else None
    if summary is None:
        reader = Reader(run.folder)
        reader.new_lines()
        ranks, step = reader.replay.world_size, reader.replay.tally.last.step if reader.replay.tally.last else None
    return RunRow(run.name, state, started_at(run), ranks, step, run.address)


def _row_there(address: str, found: ClusterRun) -> RunRow:
    ranks = found.metadata["job"]["workers"]["count"]
    return RunRow(found.id, catalog.cluster_state(found.state, None), found.started_at, ranks, None, address)


def started_at(run: Known) -> float | None:
    """When a run was submitted, by its id, in seconds since 1970."""
    try:
        return datetime.strptime(RunDir.of(Path(run.name)).id[:15], "%Y%m%d-%H%M%S").timestamp()
    except ValueError:
        return None


def _summary(folder: Path) -> dict[str, Any] | None:
    return catalog.read(folder / "summary.json")
