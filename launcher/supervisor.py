"""Decides what becomes of a run: events and the time go in, instructions come out. No I/O, no clock, no threads.

A run goes `running -> stopping -> ended`; stopping is skipped if every worker finishes by itself. The first failure
starts a grace period in which the others may end by themselves, with errors that name the culprit; who is left then
gets SIGTERM, and later SIGKILL. An interrupt by the user does the same without the grace period.

Which failure is the cause? Survivors of a dead rank fail too, sometimes before the death itself is noticed. So an
exception that blames another rank never is the cause if there is any other failure, and a death by signal, which is
noticed later than the exceptions it causes, gets a head start. If all blame others, and one of the blamed had ended
with status 0, then that early end is the cause, though by itself it is no failure.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from launcher.events import Event, Exited, Lost, Raised, Started

GRACE_S = 5.0
"""From the first failure to SIGTERM for those who have not ended."""
TERM_S = 3.0
"""From SIGTERM to SIGKILL."""
SIGNAL_HEAD_START_S = 0.5

Status = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class Stop:
    """An instruction: end these workers, with SIGKILL if forced, else with SIGTERM."""

    ranks: tuple[int, ...]
    force: bool


@dataclass(frozen=True)
class Failure:
    """How one worker failed. `blames` is the rank that its exception named; `rank` None is the run as a whole."""

    rank: int | None
    at: float
    what: str
    blames: int | None = None
    by_signal: bool = False

    @property
    def blames_other(self) -> bool:
        return self.blames is not None and self.blames != self.rank


@dataclass
class Worker:
    """What is known of one rank."""

    state: Literal["starting", "running", "finished", "failed", "stopped"] = "starting"
    pid: int | None = None
    log: str | None = None
    raised: Raised | None = None
    finished_at: float | None = None
    """When it ended with status 0 by itself."""

    @property
    def alive(self) -> bool:
        return self.state in ("starting", "running")


@dataclass
class Supervisor:
    """The state of one run.

    Args:
        world_size: number of ranks.
        started_at: when the workers were started, in the same clock as `now`.
        limit_s: seconds after which the run fails; None for no limit.
    """

    world_size: int
    started_at: float
    limit_s: float | None = None
    workers: list[Worker] = field(init=False)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    _term_at: float | None = None
    _kill_at: float | None = None
    _told: set[bool] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.workers = [Worker() for _ in range(self.world_size)]

    @property
    def ended(self) -> bool:
        return not any(worker.alive for worker in self.workers)

    @property
    def status(self) -> Status:
        """What to call the run once it has ended."""
        if self.interrupted:
            return "stopped"
        return "failed" if self.failures else "finished"

    @property
    def cause(self) -> Failure | None:
        """The failure that led to the others."""

        def order(failure: Failure) -> tuple[bool, float]:
            return failure.blames_other, failure.at - (SIGNAL_HEAD_START_S if failure.by_signal else 0.0)

        first = min(self.failures, key=order, default=None)
        return (self._early_end() or first) if first and first.blames_other else first

    def on(self, event: Event, now: float) -> list[Stop]:
        """Take in what happened to a rank. Deadlines count from `now`, since the clocks of nodes differ."""
        worker = self.workers[event.rank]
        if isinstance(event, Started):
            worker.state, worker.pid, worker.log = "running", event.pid, event.log
        elif isinstance(event, Raised):
            known = event.culprit is not None and 0 <= event.culprit < self.world_size
            worker.raised = event if known else replace(event, culprit=None)
        elif isinstance(event, Exited) and worker.alive:
            if event.code == 0 and not self._told:
                worker.finished_at = event.at
            self._end(event.rank, now, _failure(event, worker.raised))
        elif isinstance(event, Lost) and worker.alive:
            self._end(event.rank, now, Failure(event.rank, event.at, event.reason, by_signal=True))
        return self.at(now)

    def interrupt(self, now: float) -> list[Stop]:
        """The user wants the run to end: at once, and with force if this is the second time."""
        self._kill_at = now if self.interrupted else now + TERM_S
        self._term_at = now
        self.interrupted = True
        return self.at(now)

    def at(self, now: float) -> list[Stop]:
        """Take in how late it is."""
        if (
            self.limit_s is not None
            and now - self.started_at > self.limit_s
            and self._term_at is None
            and not self.ended
        ):
            self.failures.append(Failure(None, now, f"the run took longer than its timeout_s, {self.limit_s:g} s"))
            self._term_at, self._kill_at = now, now + TERM_S
        left = tuple(rank for rank, worker in enumerate(self.workers) if worker.alive)
        for deadline, force in ((self._term_at, False), (self._kill_at, True)):
            if left and deadline is not None and now >= deadline and force not in self._told:
                self._told.add(force)
                return [Stop(left, force)]
        return []

    def _early_end(self) -> Failure | None:
        """The end of a rank that is blamed although it finished."""
        for failure in sorted(self.failures, key=lambda failure: failure.at):
            finished_at = self.workers[failure.blames].finished_at if failure.blames is not None else None
            if finished_at is not None:
                what = "ended with status 0 while the others still needed it (fewer steps?)"
                return Failure(failure.blames, finished_at, what)
        return None

    def _end(self, rank: int, now: float, failure: Failure | None) -> None:
        worker = self.workers[rank]
        if failure is None:
            worker.state = "finished"
        elif self._told:
            worker.state = "stopped"
        else:
            worker.state = "failed"
            self.failures.append(failure)
            if self._term_at is None:
                self._term_at, self._kill_at = now + GRACE_S, now + GRACE_S + TERM_S


def _failure(exited: Exited, raised: Raised | None) -> Failure | None:
    if exited.code == 0:
        return None
    if exited.code < 0:
        return Failure(exited.rank, exited.at, f"killed by {signal_name(-exited.code)}", by_signal=True)
    if raised is None:
        return Failure(exited.rank, exited.at, f"exit status {exited.code}")
    return Failure(exited.rank, raised.at, f"{raised.kind}: {raised.message}", blames=raised.culprit)


def signal_name(number: int) -> str:
    """A signal for people: "signal 9 (SIGKILL)"."""
    known: Sequence[int] = [member.value for member in signal.Signals]
    return f"signal {number} ({signal.Signals(number).name})" if number in known else f"signal {number}"
