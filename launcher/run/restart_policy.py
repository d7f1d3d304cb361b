"""Whether a run that failed is started again: a plain function of how it failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.record.run_state import Failure

ENVIRONMENT = ("PeerLost", "OpTimeout", "RendezvousError", "DistNetworkError", "DistStoreError")
"""Exceptions caused by machines and links, not by the script. They are compared by name, since a worker's exception
arrives as text."""


@dataclass(frozen=True)
class Attempt:
    """How one start of the workers ended. `last_step` is the last one reported; None if none was."""

    number: int
    status: str
    cause: Failure | None
    last_step: int | None

    def to_json(self) -> dict[str, Any]:
        """The entry in the summary's `attempts`."""
        rank, what = (self.cause.rank, self.cause.what) if self.cause else (None, None)
        return {
            "attempt": self.number,
            "status": self.status,
            "last_step": self.last_step,
            "rank": rank,
            "what": what,
        }


@dataclass(frozen=True)
class Verdict:
    """Whether to start again, and why or why not; `why` is shown to the user."""

    again: bool
    why: str


def decide(attempts: list[Attempt], retries: int) -> Verdict:
    """Whether to start the workers again after the last of these attempts.

    A killed worker, a lost node or a failed link is worth another attempt. An error of the script itself is not where
    it would only repeat: before the first step (a wrong import, a missing file), or twice in the same way at the same
    step (a bad sample). A script's error later in training gets one more attempt, since it may have been a lack of
    memory or a full disk.

    Args:
        attempts: all so far, at least one.
        retries: the job's limit, not counting the first attempt.
    """
    last = attempts[-1]
    cause = last.cause
    if last.status != "failed" or cause is None:
        return Verdict(False, "it did not fail")
    if cause.rank is None:  # the run as a whole: its timeout_s is used up
        return Verdict(False, f"not started again: {cause.what}")
    if retries == 0:
        return Verdict(False, "the job asks for no retries")
    # Both rules save hours of a cluster: a start costs a minute, and people leave retries high.
    if _by_script(cause) and last.last_step is None:
        return Verdict(
            False,
            f"not started again: rank {cause.rank} failed by itself before the first step was reported, and would fail "
            "again",
        )
    if _by_script(cause) and len(attempts) > 1 and _same(attempts[-2], last):
        return Verdict(
            False, f"not started again: rank {cause.rank} failed the same way after step {last.last_step} twice"
        )
    if len(attempts) > retries:
        return Verdict(False, f"not started again: all {retries} retries are used up")
    return Verdict(True, f"rank {cause.rank}: {cause.what}")


def _by_script(cause: Failure) -> bool:
    # A death by signal counts as the machine's fault: mostly it is the kernel's out-of-memory killer or an operator.
    return not cause.by_signal and not cause.blames_other and cause.what.partition(":")[0] not in ENVIRONMENT


def _same(before: Attempt, last: Attempt) -> bool:
    return (
        before.cause is not None
        and last.cause is not None
        and (
            (before.last_step, before.cause.rank, before.cause.what)
            == (last.last_step, last.cause.rank, last.cause.what)
        )
    )
