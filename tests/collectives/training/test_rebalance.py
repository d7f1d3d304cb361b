"""When shares change, and to what: a table, and the rules that hold for any shares and speeds."""

from __future__ import annotations

import random

import pytest

from collectives.errors import UsageError
from collectives.training.apportion import apportion
from collectives.training.rebalance import MAX_CHANGE, read_shares, rebalanced

EQUAL = [1.0, 1.0, 1.0, 1.0]
SLOW = [100.0, 100.0, 100.0, 25.0]


@pytest.mark.parametrize(
    ("shares", "speeds", "bounded", "wanted"),
    [
        pytest.param([16, 16, 16, 16], EQUAL, True, None, id="as it should be"),
        pytest.param([16, 16, 16, 16], [1.0, 1.0, 1.0, 0.96], True, None, id="a difference within 5 %"),
        pytest.param([16, 16, 16, 16], SLOW, False, [20, 20, 19, 5], id="the first time, at once"),
        pytest.param([16, 16, 16, 16], SLOW, True, [17, 17, 17, 13], id="later, by a fifth"),
        pytest.param([20, 20, 19, 5], EQUAL, True, [19, 19, 18, 8], id="back again"),
        pytest.param([2, 2, 2, 2], SLOW, True, [3, 2, 2, 1], id="one sample, where a fifth is less"),
        pytest.param([1, 1, 1, 1], SLOW, True, None, id="never less than 1"),
        pytest.param([5], [3.0], True, None, id="one rank"),
    ],
)
def test_decisions(shares: list[int], speeds: list[float], bounded: bool, wanted: list[int] | None) -> None:
    found = rebalanced(shares, speeds, bounded)
    assert (list(found.new) if found else None) == wanted


def test_any_shares_and_speeds() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        ranks = draw.randint(1, 9)
        shares = [draw.randint(1, draw.choice([2, 40, 1000])) for _ in range(ranks)]
        speeds = [10 ** draw.uniform(-2, 3) for _ in range(ranks)]
        found = rebalanced(shares, speeds)
        if found is None:
            continue
        assert sum(found.new) == sum(shares)
        for old, new in zip(shares, found.new, strict=True):
            assert new >= max(1, old - max(1, MAX_CHANGE * old))
            assert new <= old + max(1, MAX_CHANGE * max(old, sum(shares) / ranks))
        slowest = [max(s / v for s, v in zip(some, speeds, strict=True)) for some in (shares, found.new)]
        assert slowest[1] == pytest.approx(slowest[0] * (1 - found.gain))
        assert found.gain >= 0


def test_repeated_it_comes_near_the_ideal_from_anywhere_and_stays() -> None:
    draw = random.Random(2)
    for _ in range(300):
        ranks = draw.randint(2, 8)
        shares = [draw.randint(1, 60) for _ in range(ranks)]
        speeds = [10 ** draw.uniform(-1, 1) for _ in range(ranks)]
        ideal = apportion(sum(shares), speeds)
        for _ in range(40):
            found = rebalanced(shares, speeds)
            if found is None:
                break
            assert found.new != found.old
            shares = list(found.new)
        assert found is None
        slowest = [max(s / v for s, v in zip(some, speeds, strict=True)) for some in (ideal, shares)]
        assert slowest[1] <= slowest[0] / 0.95


def test_a_change_is_told_in_one_sentence() -> None:
    assert str(rebalanced([8, 8], [30.0, 10.0], bounded=False)) == (
        "shares of the batch go from 8, 8 to 12, 4: at 30, 10 samples/s the slowest rank computes 50% shorter"
    )


@pytest.mark.parametrize("text", ["", "1,2", "1,2,x", "1,2,0", "1,2,-3", "1,2,inf", "1,2,nan", "1 2 3"])
def test_shares_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"NARROWGAUGE_SHARES is .*; wanted 3 numbers"):
        read_shares(text, 3)


def test_shares_that_can_be_read() -> None:
    assert read_shares("8, 8,2.5", 3) == [8.0, 8.0, 2.5]
