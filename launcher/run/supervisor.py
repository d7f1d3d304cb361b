"""Decides when workers are stopped: events and the time go in, instructions come out. No I/O, no clock, no threads.

A run goes `running -> stopping -> ended`; stopping is skipped if every worker finishes by itself. The first failure
starts a grace period in which the others may end by themselves, with errors that name the culprit; those still alive
then get SIGTERM, and later SIGKILL. An interrupt by the user does the same without the grace period.

Why grace at all? The engine of a survivor notices a dead peer within moments and raises an error that says who died and
in which operation. A SIGTERM at once would cut that off, and the logs would hold nothing but "terminated".
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.record.events import Event
from launcher.record.run_state import Failure, RunState

TERM_S = 3.0
"""From SIGTERM to SIGKILL. Enough for a worker to write its stacks and for a script to close its files; Ray's own
patience with a stopped driver (`ray_jobs.STOP_PATIENCE_S`) has to be longer."""


@dataclass(frozen=True)
class Stop:
    """An instruction: end these workers, with SIGKILL if forced, else with SIGTERM."""

    ranks: tuple[int, ...]
    force: bool


class Supervisor(RunState):
    """The state of one run, and what to do about it.

    Args:
        world_size: number of ranks.
        started_at: when the workers were started, on the clock of `now`.
        limit_s: seconds after which the run fails; None for no limit.
    """

    def __init__(self, world_size: int, started_at: float, limit_s: float | None = None) -> None:
        super().__init__(world_size)
        self.started_at, self.limit_s = started_at, limit_s
        self._kill_at: float | None = None
        self._sent: set[bool] = set()
        """The values of `force` for which a Stop was given: each signal is sent once."""

    def on(self, event: Event, now: float) -> list[Stop]:
        """Apply an event. Deadlines count from `now`, since the clocks of nodes differ."""
        self.apply(event, now)
        return self.at(now)

    def stop(self, now: float) -> list[Stop]:
        """The user interrupts the run: SIGTERM now, SIGKILL `TERM_S` later, or now if this is the second interrupt."""
        # Before `interrupt`, which sets the flag that distinguishes a second interrupt from the first.
        self._kill_at = now if self.interrupted else now + TERM_S
        self.interrupt(now)
        return self.at(now)

    def at(self, now: float) -> list[Stop]:
        """Apply the time: give the instructions that are due."""
        if self._is_too_late(now):
            self.failures.append(Failure(None, now, f"the run took longer than its timeout_s, {self.limit_s:g} s"))
            self.stop_at = now  # no grace: nobody is about to raise an error of its own
        if self.stop_at is not None and self._kill_at is None:
            self._kill_at = self.stop_at + TERM_S
        self.pass_time(now)
        # At most one instruction a call and SIGTERM first, even if both are due: only SIGTERM makes a worker write its
        # stacks to the log, without which nobody learns where a hanging run hung.
        left = tuple(rank for rank, worker in enumerate(self.workers) if worker.alive)
        for deadline, force in ((self.stop_at, False), (self._kill_at, True)):
            if left and deadline is not None and now >= deadline and force not in self._sent:
                self._sent.add(force)
                return [Stop(left, force)]
        return []

    def _is_too_late(self, now: float) -> bool:
        is_over = self.limit_s is not None and now - self.started_at > self.limit_s
        return is_over and self.stop_at is None and not self.ended
