"""The event clock against closed forms, against the plan's equations, and as the links change."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from collectives.planning import simulate as module
from collectives.planning.cost import MESSAGE_S, cost
from collectives.planning.planner import plan
from collectives.planning.simulate import fair_rates, simulate
from collectives.schedule.algorithms import candidates
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import DEFAULT_LATENCY_S, Host, Pair, Site, Topology

LARGE = 25_000_000
RATE = 1e8


def switched(*rates: float) -> Topology:
    return Topology(tuple(Host(f"h{rank}", (rank,), rate, rate) for rank, rate in enumerate(rates)))


def one(collective: Collective, tree: Tree) -> Forest:
    root = tree.root if SPECIFICATIONS[collective].rooted else None
    return Forest(collective, len(tree.members), root, (tree,), (1.0,))


def root_for(collective: str) -> int | None:
    return 0 if SPECIFICATIONS[collective].rooted else None


@pytest.mark.parametrize("slices", [1, 2, 7, 40])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("collective", ["broadcast", "reduce"])
def test_a_path_is_a_pipeline(collective: Collective, depth: int, slices: int) -> None:
    """(depth + slices - 1) slices' time, and the way's latency and messages."""
    path = one(collective, Tree.path(range(depth + 1)))
    ran = simulate(switched(*[RATE] * (depth + 1)), path, slices * 10**6, slice_bytes=10**6, window_bytes=10**9)
    ways = 2 if collective == "reduce" else 1  # the word that it has arrived comes back down
    expected = (depth + slices - 1) * 10**6 / RATE + ways * depth * (DEFAULT_LATENCY_S + MESSAGE_S)
    assert ran.seconds == pytest.approx(expected, rel=1e-3)
    assert ran.transfers == depth * slices * ways


@pytest.mark.parametrize("num_bytes", [1000, 10**6, 10**8])
def test_a_star_shares_its_roots_link(num_bytes: int) -> None:
    star = one("broadcast", Tree.star(0, range(5)))
    ran = simulate(switched(*[RATE] * 5), star, num_bytes)
    assert ran.seconds == pytest.approx(4 * num_bytes / RATE + DEFAULT_LATENCY_S + MESSAGE_S, rel=1e-3)
    assert ran.busy[0] == pytest.approx(4 * num_bytes / RATE / ran.seconds)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_direct_on_equal_hosts_reaches_the_bound(size: int) -> None:
    made = plan(switched(*[RATE] * size), "all_reduce", LARGE)
    ran = simulate(made.topology, made.forest, LARGE)
    assert made.bound_s is not None
    assert made.bound_s <= ran.seconds <= 1.005 * made.bound_s
    assert max(ran.busy) > 0.99


def test_a_narrow_window_waits_for_the_way_there_and_back() -> None:
    """Two slices at a time on a link where eight would fit: a quarter of the rate."""
    far = Topology(tuple(Host(name, (rank,), RATE, RATE, latency_s=3.5e-3) for rank, name in enumerate("ab")))
    path = one("all_reduce", Tree.path(range(2)))
    narrow = simulate(far, path, 10**8, slice_bytes=10**5, window_bytes=2 * 10**5)
    wide = simulate(far, path, 10**8, slice_bytes=10**5, window_bytes=10**6)
    way_s = 2 * (3.5e-3 + 10**5 / RATE + MESSAGE_S)
    assert narrow.seconds == pytest.approx(500 * way_s, rel=0.05)
    assert wide.seconds == pytest.approx(1.0, rel=0.02)


FARMS = {
    "equal": switched(*[RATE] * 4),
    "one slow": switched(RATE, RATE, RATE, RATE / 10),
    "five mixed": switched(RATE, RATE / 2, RATE / 2, RATE / 4, RATE / 10),
    "two by four": Topology.from_hosts("aaaabbbb"),
    "four by two": Topology.from_hosts("aabbccdd"),
    "uneven": Topology(tuple(Host(f"h{i}", (i,), RATE / (1 + i), RATE / (4 - i)) for i in range(4))),
    "sites": Topology(
        switched(*[RATE] * 6).hosts,
        (Site("s", ("h0", "h1", "h2"), RATE / 4, RATE / 4), Site("t", ("h3", "h4", "h5"), RATE / 4, RATE / 4)),
    ),
    "chain": Topology(
        switched(*[RATE] * 4).hosts,
        pairs=tuple(Pair(f"h{a}", f"h{b}", 0.0) for a in range(4) for b in range(4) if abs(a - b) > 1),
    ),
}


@pytest.mark.parametrize("collective", ["all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("farm", FARMS)
def test_long_messages_take_what_the_plan_says(farm: str, collective: Collective) -> None:
    made = plan(FARMS[farm], collective, LARGE, root_for(collective))
    assert made.predicted_s == pytest.approx(simulate(made.topology, made.forest, LARGE).seconds, rel=0.05)


@pytest.mark.parametrize("num_bytes", [100, 10_000, 300_000])
@pytest.mark.parametrize("farm", FARMS)
def test_short_messages_take_what_the_plan_says(farm: str, num_bytes: int) -> None:
    """The plan adds what messages cost; on the clock a rank that waits for one link serves another."""
    made = plan(FARMS[farm], "all_reduce", num_bytes)
    simulated_s = simulate(made.topology, made.forest, num_bytes).seconds
    assert 0.8 * simulated_s <= made.predicted_s <= 2 * simulated_s


@pytest.mark.parametrize("seed", range(10))
def test_slower_links_never_help_much(seed: int) -> None:
    """Max-min sharing has small anomalies, so that a hundredth is allowed."""
    rng = random.Random(seed)
    rates = [rng.uniform(1e7, 1e8) for _ in range(4)]
    trees = tuple(tree for trees in candidates(switched(*rates), "all_reduce").values() for tree in trees)
    forest = Forest("all_reduce", 4, None, trees, (1 / len(trees),) * len(trees))
    before = simulate(switched(*rates), forest, 5 * 10**6).seconds
    rates[rng.randrange(4)] *= 0.5
    assert simulate(switched(*rates), forest, 5 * 10**6).seconds >= 0.99 * before
    slower = switched(*[rate / 3 for rate in rates])
    assert simulate(slower, forest, 5 * 10**6).seconds > simulate(switched(*rates), forest, 5 * 10**6).seconds


@pytest.mark.parametrize("collective", SPECIFICATIONS)
@pytest.mark.parametrize("seed", range(8))
def test_never_below_the_busiest_link(collective: Collective, seed: int) -> None:
    rng = random.Random(f"{collective} {seed}")
    bare = Topology.from_hosts([rng.choice("abcd") for _ in range(rng.randint(1, 7))])
    topology = Topology(tuple(Host(h.name, h.ranks, rng.uniform(1e7, 1e8), rng.uniform(1e7, 1e8)) for h in bare.hosts))
    made = plan(topology, collective, 10**6, root_for(collective))
    ran = simulate(topology, made.forest, 10**6)
    assert ran.seconds >= cost(topology, made.forest).s_per_byte * 10**6 * (1 - 1e-6)
    assert all(0 <= share <= 1 + 1e-6 for share in ran.busy)
    assert simulate(topology, made.forest, 10**6) == ran


def test_fair_rates_by_hand() -> None:
    """Three flows on link 0 (9), one of them through link 1 (1): it gets 1, the others 4 each; link 2 (10) gives 10."""
    routes = np.array([[0, 3], [0, 3], [0, 1], [2, 3]])
    rates, rounds = fair_rates(routes, np.array([9.0, 1.0, 10.0, math.inf]))
    assert rates.tolist() == [4.0, 4.0, 1.0, 10.0]
    assert rounds == 3


def test_a_dead_link_takes_forever() -> None:
    dead = FARMS["chain"]
    star = one("all_reduce", Tree.star(0, range(4)))
    assert simulate(dead, star, 1000).seconds == math.inf


def test_too_many_slices_are_made_longer() -> None:
    made = plan(switched(*[RATE] * 4), "all_reduce", LARGE)
    fine = simulate(made.topology, made.forest, LARGE)
    coarse = simulate(made.topology, made.forest, LARGE, max_transfers=fine.transfers // 3)
    assert (fine.level, coarse.level, coarse.longer) == ("slices", "long slices", 4)
    assert coarse.transfers <= fine.transfers // 3
    assert coarse.seconds == pytest.approx(fine.seconds, rel=0.02)
    nothing = simulate(made.topology, made.forest, LARGE, max_transfers=10)
    assert (nothing.level, nothing.seconds) == ("equations", made.predicted_s)


def test_too_long_a_run_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(switched(*[RATE] * 4), "all_reduce", LARGE)
    monkeypatch.setattr(module, "MAX_WORK", 100)
    assert simulate(made.topology, made.forest, LARGE).level == "equations"


def test_a_thousand_hosts() -> None:
    topology = switched(*[RATE] * 1000)
    made = plan(topology, "all_reduce", LARGE)
    ran = simulate(topology, made.forest, LARGE, max_transfers=50_000)
    assert ran.level == "long slices"
    assert made.bound_s is not None
    assert made.bound_s < ran.seconds < 1.5 * made.bound_s
