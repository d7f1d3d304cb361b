"""Loads counted by hand, predicted seconds by the stated equations, and bounds that no forest goes below."""

from __future__ import annotations

import math
import random

import pytest

from collectives.planning.cost import MESSAGE_S, SLICE_BYTES, Passage, bound_s, cost
from collectives.schedule.algorithms import candidates
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import DEFAULT_LATENCY_S, MEMORY_LATENCY_S, Host, Pair, Site, Topology


def switched(*rates: float) -> Topology:
    return Topology(tuple(Host(f"h{rank}", (rank,), rate, rate) for rank, rate in enumerate(rates)))


def named(topology: Topology, collective: Collective, tree: Tree) -> dict[str, int]:
    column = Passage(topology, collective, [tree]).loads.toarray()[:, 0]
    return {link.name: int(times) for link, times in zip(topology.links, column, strict=True) if times}


def latency_s(topology: Topology, collective: Collective, tree: Tree) -> float:
    return float(Passage(topology, collective, [tree]).latencies_s[0])


def test_load_by_hand() -> None:
    topology = Topology.from_hosts("aab")
    star = Tree.star(0, range(3))
    assert named(topology, "reduce", star) == {"memory of a": 1, "up of b": 1, "down of a": 1}
    assert named(topology, "broadcast", star) == {"memory of a": 1, "up of a": 1, "down of b": 1}
    both = {"memory of a": 2, "up of a": 1, "down of a": 1, "up of b": 1, "down of b": 1}
    assert named(topology, "all_reduce", star) == both


def test_latency_is_the_longest_way_there_and_back() -> None:
    topology = Topology.from_hosts("aabc")
    tree = Tree(0, ((1, 0), (2, 0), (3, 2)))
    assert latency_s(topology, "broadcast", tree) == pytest.approx(2 * DEFAULT_LATENCY_S)
    assert latency_s(topology, "all_reduce", tree) == pytest.approx(4 * DEFAULT_LATENCY_S)
    assert latency_s(topology, "reduce", Tree(0, ((1, 0),))) == pytest.approx(2 * MEMORY_LATENCY_S)


@pytest.mark.parametrize(
    ("collective", "seconds"),
    [
        # four hosts at 100 bytes per second, 1200 bytes, direct: what the busiest link carries, over 100
        ("all_reduce", 2 * 3 / 4 * 1200 / 100),
        ("reduce_scatter", 3 / 4 * 1200 / 100),
        ("all_gather", 3 / 4 * 1200 / 100),
        ("all_to_all", 3 / 4 * 1200 / 100),
        ("broadcast", 1200 / 100),
        ("reduce", 1200 / 100),
    ],
)
def test_direct_on_equal_links(collective: Collective, seconds: float) -> None:
    topology = switched(100, 100, 100, 100)
    root = 2 if SPECIFICATIONS[collective].rooted else None
    trees = candidates(topology, collective, root)["direct"]
    forest = Forest(collective, 4, root, tuple(trees), (1 / len(trees),) * len(trees))
    taken = cost(topology, forest)
    assert 1200 * taken.s_per_byte == pytest.approx(seconds)
    assert bound_s(topology, collective, 1200, root) == pytest.approx(seconds)


def test_fixed_seconds_are_latency_and_messages() -> None:
    topology = switched(1e8, 1e8, 1e8)
    star = Forest("all_reduce", 3, None, (Tree.star(0, range(3)),), (1.0,))
    assert cost(topology, star).seconds(0) == pytest.approx(2 * DEFAULT_LATENCY_S + 6 * MESSAGE_S)
    stars = Forest("all_reduce", 3, None, tuple(Tree.star(root, range(3)) for root in range(3)), (1 / 3,) * 3)
    assert cost(topology, stars).seconds(0) == pytest.approx(2 * DEFAULT_LATENCY_S + 10 * MESSAGE_S)


def test_trees_without_share_count_nowhere() -> None:
    topology = switched(1e8, 1e8, 0.5e8)
    star, path = Tree.star(0, range(3)), Tree.path([2, 1, 0])
    both = Forest("all_reduce", 3, None, (star, path), (1.0, 0.0))
    assert cost(topology, both) == cost(topology, Forest("all_reduce", 3, None, (star,), (1.0,)))


def test_a_link_without_capacity_takes_forever() -> None:
    topology = Topology(tuple(Host(name, (rank,)) for rank, name in enumerate("abc")), pairs=(Pair("a", "b", 0.0),))
    forest = Forest("broadcast", 3, 0, (Tree.star(0, range(3)),), (1.0,))
    assert cost(topology, forest).seconds(1) == math.inf


def test_a_short_message_waits_at_every_hop() -> None:
    """A path of three hops carries one slice up and down again, one hop after the other."""
    topology = switched(1e8, 1e8, 1e8, 1e8)
    path = Forest("all_reduce", 4, None, (Tree.path(range(4)),), (1.0,))
    taken = cost(topology, path)
    expected = 6 * (DEFAULT_LATENCY_S + 1000 / 1e8) + 10 * MESSAGE_S
    assert taken.seconds(1000) == pytest.approx(expected)


