"""Every algorithm, on every kind of topology, gives trees that do what the collective promises."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from collectives.planning.cost import Passage
from collectives.schedule.algorithms import ALGORITHMS, candidates
from collectives.schedule.algorithms.binary import binary
from collectives.schedule.algorithms.direct import direct
from collectives.schedule.algorithms.hierarchical import hierarchical, hierarchical_ring, levelled
from collectives.schedule.algorithms.ring import host_order, ring
from collectives.schedule.algorithms.roots import FEW_ROOTS
from collectives.schedule.algorithms.shallow import shallow
from collectives.schedule.algorithms.spanning import spanning
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.schedule.verify import verify
from collectives.topology import Host, Pair, Site, Topology

HOSTS = ["a", "ab", "abc", "abcd", "aabb", "abab", "aaab", "abbcd", "aaabbc", "aaaaaaaa", "abcdefgh", "aabbccddee"]


def roots(collective: str, size: int) -> list[int | None]:
    return [*range(size)] if SPECIFICATIONS[collective].rooted else [None]


@pytest.mark.parametrize("names", HOSTS)
@pytest.mark.parametrize("collective", SPECIFICATIONS)
def test_trees_fold_every_rank_once_and_reach_every_rank(collective: Collective, names: str) -> None:
    """Run on numbers in which each rank has a digit of its own: apart from the verifier's way of looking at it."""
    topology = Topology.from_hosts(names)
    everyone = sum(10**rank for rank in range(topology.size))

    def folded(tree: Tree, rank: int) -> int:
        return 10**rank + sum(folded(tree, child) for child in tree.children_of(rank))

    for root in roots(collective, topology.size):
        offered = candidates(topology, collective, root)
        assert "direct" in offered
        for trees in offered.values():
            shares = (1 / len(trees),) * len(trees)
            verify(Forest(collective, topology.size, root, tuple(trees), shares))
            if collective != "all_to_all":
                assert all(folded(tree, tree.root) == everyone for tree in trees)


@pytest.mark.parametrize("names", HOSTS)
def test_all_to_all_has_a_tree_for_each_ordered_pair(names: str) -> None:
    size = len(names)
    trees = candidates(Topology.from_hosts(names), "all_to_all")["direct"]
    assert len(trees) == max(1, size * (size - 1))
    assert len(set(trees)) == len(trees)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_one_rank_gets_at_most_a_tree_without_edges(algorithm: object) -> None:
    for root in (None, 0):
        trees = algorithm(Topology.from_hosts("a"), "broadcast" if root == 0 else "all_reduce", root)  # type: ignore[operator]
        assert all(tree == Tree(0, ()) for tree in trees)


def named(topology: Topology, tree: Tree) -> dict[str, int]:
    """How often a tree of a reduce-scatter crosses links, by name."""
    column = Passage(topology, "reduce_scatter", [tree]).loads.toarray()[:, 0]
    return {link.name: int(times) for link, times in zip(topology.links, column, strict=True) if times}


def test_hierarchical_crosses_each_hosts_links_once() -> None:
    topology = Topology.from_hosts("aaabbbcc")
    for tree in hierarchical(topology, "reduce_scatter"):
        crossed = named(topology, tree)
        ups = {name: times for name, times in crossed.items() if name.startswith("up")}
        home = topology.host_of(tree.root).name
        assert ups == {f"up of {name}": 1 for name in "abc" if name != home}


def test_hierarchical_rotates_the_rank_that_crosses() -> None:
    topology = Topology.from_hosts("aaaabbbb")
    crossing = Counter(
        rank
        for tree in hierarchical(topology, "all_reduce")
        for edge in tree.edges
        if topology.host_index(edge[0]) != topology.host_index(edge[1])
        for rank in edge
    )
    assert set(crossing.values()) == {2}


def test_hierarchical_crosses_a_sites_uplink_once() -> None:
    hosts = tuple(Host(name, (rank,)) for rank, name in enumerate("abcdef"))
    sites = (Site("s", ("a", "b", "c"), 1e6, 1e6), Site("t", ("d", "e"), 1e6, 1e6))
    topology = Topology(hosts, sites)
    for tree in hierarchical(topology, "reduce_scatter"):
        crossed = named(topology, tree)
        home = topology.site_of(tree.root)
        ups = {name: times for name, times in crossed.items() if name.startswith("up of site")}
        assert ups == {f"up of site {site.name}": 1 for site in sites if site != home}


def test_hierarchical_ring_is_a_path_over_hosts() -> None:
    tree = hierarchical_ring(Topology.from_hosts("aabbcc"), "all_reduce")[2]
    assert tree == Tree(2, ((4, 2), (0, 4), (3, 2), (5, 4), (1, 0)))


def test_levelled_star() -> None:
    assert levelled(Topology.from_hosts("aabb"), root=1, turn=0) == Tree(1, ((0, 1), (3, 2), (2, 1)))


