"""Numbers to places, as tables."""

from __future__ import annotations

import math

import pytest

from launcher.report.geometry import Scale, band, high_end, line, stacked


@pytest.mark.parametrize(
    ("values", "from_zero", "low", "high"),
    [
        ([], False, 0.0, 1.0),
        ([math.nan, math.inf], False, 0.0, 1.0),
        ([3.0], False, 1.0, 5.0),
        ([0.0, 0.0], True, 0.0, 0.6),
        ([1.8, 5.5], False, 1.0, 6.0),
        ([0.21, 0.33], True, 0.0, 0.4),
        ([-3.0, 4.0], True, -4.0, 4.0),
        ([1e-6, 9e-6], True, 0.0, 1e-5),
    ],
)
def test_scales_hold_all_values_and_end_at_ticks(values: list[float], from_zero: bool, low: float, high: float) -> None:
    scale = Scale.over(values, from_zero=from_zero)
    assert (scale.low, scale.high) == pytest.approx((low, high))
    finite = [value for value in values if math.isfinite(value)]
    assert all(-1e-9 <= scale.share(value) <= 1 + 1e-9 for value in finite)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 60, [20, 40, 60]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
        (-4, 4, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high).ticks() == pytest.approx(ticks)


def test_a_line_has_gaps_where_nothing_is_known() -> None:
    x, y = Scale(0, 4), Scale(0, 2)
    assert line([0, 1, 2, 3, 4], [0, 1, None, math.nan, 2], x, y) == "M0 1000L250 500M1000 0"
    assert line([], [], x, y) == ""


def test_a_band_goes_there_and_back() -> None:
    x, y = Scale(0, 1), Scale(0, 2)
    assert band([0, 1], [0, 0], [1, 2], x, y) == "M0 500L1000 0L1000 1000L0 1000Z"
    assert band([0], [0], [1], x, y) == ""


def test_parts_are_put_on_top_of_each_other() -> None:
    assert stacked([[1, 2], [3, 4]]) == [([0, 0], [1, 2]), ([1, 2], [4, 6])]
    assert stacked([]) == []


@pytest.mark.parametrize(
    ("values", "end"),
    [([], 1.0), ([0.0], 1.0), ([1.0, 2.0], 2.0), ([1.0] * 99 + [50.0], 3.0), ([1.0] * 99 + [2.5], 2.5)],
)
def test_outliers_do_not_flatten_the_rest(values: list[float], end: float) -> None:
    assert high_end(values) == end
