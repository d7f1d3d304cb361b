"""The search for the fastest placement, against trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from collectives.topology import Host, Site, Topology
from launcher.planning.forecast import Demand, RankPace
from launcher.planning.pools import Pool
from launcher.planning.search import SearchSpace, choose


def random_field(seed: int) -> SearchSpace:
    """Up to six pools in up to six nodes, with links, speeds and limits of all sorts."""
    dice = random.Random(seed)
    nodes = [f"n{i}" for i in range(dice.randint(1, 6))]
    pools = []
    for index in range(dice.randint(len(nodes), 6)):
        most = dice.choice([None, None, dice.randint(1, 40)])
        pace = RankPace(dice.choice([1.0, 3.0, 10.0, 30.0]), most)
        pools.append(Pool(nodes[index % len(nodes)], f"d{index // len(nodes)}", dice.randint(1, 3), pace, "test"))
    hosts = []
    for index, name in enumerate(nodes):
        rate = dice.choice([12e6, 120e6, 1.2e9])
        hosts.append(Host(name, (index,), rate, rate * dice.choice([1, 1, 0.5]), 5e9))
    sites = (Site("s", tuple(nodes[:2]), 6e7, 6e7),) if len(nodes) > 3 and dice.random() < 0.3 else ()
    total = sum(pool.capacity for pool in pools)
    least = dice.randint(1, total)
    most_workers = dice.choice([least, total, dice.randint(least, total)])
    demand = Demand(dice.choice([None, 32, 100]), dice.choice([None, 1e6, 5e7, 4e8]), dice.choice(["none", "int8"]))
    pools.sort(key=lambda pool: -pool.pace.samples_per_s)
    return SearchSpace(pools, demand, Topology(tuple(hosts), sites), least, most_workers)


def best_of_all(field: SearchSpace) -> float | None:
    """By trying every count, except those whose bound is below what was found already."""
    every = itertools.product(*(range(pool.capacity + 1) for pool in field.pools))
    best = 0.0
    for counts in sorted((counts for counts in every if any(counts)), key=field.bound, reverse=True):
        if field.bound(counts) <= best:
            break
        found = field.exact(counts)
        best = max(best, found.throughput if found else 0.0)
    return best or None


@pytest.mark.parametrize("seed", range(24))
def test_as_good_as_trying_everything(seed: int) -> None:
    field = random_field(seed)
    best, found = best_of_all(field), choose(field)
    assert (found.forecast.throughput if found else None) == (None if best is None else pytest.approx(best, rel=1e-3))


def test_no_plan_beats_the_bound() -> None:
    for seed in range(10):
        field = random_field(seed)
        for counts in itertools.islice(itertools.product(*(range(pool.capacity + 1) for pool in field.pools)), 1, 12):
            found = field.exact(counts)
            if found is not None and field.bound(counts):
                assert found.throughput <= field.bound(counts) * (1 + 1e-9)
