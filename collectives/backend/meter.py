"""Counts what communication has cost this process so far: one meter for all groups, cheap enough to be always on.

Ops overlap, and several threads may wait at once, so seconds are those of unions of intervals: adding up each op's own
time would count the same second several times.
"""

from __future__ import annotations

import os
import threading
from time import perf_counter


class _Union:
    """Seconds during which at least one of several, possibly overlapping, intervals was open."""

    def __init__(self) -> None:
        self._open = 0
        self._since = 0.0
        self._total_s = 0.0

    def enter(self, now: float) -> None:
        if self._open == 0:
            self._since = now
        self._open += 1

    def leave(self, now: float) -> None:
        self._open -= 1
        if self._open == 0:
            self._total_s += now - self._since

    def seconds(self, now: float) -> float:
        return self._total_s + (now - self._since if self._open else 0.0)


class Meter:
    """Counts ops and the time they took; see `stats` for what each figure means. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ops = 0
        self._bytes = 0
        self._busy = _Union()
        self._blocked = _Union()
        self._tails_s = 0.0
        self._handed_out = 0
        self._tail_from = 0.0
        self._blocked_before_tail_s = 0.0

    def renew_lock(self) -> None:
        """In a forked child: a thread that exists in the parent only may have held it."""
        self._lock = threading.Lock()

    def op_started(self, num_bytes: int) -> None:
        with self._lock:
            self._ops += 1
            self._bytes += num_bytes
            self._busy.enter(perf_counter())

    def op_ended(self) -> None:
        with self._lock:
            self._busy.leave(perf_counter())

    def call_started(self, num_bytes: int) -> None:
        """As `op_started`, for an op whose caller waits inside the call."""
        with self._lock:
            self._ops += 1
            self._bytes += num_bytes
            now = perf_counter()
            self._busy.enter(now)
            self._blocked.enter(now)

    def call_ended(self) -> None:
        with self._lock:
            now = perf_counter()
            self._busy.leave(now)
            self._blocked.leave(now)

    def caller_blocked(self) -> None:
        with self._lock:
            self._blocked.enter(perf_counter())

    def caller_resumed(self) -> None:
        with self._lock:
            self._blocked.leave(perf_counter())

    def future_taken(self) -> None:
        """A future of an unfinished op was handed out; its holder may wait for it in C++, where we cannot see it."""
        with self._lock:
            now = perf_counter()
            self._handed_out += 1
            self._tail_from = now
            self._blocked_before_tail_s = self._blocked.seconds(now)

    def future_settled(self) -> None:
        with self._lock:
            self._handed_out -= 1
            if self._handed_out == 0:
                now = perf_counter()
                # Waiting that was seen in this time is counted by `_blocked` already.
                seen_s = self._blocked.seconds(now) - self._blocked_before_tail_s
                self._tails_s += now - self._tail_from - seen_s

    def read(self) -> dict[str, float]:
        with self._lock:
            now = perf_counter()
            return {
                "ops": self._ops,
                "bytes": self._bytes,
                "wait_s": self._blocked.seconds(now) + self._tails_s,
                "busy_s": self._busy.seconds(now),
            }


METER = Meter()
os.register_at_fork(after_in_child=METER.renew_lock)

TRAINING = {"steps": 0.0, "samples": 0.0, "compute_s": 0.0}
"""Of all attached models of this process: steps, samples (weights that were set), seconds of forward and backward."""
