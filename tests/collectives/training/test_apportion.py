"""Shares of a batch: whole, exact, in proportion, never empty."""

from __future__ import annotations

import itertools
import random

import pytest

from collectives.errors import UsageError
from collectives.training.apportion import apportion


@pytest.mark.parametrize(
    ("samples", "speeds", "shares"),
    [
        (12, [1, 1, 1, 1], [3, 3, 3, 3]),
        (10, [1, 1, 1, 1], [3, 3, 2, 2]),
        (10, [3, 1], [8, 2]),
        (7, [1, 2, 4], [1, 2, 4]),
        (64, [100, 100, 100, 1], [21, 21, 21, 1]),
        (4, [1000, 1, 1, 1], [1, 1, 1, 1]),
        (5, [1000, 1, 1, 1], [2, 1, 1, 1]),
        (1, [0.5], [1]),
    ],
)
def test_shares(samples: int, speeds: list[float], shares: list[int]) -> None:
    assert apportion(samples, speeds) == shares


def test_any_speeds_add_up_and_are_near_their_quota() -> None:
    draw = random.Random(3)
    for size, _ in itertools.product((1, 2, 3, 7, 16), range(50)):
        speeds = [draw.uniform(0.1, 10) for _ in range(size)]
        samples = draw.randrange(size, 40 * size)
        shares = apportion(samples, speeds)
        assert sum(shares) == samples
        assert min(shares) >= 1
        raised = sum(samples * speed / sum(speeds) < 1 for speed in speeds)
        for share, speed in zip(shares, speeds, strict=True):
            assert abs(share - samples * speed / sum(speeds)) < 1 + raised


@pytest.mark.parametrize(
    ("samples", "speeds", "told"),
    [(2, [1, 1, 1], "a batch of 2 samples for 3 ranks"), (9, [1, 0], r"speeds are \[1, 0\]; wanted")],
)
def test_mistakes(samples: int, speeds: list[float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        apportion(samples, speeds)
