"""One run of a job, from the folder to the summary."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from launcher import report
from launcher.config.job import Job
from launcher.errors import LauncherError
from launcher.monitor.exporters import Watcher, watchers
from launcher.monitor.terminal import PlainView, remarks
from launcher.monitor.terminal import seating as seats_by_host
from launcher.planning.placement import place, refuse_loopback
from launcher.record.events import Logged, Planned, Retried, Saved
from launcher.record.past_speeds import earlier
from launcher.record.run_dir import RunDir
from launcher.record.seats import RankPlacement
from launcher.record.tail import LogTails
from launcher.record.tally import Tally
from launcher.run import worker
from launcher.run.agent import WorkerSpec
from launcher.run.cluster import Cluster, WorkerGroup
from launcher.run.interrupts import Interrupts
from launcher.run.restart_policy import Attempt, Verdict, decide
from launcher.run.supervisor import Supervisor

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
    seats: list[RankPlacement]
    setting: RunContext
    watchers: list[Watcher] = field(default_factory=list)
    started_at: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    first_at: float | None = None
    saved: bool = False
    """Whether a checkpoint of this run was written."""

    @property
    def resume_from(self) -> Path | None:
        """Checkpoints that must be there. Its own, once it has some: a rank 0 on another node that doesn't see them
        should say so instead of starting at step 0."""
        folder = self.dir.path if self.saved else self.setting.resumed
        return folder / "checkpoints" if folder else None

    def begin_attempt(self) -> None:
        """Know nothing of the workers that are to start; what is left of the job's time is theirs."""
        count, now = len(self.seats), time.time()
        used_s = now - self.started_at if self.started_at else 0.0
        limit_s = max(0.0, self.job.timeout_s - used_s) if self.job.timeout_s is not None else None
        self.supervisor, self.tally = Supervisor(count, now, limit_s), Tally(count)

    def end_attempt(self) -> Verdict:
        """Remember how the workers ended; whether to start them again."""
        last = self.tally.last
        self.first_at = self.first_at or (self.tally.first.at if self.tally.first else None)
        self.attempts.append(
            Attempt(len(self.attempts) + 1, self.supervisor.status, self.supervisor.cause, last.step if last else None)
        )
        return decide(self.attempts, self.job.retries)


@dataclass(frozen=True)
class RunContext:
    """Where a run is carried out.

    Args:
        dir: its folder.
        submitted_at: when the user wanted it, in seconds since 1970.
        cwd: where the workers start; None: where Ray unpacked the working directory on each node.
        by_force: asked at an interrupt, whether the workers should be killed at once.
        resumed: the folder of the run whose checkpoints this one goes on with.
        remembered: what the machine that submitted it remembers of the cluster, as of `known_machines.remembered`.
    """

    dir: RunDir
    submitted_at: float
    cwd: str | None
    by_force: Callable[[], bool] = lambda: False
    resumed: Path | None = None
    remembered: str | None = None

    @classmethod
    def here(cls, job: Job, resumed: Path | None = None) -> RunContext:
        """This process was started for the run, in the working directory."""
        submitted_at = psutil.Process().create_time()
        return cls(RunDir.create(job, resumed), submitted_at, os.getcwd(), resumed=resumed)


def run(job: Job, view: PlainView, *, follow_logs: bool = False, setting: RunContext | None = None) -> dict[str, Any]:
    """Carry out a job and give its summary, which is also in the run's folder.

    Raises:
        ClusterError: there is no Ray, or no room in it, or the engine doesn't compile there.
    """
    count = job.workers.count
    setting = setting or RunContext.here(job)
    supervisor = Supervisor(count, time.time(), job.timeout_s)
    going = _Run(job, setting.dir, view, follow_logs, supervisor, Tally(count), [], setting)
    going.dir.write_owner()
    view.stage(f"run {going.dir.path}")
    problem: str | None = None
    try:
        with Interrupts() as interrupts, Cluster(job) as cluster:
            logs = LogTails(going.dir, range(count)) if follow_logs else None
            while True:
                interrupts.raise_from_now()
                _seat(going, cluster)
                refuse_loopback(going.seats)
                going.begin_attempt()
                worker_group = _start(going, cluster)
                going.watchers = going.watchers or watchers(job, going.dir, going.seats)
                interrupts.count_from_now()
                _watch(going, worker_group, interrupts, logs)
                verdict = going.end_attempt()
                if not verdict.again:
                    break
                worker_group.dismiss()
                _begin_again(going, verdict)
            if job.retries and going.supervisor.status == "failed":
                view.stage(verdict.why)
    except KeyboardInterrupt:
        going.supervisor.stop(time.time())
    except Exception as error:
        problem = str(error) or repr(error)
        raise
    finally:
        for watcher in going.watchers:
            watcher.close()
        summary = _summary(going, problem)
        going.dir.write_summary(summary)
        _write_report(going)
    return summary