def test_a_long_message_fills_the_path_with_slices() -> None:
    """All links are busy for the whole message; one waits for a slice to come up and go down again past it."""
    topology = switched(1e8, 1e8, 1e8)
    path = Forest("broadcast", 3, 0, (Tree.path(range(3)),), (1.0,))
    taken, hop_s = cost(topology, path), SLICE_BYTES / 1e8
    assert taken.seconds(10**8) == pytest.approx(1 + hop_s + DEFAULT_LATENCY_S * 2 + 4 * MESSAGE_S, rel=1e-3)


def test_direct_on_equal_hosts_never_waits() -> None:
    topology = switched(1e8, 1e8, 1e8, 1e8)
    stars = tuple(candidates(topology, "all_reduce")["direct"])
    taken = cost(topology, Forest("all_reduce", 4, None, stars, (0.25,) * 4))
    assert taken.seconds(10**8) == pytest.approx(1.5, rel=0.001)


def test_a_slow_host_waits_for_the_first_result() -> None:
    """Three connections share its way up: the first slices take three times as long, and nothing comes back before."""
    topology = switched(1e9, 1e9, 1e9, 1e7)
    stars = tuple(Tree.star(root, range(4)) for root in range(3))
    taken = cost(topology, Forest("all_reduce", 4, None, stars, (1 / 3,) * 3))
    assert taken.seconds(10**8) - 10 == pytest.approx(3 * SLICE_BYTES / 1e7, rel=0.05)


@pytest.mark.parametrize(
    ("rates", "num_bytes", "seconds"),
    [
        ((100, 100, 100, 100), 1000, 2 * 3 * 1000 / 400),
        ((1000, 1000, 1000, 100), 1000, 1000 / 100),
        ((1000, 1000, 1000, 900), 1000, 2 * 3 * 1000 / 3900),
        ((10, 10), 5, 0.5),
    ],
)
def test_all_reduce_bound_is_the_known_optimum(rates: tuple[float, ...], num_bytes: int, seconds: float) -> None:
    known = max(num_bytes / min(rates), 2 * (len(rates) - 1) * num_bytes / sum(rates))
    assert bound_s(switched(*rates), "all_reduce", num_bytes) == pytest.approx(seconds) == pytest.approx(known)


def test_bounds_by_hand() -> None:
    hosts = (Host("a", (0, 1, 2), 30, 60), Host("b", (3,), 10, 5))
    topology = Topology(hosts)
    assert bound_s(topology, "broadcast", 60, 0) == pytest.approx(60 / 5)
    assert bound_s(topology, "broadcast", 60, 3) == pytest.approx(60 / 10)
    assert bound_s(topology, "reduce", 60, 0) == pytest.approx(60 / 10)
    assert bound_s(topology, "reduce", 60, 3) == pytest.approx(60 / 5)
    assert bound_s(topology, "reduce_scatter", 60) == pytest.approx(60 * 3 / 4 / 10)
    assert bound_s(topology, "all_gather", 60) == pytest.approx(60 * 3 / 4 / 5)
    assert bound_s(topology, "all_to_all", 60) == pytest.approx(60 * 3 / 4 / 5)
    assert bound_s(Topology.from_hosts("aaa"), "all_reduce", 60) is None


def test_a_sites_uplink_bounds_too() -> None:
    hosts = tuple(Host(name, (rank,), 100, 100) for rank, name in enumerate("abcd"))
    topology = Topology(hosts, (Site("s", ("a", "b"), 20, 30), Site("t", ("c", "d"), 40, 50)))
    assert bound_s(topology, "all_reduce", 600) == pytest.approx(600 / 20)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("collective", SPECIFICATIONS)
def test_no_forest_is_below_the_bound(collective: Collective, seed: int) -> None:
    rng = random.Random(f"{collective} {seed}")
    names = [rng.choice("abcd") for _ in range(rng.randint(2, 7))] + ["e"]
    bare = Topology.from_hosts(names)
    hosts = tuple(Host(h.name, h.ranks, rng.uniform(10, 200), rng.uniform(10, 200)) for h in bare.hosts)
    cut = rng.randrange(1, len(hosts))
    sites = (Site("s", tuple(h.name for h in hosts[:cut]), rng.uniform(10, 200), rng.uniform(10, 200)),)
    topology = Topology(hosts, sites if rng.random() < 0.5 else ())
    root = rng.randrange(topology.size) if SPECIFICATIONS[collective].rooted else None
    bound = bound_s(topology, collective, 10**6, root)
    assert bound is not None
    for trees in candidates(topology, collective, root).values():
        weights = [1.0 if SPECIFICATIONS[collective].chunked else rng.random() + 0.01 for _ in trees]
        shares = tuple(weight / sum(weights) for weight in weights)
        taken = cost(topology, Forest(collective, topology.size, root, tuple(trees), shares))
        assert taken.seconds(10**6) >= bound * (1 - 1e-9)
