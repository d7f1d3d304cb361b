"""The state of a run after its events: each rank's state, the failures, and which of them is the cause. No I/O, no
clock.

The supervisor decides with it during the run; a replay of the recorded events arrives at the same state later.

Which failure is the cause? Survivors of a dead rank fail too, sometimes before the death itself is noticed:

1. An exception that blames another rank is never the cause if there is any other failure.
2. Of the others the earliest is, where a death by signal counts as half a second earlier than it was noticed. Its peers
   see their sockets close when the kernel tears the process down; its agent sees the exit status only after that.
3. If all failures blame others, and one of the blamed ranks had ended with status 0, that early end is the cause. By
   itself it is no failure: a rank may finish before its peers, as long as they need nothing more from it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launcher.record.events import Event, Exited, Lost, Raised, Started

GRACE_S = 5.0
"""From the first failure to SIGTERM for the workers still alive; more than an engine takes to raise PeerLost."""
SIGNAL_HEAD_START_S = 0.5
"""How much earlier than noticed a death by signal counts; see above."""

Status = Literal["finished", "failed", "stopped"]
EXIT_STATUS: dict[Status, int] = {"finished": 0, "failed": 1, "stopped": 130}
"""Of the command that carried the run out; 130 is what a shell gives for a program ended by SIGINT."""


@dataclass(frozen=True)
class Failure:
    """How one worker failed. `blames` is the rank that its exception named; a `rank` of None means the whole run."""

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
class RunState:
    """The state of one run after the events so far.

    Attributes:
        world_size: number of ranks.
        workers: by rank.
        failures: in the order in which they were noticed.
        interrupted: the user stopped the run.
        stop_at: when SIGTERM is due for the workers still alive; None as long as nothing has failed.
        stopping: that time has passed: a worker that ends from now on was stopped and did not fail.
    """

    world_size: int
    workers: list[Worker] = field(init=False)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    stop_at: float | None = None
    stopping: bool = False

    def __post_init__(self) -> None:
        self.workers = [Worker() for _ in range(self.world_size)]

    @property
    def ended(self) -> bool:
        return not any(worker.alive for worker in self.workers)

    @property
    def status(self) -> Status:
        """Of the run, once it has ended."""
        if self.interrupted:
            return "stopped"
        return "failed" if self.failures else "finished"

    @property
    def cause(self) -> Failure | None:
        """The failure that led to the others."""

        def order(failure: Failure) -> tuple[bool, float]:
            # `at` of an exception is the failing node's clock, which may differ from the others' by more than a failure
            # takes to spread. Hence blame decides first, and the time only between failures that blame nobody.
            return failure.blames_other, failure.at - (SIGNAL_HEAD_START_S if failure.by_signal else 0.0)

        first = min(self.failures, key=order, default=None)
        return (self._early_end() or first) if first and first.blames_other else first

    def apply(self, event: Event, now: float) -> None:
        """Apply an event. Deadlines count from `now`, since the clocks of nodes differ.

        `Exited` and `Lost` count only for a worker that is alive: when a node dies, both may arrive, in either order.
        """
        worker = self.workers[event.rank]
        if isinstance(event, Started):
            worker.state, worker.pid, worker.log = "running", event.pid, event.log
        elif isinstance(event, Raised):
            # An exit status follows and completes the failure. A culprit outside of the run would be an index error
            # later.
            known = event.culprit is not None and 0 <= event.culprit < self.world_size
            worker.raised = event if known else replace(event, culprit=None)
        elif isinstance(event, Exited) and worker.alive:
            if event.code == 0 and not self.stopping:
                worker.finished_at = event.at
            self._end(event.rank, now, _failure(event, worker.raised))
        elif isinstance(event, Lost) and worker.alive:
            self._end(event.rank, now, Failure(event.rank, event.at, event.reason, by_signal=True))
        self.pass_time(now)

    def pass_time(self, now: float) -> None:
        """Begin to stop the workers once the grace period is over."""
        self.stopping |= self.stop_at is not None and now >= self.stop_at and not self.ended

    def interrupt(self, now: float) -> None:
        """The user stops the run, without a grace period."""
        self.interrupted, self.stop_at = True, now
        self.pass_time(now)

    def _early_end(self) -> Failure | None:
        """The end of a rank that finished and that another one, still at work, blames."""
        for failure in sorted(self.failures, key=lambda failure: failure.at):
            finished_at = self.workers[failure.blames].finished_at if failure.blames is not None else None
            if finished_at is not None:
                what = "ended with status 0 while the others still needed it (fewer steps?)"
                return Failure(failure.blames, finished_at, what)
        return None

    def _end(self, rank: int, now: float, failure: Failure | None) -> None:
        worker = self.workers[rank]
        if failure is None:  # also while stopping: a script may catch SIGTERM, save, and exit with status 0
            worker.state = "finished"
        elif self.stopping:
            worker.state = "stopped"
        else:
            worker.state = "failed"
            self.failures.append(failure)
            if self.stop_at is None:  # later failures don't prolong the grace period
                self.stop_at = now + GRACE_S


def _failure(exited: Exited, raised: Raised | None) -> Failure | None:
    if exited.code == 0:
        return None
    if exited.code < 0:
        return Failure(exited.rank, exited.at, f"killed by {signal_name(-exited.code)}", by_signal=True)
    if raised is None:  # sys.exit, or a crash in C that left no exception
        return Failure(exited.rank, exited.at, f"exit status {exited.code}")
    return Failure(exited.rank, raised.at, f"{raised.kind}: {raised.message}", blames=raised.culprit)


def launcher_failure(what: str) -> dict[str, Any]:
    """A failure of the run as a whole, as its summary has it; no rank is to blame, and none has a log of it."""
    return {"rank": None, "host": None, "what": what, "log": None, "others": []}


def signal_name(number: int) -> str:
    """As in messages: "signal 9 (SIGKILL)"."""
    known: Sequence[int] = [member.value for member in signal.Signals]
    return f"signal {number} ({signal.Signals(number).name})" if number in known else f"signal {number}"
