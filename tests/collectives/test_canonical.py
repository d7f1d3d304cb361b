"""Which forests fold in the canonical order, decided by terms and checked against what the engine's fold steps do."""

from __future__ import annotations

import random

import numpy as np
import pytest

from collectives.algorithms import ALGORITHMS
from collectives.canonical import is_canonical
from collectives.engine.kernels import ACC, DST, OWN, TMP
from collectives.engine.table import _fold_steps
from collectives.forest import Forest, Tree
from collectives.planner import plan
from collectives.topology import Host, Site, Topology


def hosts_of(topology: Topology) -> list[int]:
    return [topology.host_index(rank) for rank in range(topology.size)]


def one(tree: Tree, size: int) -> Forest:
    return Forest("all_reduce", size, None, (tree,), (1.0,))


def summed(tree: Tree, rank: int, hosts: list[int], values: np.ndarray) -> np.float32:
    """What the engine's steps make of the ranks' values at a node."""
    children = tree.children_of(rank)
    if not children:
        return values[rank]
    held = {index: summed(tree, child, hosts, values) for index, child in enumerate(children)}
    held[OWN] = values[rank]
    for target, a, b in _fold_steps(rank, children, hosts):
        assert target in (ACC, TMP, DST)
        held[target] = np.float32(held[a] + held[b])
    return held[DST]


def random_tree(rng: random.Random, size: int) -> Tree:
    order = rng.sample(range(size), size)
    return Tree(order[0], tuple((order[i], order[rng.randrange(i)]) for i in range(1, size)))


@pytest.mark.parametrize("seed", range(60))
def test_canonical_trees_give_the_bits_of_the_star_and_others_do_not(seed: int) -> None:
    rng = random.Random(seed)
    topology = Topology.from_hosts([rng.choice("abc") for _ in range(rng.randint(2, 6))])
    hosts, size = hosts_of(topology), topology.size
    tree, star = random_tree(rng, size), Tree.star(rng.randrange(size), range(size))
    values = (np.random.default_rng(seed).normal(size=(size, 3000)) * 10.0 ** rng.randint(-3, 3)).astype(np.float32)
    columns = [values[:, i] for i in range(3000)]
    same = all(summed(tree, tree.root, hosts, v) == summed(star, star.root, hosts, v) for v in columns)
    assert is_canonical(one(star, size), hosts)
    assert is_canonical(one(tree, size), hosts) == same


@pytest.mark.parametrize("names", ["abcd", "aabb", "aaabbc", "abab"])
@pytest.mark.parametrize("algorithm", ["direct", "hierarchical", "shallow"])
def test_direct_and_hierarchical_forests_are_canonical(names: str, algorithm: str) -> None:
    topology = Topology.from_hosts(names)
    trees = tuple(ALGORITHMS[algorithm](topology, "all_reduce", None))
    assert is_canonical(
        Forest("all_reduce", len(names), None, trees, (1 / len(trees),) * len(trees)), hosts_of(topology)
    )


def test_paths_over_three_hosts_are_not() -> None:
    assert is_canonical(one(Tree.path([0, 1]), 2), [0, 1])
    assert not is_canonical(one(Tree.path([1, 0, 2, 3]), 4), [0, 1, 2, 3])
    assert is_canonical(Forest("broadcast", 4, 1, (Tree.path([1, 0, 2, 3]),), (1.0,)), [0, 1, 2, 3])


def test_sites_are_not() -> None:
    hosts = tuple(Host(name, (rank,)) for rank, name in enumerate("abcdef"))
    topology = Topology(hosts, (Site("s", ("a", "b", "c"), 2e7, 2e7), Site("t", ("d", "e", "f"), 2e7, 2e7)))
    made = plan(topology, "all_reduce", 25_000_000)
    assert made.algorithm == "hierarchical"
    assert not made.canonical
    assert "does not fold in canonical order" in made.explain()


def test_trees_that_carry_nothing_do_not_count() -> None:
    trees = (Tree.star(0, range(3)), Tree.path([0, 1, 2]))
    assert is_canonical(Forest("all_reduce", 3, None, trees, (1.0, 0.0)), [0, 1, 2])
    assert not is_canonical(Forest("all_reduce", 3, None, trees, (0.5, 0.5)), [0, 1, 2])
