"""The supervisor as tables: what happened, when, and what it makes of that. Times are seconds since the start."""

from __future__ import annotations

import pytest

from launcher.record.events import Event, Exited, Lost, Raised, Started
from launcher.record.run_state import GRACE_S, signal_name
from launcher.run.supervisor import TERM_S, Stop, Supervisor


def on(supervisor: Supervisor, event: Event) -> list[Stop]:
    return supervisor.on(event, now=event.at)


def started(world_size: int, limit_s: float | None = None) -> Supervisor:
    supervisor = Supervisor(world_size, started_at=0.0, limit_s=limit_s)
    for rank in range(world_size):
        assert on(supervisor, Started(rank, 0.1, pid=100 + rank, log=f"rank-{rank}.log")) == []
    return supervisor


def peer_lost(rank: int, at: float, culprit: int) -> list[Event]:
    return [Raised(rank, at, "PeerLost", f"rank {culprit} is gone", culprit), Exited(rank, at + 0.2, 1)]


def crash(rank: int, at: float) -> list[Event]:
    return [Raised(rank, at, "ValueError", "boom"), Exited(rank, at + 0.2, 1)]


ENDS: dict[str, tuple[list[Event], str, int | None, str]] = {
    "all finish": ([Exited(0, 5, 0), Exited(1, 6, 0), Exited(2, 7, 0)], "finished", None, ""),
    "an exception": ([*crash(1, 5), *peer_lost(0, 5.1, 1), *peer_lost(2, 5.2, 1)], "failed", 1, "ValueError: boom"),
    "a signal": ([Exited(2, 5, -9), *peer_lost(0, 5.1, 2), *peer_lost(1, 5.2, 2)], "failed", 2, "signal 9 (SIGKILL)"),
    "a signal noticed after what it caused": (
        [*crash(0, 5.0), Exited(2, 5.3, -11), *crash(1, 5.1)],
        "failed",
        2,
        "signal 11 (SIGSEGV)",
    ),
    "a survivor that blames is reported first": (
        [*peer_lost(0, 5.0, 1), *peer_lost(2, 5.0, 1), *crash(1, 6.0)],
        "failed",
        1,
        "ValueError: boom",
    ),
    "an exception long before a signal": ([*crash(0, 5.0), Exited(1, 7, -6), Exited(2, 7, -6)], "failed", 0, "boom"),
    "only an exit status": ([Exited(0, 5, 3), Exited(1, 5.5, 0), Exited(2, 6, 0)], "failed", 0, "exit status 3"),
    "a lost node": (
        [*peer_lost(0, 5.0, 1), Lost(1, 5.2, "its agent on box-1 is gone"), *peer_lost(2, 5.1, 1)],
        "failed",
        1,
        "its agent on box-1 is gone",
    ),
    "an early end": (
        [Exited(1, 4.9, 0), *peer_lost(0, 5.0, 1), *peer_lost(2, 5.1, 0)],
        "failed",
        1,
        "ended with status 0 while the others still needed it",
    ),
    "an early end that is known after what it caused": (
        [*peer_lost(0, 5.0, 2), *peer_lost(1, 5.1, 2), Exited(2, 5.2, 0)],
        "failed",
        2,
        "ended with status 0",
    ),
    "an early end that nobody minds": ([Exited(1, 4.9, 0), *peer_lost(0, 5.0, 1), *crash(2, 5.1)], "failed", 2, "boom"),
    "a blamed rank that is not there": ([*peer_lost(0, 5.0, 7), Exited(1, 6, 0), Exited(2, 6, 0)], "failed", 0, "Peer"),
    "everyone blames another": (
        [*peer_lost(0, 5.0, 1), *peer_lost(1, 5.1, 2), *peer_lost(2, 5.2, 0)],
        "failed",
        0,
        "PeerLost",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_run_ends_and_why(case: str) -> None:
    events, status, cause, what = ENDS[case]
    supervisor = started(3)
    for event in events:
        on(supervisor, event)
    assert supervisor.ended
    assert supervisor.status == status
    assert (supervisor.cause.rank if supervisor.cause else None) == cause
    assert what in (supervisor.cause.what if supervisor.cause else "")


def test_survivors_get_time_then_sigterm_then_sigkill() -> None:
    supervisor = started(3)
    assert on(supervisor, Exited(1, 10.0, -9)) == []
    assert supervisor.at(10.0 + GRACE_S - 0.1) == []
    assert supervisor.at(10.0 + GRACE_S) == [Stop((0, 2), force=False)]
    assert supervisor.at(10.0 + GRACE_S + 0.1) == []
    on(supervisor, Exited(0, 10.0 + GRACE_S + 1, -15))
    assert supervisor.at(10.0 + GRACE_S + TERM_S) == [Stop((2,), force=True)]
    on(supervisor, Exited(2, 10.0 + GRACE_S + TERM_S + 0.1, -9))
    assert supervisor.status == "failed"
    assert [worker.state for worker in supervisor.workers] == ["stopped", "failed", "stopped"]
    assert [failure.rank for failure in supervisor.failures] == [1]


def test_a_blamed_rank_that_ends_with_0_because_it_was_asked_to_ended_in_time() -> None:
    supervisor = started(2)
    for event in peer_lost(0, 5.0, 1):
        on(supervisor, event)
    assert supervisor.at(5.2 + GRACE_S) == [Stop((1,), force=False)]
    on(supervisor, Exited(1, 5.3 + GRACE_S, 0))
    assert supervisor.cause is not None
    assert supervisor.cause.rank == 0


def test_an_interrupt_stops_at_once_and_a_second_one_by_force() -> None:
    supervisor = started(2)
    assert supervisor.stop(3.0) == [Stop((0, 1), force=False)]
    assert supervisor.stop(3.5) == [Stop((0, 1), force=True)]
    on(supervisor, Exited(0, 4.0, -15))
    assert not supervisor.ended
    on(supervisor, Exited(1, 4.0, -9))
    assert supervisor.ended
    assert supervisor.status == "stopped"
    assert supervisor.cause is None


def test_deadlines_do_not_depend_on_the_clock_of_the_node() -> None:
    supervisor = started(2)
    assert supervisor.on(Exited(1, at=-3600.0, code=-9), now=10.0) == []
    assert supervisor.at(10.0 + GRACE_S) == [Stop((0,), force=False)]


def test_an_interrupt_is_forced_after_a_while() -> None:
    supervisor = started(1)
    supervisor.stop(3.0)
    assert supervisor.at(3.0 + TERM_S) == [Stop((0,), force=True)]


def test_a_run_over_its_limit_fails() -> None:
    supervisor = started(2, limit_s=60)
    assert supervisor.at(59) == []
    assert supervisor.at(61) == [Stop((0, 1), force=False)]
    on(supervisor, Exited(0, 61.1, -15))
    on(supervisor, Exited(1, 61.1, -15))
    assert supervisor.status == "failed"
    assert supervisor.cause is not None
    assert "timeout_s, 60 s" in supervisor.cause.what


def test_a_finished_rank_that_is_lost_later_has_finished() -> None:
    supervisor = started(1)
    on(supervisor, Exited(0, 5.0, 0))
    on(supervisor, Lost(0, 6.0, "gone"))
    assert supervisor.status == "finished"


@pytest.mark.parametrize(
    ("number", "text"), [(9, "signal 9 (SIGKILL)"), (64, "signal 64 (SIGRTMAX)"), (63, "signal 63")]
)
def test_signal_names(number: int, text: str) -> None:
    assert signal_name(number) == text
