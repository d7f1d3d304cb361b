"""What is counted as waiting, as a table of events on a clock that we set."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import pytest

from collectives.backend import meter
from collectives.backend.meter import METER, Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "perf_counter", clock)
    return clock


SCENARIOS = {
    "a synchronous op": (
        [(0, "op_started", 40), (0, "caller_blocked"), (3, "caller_resumed"), (3, "op_ended")],
        {"ops": 1, "bytes": 40, "wait_s": 3.0, "busy_s": 3.0},
    ),
    "an op beside the caller, waited for at the end": (
        [(0, "op_started", 4), (5, "caller_blocked"), (7, "op_ended"), (7, "caller_resumed")],
        {"ops": 1, "bytes": 4, "wait_s": 2.0, "busy_s": 7.0},
    ),
    "two threads that wait at the same time count once": (
        [(0, "caller_blocked"), (1, "caller_blocked"), (3, "caller_resumed"), (4, "caller_resumed")],
        {"ops": 0, "bytes": 0, "wait_s": 4.0, "busy_s": 0.0},
    ),
    "futures: only from the last hand-over until none is left": (
        [(0, "op_started", 1), (0, "future_taken"), (2, "op_started", 1), (2, "future_taken"),
         (3, "op_ended"), (3, "future_settled"), (6, "op_ended"), (6, "future_settled")],
        {"ops": 2, "bytes": 2, "wait_s": 4.0, "busy_s": 6.0},
    ),
    "futures: the same seconds inside wait do not count twice": (
        [(0, "op_started", 1), (0, "future_taken"), (1, "caller_blocked"), (4, "op_ended"), (4, "future_settled"),
         (4, "caller_resumed")],
        {"ops": 1, "bytes": 1, "wait_s": 4.0, "busy_s": 4.0},
    ),
    "futures: a wait that began before the hand-over": (
        [(0, "caller_blocked"), (1, "future_taken"), (3, "caller_resumed"), (5, "future_settled")],
        {"ops": 0, "bytes": 0, "wait_s": 5.0, "busy_s": 0.0},
    ),
    "read in the middle": (
        [(0, "op_started", 8), (0, "caller_blocked"), (2, "read")],
        {"ops": 1, "bytes": 8, "wait_s": 2.0, "busy_s": 2.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_figures(clock: Clock, name: str) -> None:
    events, wanted = SCENARIOS[name]
    meter = Meter()
    for at_s, event, *arguments in events:
        clock.now = 100.0 + at_s
        getattr(meter, event)(*arguments)
    assert meter.read() == pytest.approx(wanted)


def test_a_child_forked_while_another_thread_counts() -> None:
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with METER._lock:
            held.set()
            forked.wait()

    counter = threading.Thread(target=hold)
    counter.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other threads are not in the child is the point
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        METER.read()
        os._exit(0)
    forked.set()
    counter.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
