"""One run of a job, from the folder to the summary.

An attempt is one start of all workers; a run has one, and more if the job has `retries`. The connection to Ray lasts
for the whole run. Placement, agents and workers are new for each attempt, since a node may be gone.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from launcher import report
from launcher.config.job import Job
from launcher.errors import LauncherError
from launcher.monitor.exporters import watchers
from launcher.monitor.terminal import PlainView, event_messages
from launcher.planning.placement import place, refuse_loopback
from launcher.record.events import Event, Logged, Planned, Retried, Saved
from launcher.record.past_speeds import earlier
from launcher.record.tail import LogTails
from launcher.run import worker
from launcher.run.agent import WorkerSpec
from launcher.run.cluster import Cluster, WorkerGroup
from launcher.run.context import RunContext, RunProgress
from launcher.run.interrupts import Interrupts
from launcher.run.restart_policy import Verdict
from launcher.run.summary import summarize
from launcher.run.supervisor import Stop

REFRESH_S = 0.25
"""How often the view is drawn and deadlines are checked while nothing happens."""


def run(job: Job, view: PlainView, *, follow_logs: bool = False, context: RunContext | None = None) -> dict[str, Any]:
    """Carry out a job.

    Returns:
        Its summary, which is also in the run's folder.

    Raises:
        ClusterError: Ray cannot be started or reached, has no room, or the engine does not compile on a node.
    """
    progress = RunProgress(job, context or RunContext.here(job), view)
    progress.dir.write_owner()  # first, so that `launcher stop` finds this process even while Ray starts
    view.stage(f"run {progress.dir.path}")
    problem: str | None = None
    try:
        with Interrupts() as interrupts, Cluster(job) as cluster:
            logs = LogTails(progress.dir, range(job.workers.count)) if follow_logs else None
            _run_attempts(progress, cluster, interrupts, logs)
    except KeyboardInterrupt:
        progress.supervisor.stop(time.time())
    # The summary is written in every case: without one a run counts as killed.
    except Exception as error:
        problem = str(error) or repr(error)
        raise
    finally:
        for watcher in progress.watchers:
            watcher.close()
        summary = summarize(progress, problem)
        progress.dir.write_summary(summary)
        _write_report(progress)
    return summary


def _run_attempts(progress: RunProgress, cluster: Cluster, interrupts: Interrupts, logs: LogTails | None) -> None:
    """Start the workers and watch them, until they finish or another attempt would not help."""
    while True:
        interrupts.raise_from_now()
        _place_ranks(progress, cluster)
        refuse_loopback(progress.seats)
        progress.begin_attempt()
        worker_group = _prepare_nodes(progress, cluster)
        _start_workers(progress, worker_group)
        # Once for all attempts: a second Prometheus counter of the same name would start at 0.
        progress.watchers = progress.watchers or watchers(progress.job, progress.dir, progress.seats)
        interrupts.count_from_now()
        _watch(progress, worker_group, interrupts, logs)
        verdict = progress.end_attempt()
        if not verdict.again:
            break
        worker_group.dismiss()  # gives the CPUs back; the next placement may be on other nodes
        _announce_retry(progress, verdict)
    if progress.job.retries and progress.supervisor.status == "failed":
        progress.view.stage(verdict.why)


def _place_ranks(progress: RunProgress, cluster: Cluster) -> None:
    """Decide which rank runs where, by speed if the job leaves that to the launcher, and show the predicted step."""
    job = progress.job
    before = earlier(job, progress.dir.path.parent)
    if before.rates or not cluster.own:
        from launcher.run import seating  # the first start on a machine need not wait for what it imports

        found = seating.predict(job, cluster, before, progress.context.remembered)
        for line in seating.format_prediction(found):
            progress.view.stage(line)
        if found is not None and found.chooses:
            progress.seats = found.seats
            return
    progress.seats = place(cluster.nodes(), job.workers, emulate_hosts=cluster.own)


def _prepare_nodes(progress: RunProgress, cluster: Cluster) -> WorkerGroup:
    """Put an agent on every rank's node, and have the engine compiled there."""
    view = progress.view
    view.seats(progress.seats)
    progress.write_plan()
    worker_group = cluster.hire(progress.seats)
    worker_group.check_versions()
    if progress.job.collectives.backend == "narrowgauge":
        # Before the workers start: compiled once for each node, and outside of timeout_s and of rendezvous timeouts.
        view.stage("loading the engine")
        slow = "still loading; the first time on a machine it is compiled, which takes up to a minute"
        worker_group.warm_up(lambda: view.stage(slow))
    return worker_group


