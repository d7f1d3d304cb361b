"""From numbers to positions in a drawing. Pure functions.

Charts are drawn in a box of 1000 by 1000 that the page stretches to any size. Labels are text of the page at a
percentage of the box, since text inside of the box would be stretched with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BOX = 1000.0


@dataclass(frozen=True)
class Scale:
    """A linear scale from `low` to `high`, mapped to 0 to 1. `high` is greater than `low`."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], *, from_zero: bool = False) -> Scale:
        """Covers all finite values, up to the next tick; 0 to 1 if there are none."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return cls(0.0, 1.0)
        low, high = min(finite), max(finite)
        if from_zero:  # for lengths and areas, which mislead if they do not start at 0
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # all equal, but for rounding: put them in the middle
            room = abs(high) / 2 or 0.5
            low, high = (low if from_zero and low == 0 else low - room), high + room
        # 1e-9: 0.1 + 0.2 is a little more than 0.3, and would get a tick of its own.
        step = _step(high - low, 4)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)

    @classmethod
    def exactly(cls, values: Sequence[float]) -> Scale:
        """From the smallest to the largest, and a little more if they are the same."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        return cls(low, high if high > low else low + 1.0)

    def share(self, value: float) -> float:
        """Position of a value, 0 to 1 within the scale."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers within the scale, at most `most` + 1 of them."""
        step = _step(self.high - self.low, most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _step(width: float, most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides `width` into at most `most` parts."""
    power = 10.0 ** math.floor(math.log10(width / most))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= width * (1 - 1e-9))


def line(xs: Sequence[float], ys: Sequence[float | None], x: Scale, y: Scale) -> str:
    """SVG path of a curve. None and values that are not finite leave a gap."""
    # M moves without drawing, so a point after a gap begins a new piece of the same path.
    parts, pen_down = [], False
    for at, value in zip(xs, ys, strict=True):
        if value is None or not math.isfinite(value):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{_place(x.share(at), 1 - y.share(value))}")
        pen_down = True
    return "".join(parts)


def band(xs: Sequence[float], lower: Sequence[float], upper: Sequence[float], x: Scale, y: Scale) -> str:
    """SVG path of the area between two curves; empty with fewer than two points."""
    if len(xs) < 2:
        return ""
    there = [_place(x.share(at), 1 - y.share(value)) for at, value in zip(xs, upper, strict=True)]
    back = [_place(x.share(at), 1 - y.share(value)) for at, value in zip(xs, lower, strict=True)]
    return "M" + "L".join([*there, *reversed(back)]) + "Z"


def stacked(parts: Sequence[Sequence[float]]) -> list[tuple[list[float], list[float]]]:
    """Lower and upper edge of each part in a stack of them."""
    edges, below = [], [0.0] * len(parts[0]) if parts else []
    for part in parts:
        above = [low + value for low, value in zip(below, part, strict=True)]
        edges.append((below, above))
        below = above
    return edges


def high_end(values: Sequence[float]) -> float:
    """Where to cut an axis so that outliers do not flatten the rest: the largest value, or three times the 95th
    percentile if that is less."""
    ordered = sorted(values)
    if not ordered:
        return 1.0
    return min(ordered[-1], 3 * ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]) or 1.0


def _place(x: float, y: float) -> str:
    return f"{round(BOX * x, 1):g} {round(BOX * y, 1):g}"
