"""When to share the batch anew, and how: plain functions of what was measured, the same on all ranks.

A step's computation takes as long as its slowest rank:

    step_s(shares) = max_i shares_i / speeds_i        speeds in samples per second

Shares stay as they are unless those that the speeds ask for would make that more than 5 % shorter. The first time they
are taken as they come. Later each share falls by a fifth of itself at most and rises by a fifth of itself or of an
equal share, whichever is more, so that a hiccup cannot throw the whole batch about; one sample may always move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collectives.errors import UsageError
from collectives.training.apportion import apportion

MAX_CHANGE = 0.2
"""Of a share, in one change."""
MIN_GAIN = 0.05
"""By which a step's computation would have to become shorter, or everything stays as it is."""


@dataclass(frozen=True)
class Rebalanced:
    """New shares of a global batch, and why: `gain` is how much shorter the slowest rank computes, as a fraction."""

    old: tuple[int, ...]
    new: tuple[int, ...]
    speeds: tuple[float, ...]
    gain: float

    def __str__(self) -> str:
        def joined(shares: Sequence[int]) -> str:
            return ", ".join(map(str, shares))

        speeds = ", ".join(f"{speed:.4g}" for speed in self.speeds)
        return (
            f"shares of the batch go from {joined(self.old)} to {joined(self.new)}: at {speeds} samples/s the slowest "
            f"rank computes {self.gain:.0%} shorter"
        )


listeners: list[Callable[[Rebalanced], None]] = []
"""Called on rank 0 with every change of shares of this process; the launcher listens here."""


def rebalanced(shares: Sequence[int], speeds: Sequence[float], bounded: bool = True) -> Rebalanced | None:
    """Shares by these speeds, or None if what there is does nearly as well.

    Args:
        shares: samples of each rank now, at least 1 each.
        speeds: samples per second of each rank, all more than 0.
        bounded: False lets a share become whatever the speeds say.
    """
    now_s, asked = _step_s(shares, speeds), apportion(sum(shares), speeds)
    if 1 - _step_s(asked, speeds) / now_s <= MIN_GAIN:
        return None
    new = _bounded(shares, speeds) if bounded else asked
    return Rebalanced(tuple(shares), tuple(new), tuple(speeds), 1 - _step_s(new, speeds) / now_s)


def read_shares(text: str, ranks: int) -> list[float]:
    """Shares as NARROWGAUGE_SHARES has them: numbers in proportion to the shares, one for each rank, commas between.

    Raises:
        UsageError: they are not.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != ranks or not all(0 < share < float("inf") for share in found):
        raise UsageError(
            f"NARROWGAUGE_SHARES is {text!r}; wanted {ranks} numbers of more than 0 with commas between, one for each "
            "rank"
        )
    return found


def _step_s(shares: Sequence[int], speeds: Sequence[float]) -> float:
    return max(share / speed for share, speed in zip(shares, speeds, strict=True))


def _bounded(shares: Sequence[int], speeds: Sequence[float]) -> list[int]:
    """The whole numbers nearest to speed_i * T, each within its bounds, with the T at which they add up."""
    total = sum(shares)
    equal = total / len(shares)
    low = [max(1, share - max(1, int(MAX_CHANGE * share))) for share in shares]
    high = [share + max(1, int(MAX_CHANGE * max(share, equal))) for share in shares]

    def at(seconds: float) -> list[int]:
        return [min(max(int(speed * seconds), a), b) for speed, a, b in zip(speeds, low, high, strict=True)]

    short, long = 0.0, max(b / speed for b, speed in zip(high, speeds, strict=True)) + 1.0
    for _ in range(100):
        middle = (short + long) / 2
        short, long = (middle, long) if sum(at(middle)) <= total else (short, middle)
    new = at(short)
    while sum(new) < total:  # several cross a whole number at the same T
        able = [rank for rank in range(len(new)) if new[rank] < high[rank]]
        new[min(able, key=lambda rank: ((new[rank] + 1) / speeds[rank], rank))] += 1
    return new


def announce(change: Rebalanced) -> None:
    """Call all listeners with a change of the shares, such as the one that puts it into the launcher's events."""
    for listener in listeners:
        listener(change)
