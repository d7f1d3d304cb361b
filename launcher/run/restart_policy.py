"""Whether a run that failed is started again: a plain function of how it failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.record.run_state import Failure

ENVIRONMENT = ("PeerLost", "OpTimeout", "RendezvousError", "DistNetworkError", "DistStoreError")
"""Exceptions that come from machines and links, not from the script."""


@dataclass(frozen=True)
class Attempt:
    """How one start of the workers went. Steps are those reported; None if none was."""

    number: int
    status: str
    cause: Failure | None
    last_step: int | None

    def to_json(self) -> dict[str, Any]:
        """As the summary has it."""
        rank, what = (self.cause.rank, self.cause.what) if self.cause else (None, None)
        told = {"attempt": self.number, "status": self.status, "last_step": self.last_step}
        return {**told, "rank": rank, "what": what}


@dataclass(frozen=True)
class Verdict:
    """Whether to start again, and why (not); `why` is for people."""

    again: bool
    why: str


def decide(attempts: list[Attempt], retries: int) -> Verdict:
    """After the last of these attempts.

    A worker that was killed, a node that went away, a link that failed: again. An error of the script's own before its
    first step would come again, such as a wrong import, and so would one that came twice at the same step.
    """
    last = attempts[-1]
    cause = last.cause
    if last.status != "failed" or cause is None:
        return Verdict(False, "it did not fail")
    if cause.rank is None:
        return Verdict(False, f"not started again: {cause.what}")
    if retries == 0:
        return Verdict(False, "the job asks for no retries")
    if _by_script(cause) and last.last_step is None:
        return Verdict(
            False,
            f"not started again: rank {cause.rank} failed by itself before the first step was reported, and would "
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