def _start_workers(progress: RunProgress, worker_group: WorkerGroup) -> None:
    count = len(progress.seats)
    progress.view.stage(f"starting {count} worker{'s' if count > 1 else ''}")
    specs = _worker_specs(progress, worker_group)
    progress.mark_started()
    worker_group.start(specs)


def _worker_specs(progress: RunProgress, worker_group: WorkerGroup) -> list[WorkerSpec]:
    """What each agent is to start. Store port and token are new for each attempt, so that a straggler of the one
    before cannot join this one."""
    job, seats = progress.job, progress.seats
    master = (seats[0].node.address, worker_group.free_port())
    devices = worker_group.devices()
    token = secrets.token_hex(16)
    shares = [seat.share for seat in seats if seat.share is not None]
    return [
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
                checkpoints=progress.dir.checkpoints,
                traces=progress.dir.traces,
                resume_from=progress.resume_from,
                shares=shares,
            ),
            cwd=progress.context.cwd,
            log=progress.dir.log(seat.rank),
            address=seat.node.address,
        )
        for seat in seats
    ]


def _watch(progress: RunProgress, worker_group: WorkerGroup, interrupts: Interrupts, logs: LogTails | None) -> None:
    """Carry events to the supervisor and its instructions to the workers, until all have ended."""
    supervisor, tally, view = progress.supervisor, progress.tally, progress.view
    while not supervisor.ended:
        instructions = []
        for event in worker_group.wait(REFRESH_S):
            instructions += _take_in(progress, event)
        instructions += supervisor.at(time.time())
        for _ in range(interrupts.take()):
            view.stage("stopping; interrupt again to kill the workers")
            for _ in range(2 if progress.context.force_requested() else 1):  # two interrupts mean force
                instructions += supervisor.stop(time.time())
        for stop in instructions:
            worker_group.stop(stop.ranks, stop.force)
        for rank, text in logs.new_lines(rest=supervisor.ended) if logs else ():
            view.log(rank, text)
        view.refresh(supervisor, tally)
    view.lines(tally.rest())


def _take_in(progress: RunProgress, event: Event) -> list[Stop]:
    """Record an event, show it, and give what the supervisor makes of it."""
    if isinstance(event, Logged):
        progress.dir.append_to_log(event.rank, event.text)
        return []
    progress.dir.append(event)  # before anything can fail, so that the record holds what led to it
    instructions = progress.supervisor.on(event, time.time())
    lines = progress.tally.on(event)
    progress.view.lines(lines)
    for watcher in progress.watchers:
        watcher.on(event, lines)
    if isinstance(event, Planned):
        progress.write_plan()
    progress.saved = progress.saved or isinstance(event, Saved)
    for text in event_messages(event):
        progress.view.print(text)
    return instructions


def _announce_retry(progress: RunProgress, verdict: Verdict) -> None:
    """Record and show that the workers are started again, in the events, in each log and in the view."""
    number, cause = len(progress.attempts) + 1, progress.attempts[-1].cause
    rank = cause.rank if cause is not None and cause.rank is not None else 0
    progress.dir.append(Retried(rank, time.time(), number, verdict.why))
    progress.dir.mark_attempt_in_logs(number)
    progress.view.stage(f"attempt {number} of {progress.job.retries + 1}, after {verdict.why}")


def _write_report(progress: RunProgress) -> None:
    """Write report.html. A failure here is shown, and does not fail the run."""
    try:
        progress.view.stage(f"report {report.write(progress.dir.path)}")
    except (LauncherError, OSError) as error:
        progress.view.stage(f"no report.html: {error}")
