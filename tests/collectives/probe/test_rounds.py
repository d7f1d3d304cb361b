"""Who measures with whom."""

from __future__ import annotations

import itertools

import pytest

from collectives.probe.rounds import matchings, tournament, trios


def once_in_each_round(rounds: list[list[tuple[int, int]]]) -> bool:
    return all(len(hosts) == len({*hosts}) for pairs in rounds for hosts in [[*itertools.chain(*pairs)]])


@pytest.mark.parametrize("count", range(2, 10))
def test_in_a_tournament_everybody_meets_everybody_once(count: int) -> None:
    rounds = tournament(count)
    assert sorted(itertools.chain(*rounds)) == [*itertools.combinations(range(count), 2)]
    assert len(rounds) == count - 1 + count % 2
    assert once_in_each_round(rounds)


def test_a_host_alone_meets_nobody() -> None:
    assert [*itertools.chain(*tournament(1))] == []


def test_matchings_are_of_exactly_these_pairs() -> None:
    pairs = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 1)]
    rounds = matchings(pairs)
    assert rounds == [[(0, 1), (2, 3)], [(0, 3), (1, 2)]]
    assert once_in_each_round(rounds)
    assert matchings([]) == []


@pytest.mark.parametrize("count", range(3, 10))
def test_every_hub_meets_two_others(count: int) -> None:
    hubs = [count - 1, *range(count - 2)]  # fastest first, one host is slow
    rounds = trios(hubs, range(count))
    met = [pair for pairs in rounds for pair in pairs]
    assert [hub for hub, _ in met] == [hub for hub in hubs for _ in range(2)]
    assert len({*met}) == len(met)
    for pairs in rounds:
        others = [other for _, other in pairs]
        assert len({*others}) == len(others)
        assert not {*others} & {hub for hub, _ in pairs}


def test_two_hosts_are_no_trio() -> None:
    assert trios([0, 1], range(2)) == []