def _seat(going: _Run, cluster: Cluster) -> None:
    """Decide who sits where, by speed if the job leaves that to us, and tell what is expected of it."""
    job = going.job
    before = earlier(job, going.dir.path.parent)
    if before.rates or not cluster.own:
        from launcher.run import seating  # the first start on a machine need not wait for what it imports

        found = seating.foresee(job, cluster, before, going.setting.remembered)
        for line in seating.told(found):
            going.view.stage(line)
        if found is not None and found.chooses:
            going.seats = found.seats
            return
    going.seats = place(cluster.nodes(), job.workers, emulate_hosts=cluster.own)


def _start(going: _Run, cluster: Cluster) -> WorkerGroup:
    """From an empty cluster to running workers."""
    job, view, seats = going.job, going.view, going.seats
    view.seats(seats)
    _write_plan(going)
    worker_group = cluster.hire(seats)
    worker_group.check_versions()
    if job.collectives.backend == "narrowgauge":
        view.stage("loading the engine")
        worker_group.warm_up(lambda: view.stage("compiling it; once on a machine, which takes some 15 seconds"))
    view.stage(f"starting {len(seats)} worker{'s' if len(seats) > 1 else ''}")
    master = (seats[0].node.address, worker_group.free_port())
    devices = worker_group.devices()
    token = secrets.token_hex(16)
    going.supervisor.started_at = time.time()
    going.started_at = going.started_at or going.supervisor.started_at
    worker_group.start(
        [
            WorkerSpec(
                rank=seat.rank,
                entrypoint=job.entrypoint,
                args=tuple(job.args),
                env=devices[seat.rank]
                | worker.environment(
                    job,
                    seat,
                    len(seats),
                    master=master,
                    token=token,
                    checkpoints=going.dir.checkpoints,
                    traces=going.dir.traces,
                    resume_from=going.resume_from,
                    shares=[seat.share for seat in seats if seat.share is not None],
                ),
                cwd=going.setting.cwd,
                log=going.dir.log(seat.rank),
                address=seat.node.address,
            )
            for seat in seats
        ]
    )
    return worker_group


def _begin_again(going: _Run, verdict: Verdict) -> None:
    """Tell everybody that the workers are started once more."""
    number, cause = len(going.attempts) + 1, going.attempts[-1].cause
    rank = cause.rank if cause is not None and cause.rank is not None else 0
    going.dir.append(Retried(rank, time.time(), number, verdict.why))
    going.dir.part_logs(number)
    going.view.stage(f"attempt {number} of {going.job.retries + 1}, after {verdict.why}")


def _watch(going: _Run, worker_group: WorkerGroup, interrupts: Interrupts, logs: LogTails | None) -> None:
    """Carry events to the supervisor and its instructions to the workers, until all have ended."""
    supervisor, tally, view = going.supervisor, going.tally, going.view
    while not supervisor.ended:
        instructions = []
        for event in worker_group.wait(REFRESH_S):
            if isinstance(event, Logged):
                going.dir.add_to_log(event.rank, event.text)
                continue
            going.dir.append(event)
            instructions += supervisor.on(event, time.time())
            lines = tally.on(event)
            view.lines(lines)
            for watcher in going.watchers:
                watcher.on(event, lines)
            if isinstance(event, Planned):
                _write_plan(going)
            going.saved = going.saved or isinstance(event, Saved)
            for text in remarks(event):
                view.print(text)
        instructions += supervisor.at(time.time())
        for _ in range(interrupts.take()):
            view.stage("stopping; once more to stop at once")
            for _ in range(2 if going.setting.by_force() else 1):
                instructions += supervisor.stop(time.time())
        for stop in instructions:
            worker_group.stop(stop.ranks, stop.force)
        for rank, text in logs.new_lines(rest=supervisor.ended) if logs else ():
            view.log(rank, text)
        view.refresh(supervisor, tally)
    view.lines(tally.rest())


def _write_plan(going: _Run) -> None:
    going.dir.write_plan({"seats": [asdict(seat) for seat in going.seats], "collectives": going.tally.plan})


def _write_report(going: _Run) -> None:
    """The page about the run. That it can't be made is told, and is no failure of the run."""
    try:
        going.view.stage(f"report {report.write(going.dir.path)}")
    except (LauncherError, OSError) as error:
        going.view.stage(f"no report.html: {error}")


def _summary(going: _Run, problem: str | None) -> dict[str, Any]:
    job, supervisor, tally = going.job, going.supervisor, going.tally
    submitted_at = going.setting.submitted_at
    first_at = going.first_at or (tally.first.at if tally.first else None)
    return {
        "name": job.name,
        "id": going.dir.id,
        "status": "failed" if problem else supervisor.status,
        "folder": str(going.dir.path),
        "backend": job.collectives.backend,
        "resumed_from": str(going.setting.resumed) if going.setting.resumed else None,
        "attempts": [attempt.told() for attempt in going.attempts],
        "world_size": supervisor.world_size,
        "hosts": seats_by_host(going.seats),
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