@pytest.mark.parametrize("names", ["abcd", "abcdefg", "aabbbcdee", "abcdefghijklmnop"])
def test_binary_makes_a_host_an_inner_node_once_at_most(names: str) -> None:
    topology = Topology.from_hosts(names)
    first, second = binary(topology, "all_reduce")
    inner = [{topology.host_index(parent) for child, parent in tree.edges
              if topology.host_index(child) != topology.host_index(parent)} for tree in (first, second)]  # fmt: skip
    assert not inner[0] & inner[1]
    assert max(first.depth, second.depth) <= len(names).bit_length() + 1
    assert all(tree.root == 3 for tree in binary(topology, "broadcast", 3))
    assert binary(topology, "all_gather") == []


def test_large_groups_have_few_trees() -> None:
    topology = Topology(tuple(Host(f"h{rank}", (rank,)) for rank in range(600)))
    for name, trees in candidates(topology, "all_reduce").items():
        assert len(trees) <= FEW_ROOTS, name
    verify(Forest("all_reduce", 600, None, tuple(direct(topology, "all_reduce")), (1 / FEW_ROOTS,) * FEW_ROOTS))


def test_shallow_takes_the_host_with_the_best_links() -> None:
    hosts = (Host("a", (0,), 1e6, 1e6), Host("b", (1,), 1e7, 1e7), Host("c", (2,), 1e7, 1e7))
    assert shallow(Topology(hosts), "all_reduce") == [Tree(1, ((0, 1), (2, 1)))]
    assert shallow(Topology(hosts), "broadcast", 2) == [Tree(2, ((0, 2), (1, 2)))]


def test_ring_keeps_ranks_of_a_host_together() -> None:
    trees = ring(Topology.from_hosts("abab"), "all_reduce")
    assert trees[0] == Tree.path([0, 2, 1, 3])
    assert sorted(tree.root for tree in trees) == [0, 1, 2, 3]


def with_pairs(size: int, slow: dict[tuple[int, int], float]) -> Topology:
    hosts = tuple(Host(str(rank), (rank,)) for rank in range(size))
    return Topology(hosts, pairs=tuple(Pair(str(a), str(b), rate) for (a, b), rate in slow.items()))


def slowest(topology: Topology, order: tuple[int, ...] | list[int]) -> float:
    edges = [(a, b) for i, a in enumerate(order) for b in (order[i - 1], order[(i + 1) % len(order)])]
    return min(topology.links[link].bytes_per_s for edge in edges for link in topology.route(*edge))


@pytest.mark.parametrize("seed", range(12))
def test_ring_order_is_the_best_of_all_orders(seed: int) -> None:
    size = 4 + seed % 4
    rates = [1e6 * (1 + (7919 * (i + 3) * (seed + 1)) % 97) for i in range(size * size)]
    topology = with_pairs(size, {(a, b): rates[a * size + b] for a in range(size) for b in range(size) if a != b})
    best = max(slowest(topology, (0, *rest)) for rest in permutations(range(1, size)))
    assert slowest(topology, host_order(topology)) == best


def test_ring_finds_the_only_cycle_there_is() -> None:
    cycle = [0, 3, 6, 1, 5, 2, 7, 4]
    joined = {frozenset((cycle[i - 1], cycle[i])) for i in range(8)}
    apart = {(a, b): 0.0 for a in range(8) for b in range(8) if a != b and frozenset((a, b)) not in joined}
    order = host_order(with_pairs(8, apart))
    assert {frozenset((order[i - 1], order[i])) for i in range(8)} == joined


def test_no_cycle_no_ring() -> None:
    apart = {(a, b): 0.0 for a in range(4) for b in range(4) if abs(a - b) > 1}
    assert ring(with_pairs(4, apart), "all_reduce") == []
    assert "ring" not in candidates(with_pairs(4, apart), "all_reduce")


def test_spanning_tree_of_a_chain_starts_in_its_middle() -> None:
    apart = {(a, b): 0.0 for a in range(5) for b in range(5) if abs(a - b) > 1}
    (tree,) = spanning(with_pairs(5, apart), "all_reduce")
    assert (tree.root, tree.depth) == (2, 2)
    assert sorted(map(sorted, tree.edges)) == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert spanning(with_pairs(5, apart), "broadcast", 0) == [Tree.path(range(5))]
    assert [tree.root for tree in spanning(with_pairs(5, apart), "all_gather")] == [0, 1, 2, 3, 4]


def test_spanning_tree_takes_the_widest_ways() -> None:
    rates = {(0, 1): 9.0, (0, 2): 1.0, (0, 3): 2.0, (1, 2): 8.0, (1, 3): 3.0, (2, 3): 7.0}
    both = {**rates, **{(b, a): rate for (a, b), rate in rates.items()}}
    (tree,) = spanning(with_pairs(4, both), "all_reduce")
    assert sorted(map(sorted, tree.edges)) == [[0, 1], [1, 2], [2, 3]]


def test_no_pairs_no_spanning_tree() -> None:
    assert spanning(Topology.from_hosts("abc"), "all_reduce") == []
