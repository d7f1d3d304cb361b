"""Decides what becomes of a run: events and the time go in, instructions come out. No I/O, no clock, no threads.

A run goes `running -> stopping -> ended`; stopping is skipped if every worker finishes by itself. The first failure
starts a grace period in which the others may end by themselves, with errors that name the culprit; who is left then
gets SIGTERM, and later SIGKILL. An interrupt by the user does the same without the grace period.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.record.events import Event
from launcher.record.run_state import Failure, RunState

TERM_S = 3.0
"""From SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Stop:
    """An instruction: end these workers, with SIGKILL if forced, else with SIGTERM."""

    ranks: tuple[int, ...]
    force: bool


class Supervisor(RunState):
    """The state of one run, and what to do about it.

    Args:
        world_size: number of ranks.
        started_at: when the workers were started, in the same clock as `now`.
        limit_s: seconds after which the run fails; None for no limit.
    """

    def __init__(self, world_size: int, started_at: float, limit_s: float | None = None) -> None:
        super().__init__(world_size)
        self.started_at, self.limit_s = started_at, limit_s
        self._kill_at: float | None = None
        self._sent: set[bool] = set()  # whether SIGTERM (False) and SIGKILL (True) were ordered

    def on(self, event: Event, now: float) -> list[Stop]:
        """Take in what happened to a rank. Deadlines count from `now`, since the clocks of nodes differ."""
        self.apply(event, now)
        return self.at(now)

    def stop(self, now: float) -> list[Stop]:
        """The user wants the run to end: at once, and with force if this is the second time."""
        self._kill_at = now if self.interrupted else now + TERM_S
        self.interrupt(now)
        return self.at(now)

    def at(self, now: float) -> list[Stop]:
        """Take in how late it is."""
        if self._is_too_late(now):
            self.failures.append(Failure(None, now, f"the run took longer than its timeout_s, {self.limit_s:g} s"))
            self.stop_at = now
        if self.stop_at is not None and self._kill_at is None:
            self._kill_at = self.stop_at + TERM_S
        self.pass_time(now)
        left = tuple(rank for rank, worker in enumerate(self.workers) if worker.alive)
        for deadline, force in ((self.stop_at, False), (self._kill_at, True)):
            if left and deadline is not None and now >= deadline and force not in self._sent:
                self._sent.add(force)
                return [Stop(left, force)]
        return []

    def _is_too_late(self, now: float) -> bool:
        is_over = self.limit_s is not None and now - self.started_at > self.limit_s
        return is_over and self.stop_at is None and not self.ended
