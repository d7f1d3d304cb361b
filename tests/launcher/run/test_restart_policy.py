"""Whether a failed run is started again, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.record.run_state import Failure
from launcher.run.restart_policy import Attempt, decide

KILLED = Failure(2, 0.0, "killed by signal 9 (SIGKILL)", by_signal=True)
IMPORT = Failure(1, 0.0, "ModuleNotFoundError: No module named 'nonsense'")
EXIT = Failure(1, 0.0, "exit status 2")
DIVERGED = Failure(0, 0.0, "FloatingPointError: the loss is NaN")
LOST = Failure(0, 0.0, "PeerLost: rank 3 (box-7) is gone", blames=3)
TIMEOUT = Failure(None, 0.0, "the run took longer than its timeout_s, 60 s")
RENDEZVOUS = Failure(0, 0.0, "RendezvousError: rank 2 did not come")


def failed(cause: Failure, last_step: int | None = 7) -> Attempt:
    return Attempt(1, "failed", cause, last_step)


@pytest.mark.parametrize(
    ("attempts", "retries", "again", "why"),
    [
        pytest.param([failed(KILLED)], 1, True, "rank 2: killed by signal 9 (SIGKILL)", id="killed"),
        pytest.param([failed(KILLED, None)], 1, True, "rank 2: killed", id="killed before the first step"),
        pytest.param([failed(LOST)], 1, True, "rank 0: PeerLost", id="blames a rank of which nothing is known"),
        pytest.param([failed(RENDEZVOUS, None)], 1, True, "rank 0: Rendezvous", id="the network, ahead of all steps"),
        pytest.param([failed(DIVERGED)], 1, True, "rank 0: FloatingPointError", id="an error in the middle"),
        pytest.param([failed(IMPORT, None)], 5, False, "before the first step was reported", id="the user's mistake"),
        pytest.param([failed(EXIT, None)], 5, False, "before the first step was reported", id="wrong arguments"),
        pytest.param([failed(DIVERGED), failed(DIVERGED)], 5, False, "the same way after step 7 twice", id="twice"),
        pytest.param([failed(DIVERGED, 6), failed(DIVERGED)], 5, True, "rank 0", id="twice, but further on"),
        pytest.param([failed(KILLED), failed(KILLED)], 5, True, "rank 2", id="killed twice at the same step"),
        pytest.param([failed(KILLED), failed(KILLED)], 1, False, "all 1 retries are used up", id="used up"),
        pytest.param([failed(KILLED)], 0, False, "asks for no retries", id="none wanted"),
        pytest.param([failed(TIMEOUT)], 5, False, "longer than its timeout_s", id="no time left"),
        pytest.param([replace(failed(KILLED), status="stopped")], 5, False, "did not fail", id="Ctrl-C"),
        pytest.param([Attempt(1, "finished", None, 9)], 5, False, "did not fail", id="well"),
    ],
)
def test_decisions(attempts: list[Attempt], retries: int, again: bool, why: str) -> None:
    verdict = decide(attempts, retries)
    assert verdict.again is again
    assert why in verdict.why
