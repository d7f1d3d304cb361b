"""Two outcomes of a program, on Gloo and on ours: equal or not, and where they part. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from tests.ecosystem.runner import Outcome


class Equal(Enum):
    YES = "yes"
    ROUNDED = "to rounding"  # sums of more than two, added in another order
    NO = "no"
    BROKEN = "set-up failed"  # nothing to compare with: the program fails on Gloo, or differs from itself there
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """How a program does on ours.

    Attributes:
        compared: what there was to compare.
        gloo, ours: the last values of each, or why there are none.
        why: where they differ, what is missing; empty if they are equal.
    """

    equal: Equal
    compared: str = ""
    gloo: str = ""
    ours: str = ""
    why: str = ""


def compare(
    gloo: Outcome, ours: Outcome, tolerance: float = 0.0, excused: Mapping[str, str] = MappingProxyType({})
) -> Verdict:
    """Judge two runs of a program that had the same seeds and data.

    Args:
        tolerance: relative difference of numbers that counts as rounding.
        excused: values that Gloo prints and ours need not, with the reason.
    """
    if gloo.problem is not None:
        also = f"; ours {ours.problem}" if ours.problem else "; on ours it ended well"
        return Verdict(
            Equal.BROKEN,
            gloo="failed",
            ours="failed" if ours.problem else "ended well",
            why=f"Gloo {gloo.problem}{also}",
        )
    if ours.problem is not None:
        return Verdict(Equal.NO, _compared(gloo), _last(gloo), "failed", f"ours {ours.problem}")
    all_differences = list(_differences(gloo, ours))
    differences = [item for item in all_differences if str(item[1]) not in excused]
    reasons = [f"{one}: {excused[one]}" for _, one, _ in all_differences if str(one) in excused]
    close = all(_close(one, other, tolerance) for _, one, other in differences)
    verdict = Equal.YES if not differences else Equal.ROUNDED if close else Equal.NO
    why = "; ".join(reasons)
    if verdict is Equal.NO:
        where, one, other = next(item for item in differences if not _close(item[1], item[2], tolerance))
        why = f"{where}: Gloo {one}, ours {other}"
    return Verdict(verdict, _compared(gloo), _last(gloo), _last(ours), why)


def _differences(gloo: Outcome, ours: Outcome) -> Iterator[tuple[str, Any, Any]]:
    """(where, Gloo's value, our value) for each that is not the same; what only one has is None in the other."""
    for rank, (one, other) in enumerate(zip_longest(gloo.printed, ours.printed, fillvalue=())):
        for index, (left, right) in enumerate(zip_longest(one, other)):
            if left != right:
                yield f"rank {rank}, printed value {index + 1}", left, right
    for rank, (one, other) in enumerate(zip_longest(gloo.steps, ours.steps, fillvalue=())):
        for index, (left, right) in enumerate(zip_longest(one, other)):
            if left != right:
                yield f"rank {rank}, step {index + 1}, [digest, norms of weights, gradients]", left, right


def _close(one: Any, other: Any, tolerance: float) -> bool:
    if one is None or other is None:
        return False
    if isinstance(one, str):
        words = list(zip_longest(one.split(), other.split(), fillvalue=""))
        return all(left == right or _close_numbers(left, right, tolerance) for left, right in words)
    return tolerance > 0 and all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(one[1:], other[1:], strict=True))


def _close_numbers(one: str, other: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=tolerance)
    except ValueError:
        return False


def _compared(outcome: Outcome) -> str:
    values = sum(map(len, outcome.printed))
    steps = max(map(len, outcome.steps), default=0)
    parts = [f"{values} printed values"] if values else []
    return ", ".join(parts + ([f"weights and gradients of {steps} steps"] if steps else []))


def _last(outcome: Outcome) -> str:
    """The last printed value that counts and the last digest of rank 0: for people to see that something was there."""
    printed: Sequence[str] = next((values for values in outcome.printed if values), ())
    steps = next((values for values in outcome.steps if values), ())
    return ", ".join([*printed[-1:], *([f"#{steps[-1][0]}"] if steps else [])])
