"""When to change the shares of a batch, and to what: pure functions of measured speeds, the same on all ranks.

The computation of a step takes as long as its slowest rank:

    step_s(shares) = max_i shares_i / speeds_i        speeds in samples per second

Shares stay as they are unless shares in proportion to the speeds would make it more than 5 % shorter. The first change
is unbounded. In later ones a share falls by at most a fifth of itself and rises by at most a fifth of itself or of an
equal share, whichever is more, so that one bad measurement cannot upset the whole batch. One sample may always move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collectives.errors import UsageError
from collectives.training.apportion import apportion

MAX_CHANGE = 0.2
"""Of a share, in one change."""
MIN_GAIN = 0.05
"""Of a step's computation; for less, shares do not change."""


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
"""Called on rank 0 with every change of shares; the launcher adds one."""


def rebalanced(shares: Sequence[int], speeds: Sequence[float], bounded: bool = True) -> Rebalanced | None:
    """New shares for these speeds, or None if they would gain too little.

    Args:
        shares: samples of each rank now, at least 1 each.
        speeds: samples per second of each rank, all more than 0.
        bounded: whether changes are limited to MAX_CHANGE.
    """
    now_s, asked = _step_s(shares, speeds), apportion(sum(shares), speeds)
    if 1 - _step_s(asked, speeds) / now_s <= MIN_GAIN:
        return None
    new = _bounded(shares, speeds) if bounded else asked
    return Rebalanced(tuple(shares), tuple(new), tuple(speeds), 1 - _step_s(new, speeds) / now_s)


def read_shares(text: str, ranks: int) -> list[float]:
    """Parse NARROWGAUGE_SHARES: one positive number for each rank, in proportion to the shares, separated by commas.

    Raises:
        UsageError: another format, or another number of ranks.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != ranks or not all(0 < share < float("inf") for share in found):
        raise UsageError(
            f"NARROWGAUGE_SHARES is {text!r}; wanted {ranks} numbers above 0, separated by commas, one for each rank"
        )
    return found


def _step_s(shares: Sequence[int], speeds: Sequence[float]) -> float:
    return max(share / speed for share, speed in zip(shares, speeds, strict=True))


def _bounded(shares: Sequence[int], speeds: Sequence[float]) -> list[int]:
    """Shares of speed_i * T, rounded down and clipped to their bounds, with the T at which they add up to the batch.

    The sum grows with T, so T is found by bisection; it is the seconds that a rank computes which is at no bound.
    """
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
    while sum(new) < total:  # several shares reach their next whole number at the same T
        able = [rank for rank in range(len(new)) if new[rank] < high[rank]]
        new[min(able, key=lambda rank: ((new[rank] + 1) / speeds[rank], rank))] += 1
    return new


def announce(change: Rebalanced) -> None:
    """Call all listeners."""
    for listener in listeners:
        listener(change)
