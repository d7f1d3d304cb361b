"""One run of a job, from the folder to the summary."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from launcher import worker
from launcher.agent import Order
from launcher.cluster import Cluster, Gang
from launcher.events import Logged, Planned
from launcher.job import Job
from launcher.placement import Seat, place
from launcher.run_dir import RunDir
from launcher.supervisor import Supervisor
from launcher.tally import Tally
from launcher.view import PlainView, seating

REFRESH_S = 0.25
"""How often the view is drawn and deadlines are looked at while nothing happens."""


@dataclass
class _Run:
    """Everything that is known of the run while it goes on."""

    job: Job
    dir: RunDir
    view: PlainView
    follow_logs: bool
    supervisor: Supervisor
    tally: Tally
    seats: list[Seat]


def run(job: Job, view: PlainView, *, follow_logs: bool = False) -> dict[str, Any]:
    """Carry out a job and give its summary, which is also in the run's folder.

    Raises:
        ClusterError: there is no Ray, or no room in it, or the engine doesn't compile there.
    """
    count = job.workers.count
    going = _Run(
        job, RunDir.create(job), view, follow_logs, Supervisor(count, time.time(), job.timeout_s), Tally(count), []
    )
    view.stage(f"run {going.dir.path}")
    problem: str | None = None
    try:
        with _Interrupts() as interrupts, Cluster(job) as cluster:
            interrupts.raise_from_now()
            going.seats = place(cluster.nodes(), job.workers, emulate_hosts=cluster.own)
            gang = _start(going, cluster)
            interrupts.count_from_now()
            _watch(going, gang, interrupts)
    except KeyboardInterrupt:
        going.supervisor.interrupt(time.time())
    except Exception as error:
        problem = str(error) or repr(error)
        raise
    finally:
        summary = _summary(going, problem)
        going.dir.write_summary(summary)
    return summary


def _start(going: _Run, cluster: Cluster) -> Gang:
    """From an empty cluster to running workers."""
    job, view, seats = going.job, going.view, going.seats
    view.seats(seats)
    _write_plan(going)
    gang = cluster.hire(seats)
    if job.collectives.backend == "narrowgauge":
        view.stage("loading the engine")
        gang.warm_up(lambda: view.stage("compiling it; once on a machine, which takes some 15 seconds"))
    view.stage(f"starting {len(seats)} worker{'s' if len(seats) > 1 else ''}")
    master = (seats[0].node.address, gang.free_port())
    token = secrets.token_hex(16)
    going.supervisor.started_at = time.time()
    gang.start(
        [
            Order(
                rank=seat.rank,
                entrypoint=job.entrypoint,
                args=tuple(job.args),
                env=worker.environment(
                    job,
                    seat,
                    len(seats),
                    master=master,
                    token=token,
                    checkpoints=going.dir.checkpoints,
                    traces=going.dir.traces,
                ),
                cwd=os.getcwd(),
                log=going.dir.log(seat.rank),
                address=seat.node.address,
            )
            for seat in seats
        ]
    )
    return gang


def _watch(going: _Run, gang: Gang, interrupts: _Interrupts) -> None:
    """Carry events to the supervisor and its instructions to the workers, until all have ended."""
    supervisor, tally, view = going.supervisor, going.tally, going.view
    logs = _LogTails(going.dir, supervisor.world_size) if going.follow_logs else None
    while not supervisor.ended:
        instructions = []
        for event in gang.wait(REFRESH_S):
            if isinstance(event, Logged):
                with going.dir.log(event.rank).open("a", encoding="utf-8") as log:
                    log.write(event.text)
                continue
            going.dir.append(event)
            instructions += supervisor.on(event, time.time())
            view.lines(tally.on(event))
            if isinstance(event, Planned):
                _write_plan(going)
        instructions += supervisor.at(time.time())
        for _ in range(interrupts.take()):
            view.stage("stopping; once more to stop at once")
            instructions += supervisor.interrupt(time.time())
        for stop in instructions:
            gang.stop(stop.ranks, stop.force)
        for text in logs.new_lines() if logs else ():
            view.print(text)
        view.refresh(supervisor, tally)
    view.lines(tally.rest())


def _write_plan(going: _Run) -> None:
    going.dir.write_plan({"seats": [asdict(seat) for seat in going.seats], "collectives": going.tally.plan})


def _summary(going: _Run, problem: str | None) -> dict[str, Any]:
    job, supervisor, tally = going.job, going.supervisor, going.tally
    submitted_at = psutil.Process().create_time()
    first_at = tally.first.at if tally.first else None
    return {
        "name": job.name,
        "id": going.dir.id,
        "status": "failed" if problem else supervisor.status,
        "folder": str(going.dir.path),
        "backend": job.collectives.backend,
        "world_size": supervisor.world_size,
        "hosts": seating(going.seats),
        **tally.figures(),
        "heldout_loss": tally.notes.get("heldout_loss"),
        "seconds_to_first_step": first_at - submitted_at if first_at else None,
        "wall_s": time.time() - submitted_at,
        "collectives": tally.notes.get("collectives"),
        "plan": tally.plan,
        "notes": {name: value for name, value in tally.notes.items() if name not in ("heldout_loss", "collectives")},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("narrowgauge", "torch", "ray", "numba", "numpy")},
        },
        "failure": {"rank": None, "host": None, "what": problem, "log": None, "others": []}
        if problem
        else _failure(going),
    }


def _failure(going: _Run) -> dict[str, Any] | None:
    """The cause, and who failed after it."""

    def told(failure: Any) -> dict[str, Any]:
        rank = failure.rank
        host = going.seats[rank].host if rank is not None else None
        log = str(going.dir.log(rank)) if rank is not None else None
        return {"rank": rank, "host": host, "what": failure.what, "log": log}

    cause = going.supervisor.cause
    if cause is None:
        return None
    others = [told(failure) for failure in going.supervisor.failures if failure is not cause]
    return {**told(cause), "others": others}


class _LogTails:
    """What was added to the logs since the last look, line by line, with the rank in front."""

    def __init__(self, run_dir: RunDir, world_size: int) -> None:
        self._logs = {rank: run_dir.log(rank) for rank in range(world_size)}
        self._read = dict.fromkeys(self._logs, 0)

    def new_lines(self) -> Iterator[str]:
        for rank, path in self._logs.items():
            yield from (f"[rank {rank}] {line}" for line in self._new(rank, path))

    def _new(self, rank: int, path: Path) -> list[str]:
        if not path.exists():
            return []
        with path.open("rb") as log:
            log.seek(self._read[rank])
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read[rank] += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


class _Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP, in three stages. While Ray comes up, the first one waits, since a Ray that is cut off
    in the middle leaves processes behind. Then, until the workers run, one raises KeyboardInterrupt. After that they
    are only counted, so that nothing is cut off, and `take` gives how many came."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._count = 0
        self._patience = 1

    def __enter__(self) -> _Interrupts:
        self._before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_from_now(self) -> None:
        """The second stage: raises at once if there was one already."""
        self._install()  # once more, as Ray takes SIGTERM for itself when it starts
        self._patience = 0
        if self._count:
            raise KeyboardInterrupt

    def count_from_now(self) -> None:
        """The third stage."""
        self._patience = sys.maxsize

    def take(self) -> int:
        """How many came since the last call."""
        count, self._count = self._count, 0
        return count

    def _install(self) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > self._patience:
            self._patience = sys.maxsize
            raise KeyboardInterrupt


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
