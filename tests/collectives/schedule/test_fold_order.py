"""Which forests fold in the canonical order, decided by terms and checked against what the engine's fold steps do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from collectives.engine.compiled.kernels import ACC, DST, OWN, TMP, TMP2
from collectives.engine.table_builder import fold_steps
from collectives.planning.planner import plan
from collectives.schedule.algorithms import ALGORITHMS
from collectives.schedule.fold_order import is_canonical
from collectives.schedule.forest import Forest
from collectives.schedule.tree import Tree
from collectives.topology import Site, Topology

Homes = Sequence[tuple[int, int]]


def alone(size: int) -> Homes:
    """Each rank on a host of its own, in no site."""
    return [(rank, rank) for rank in range(size)]


def sited(names: str, sites: str) -> Topology:
    """A rank for each letter of `names`, its host; a site for each word of `sites`, its hosts."""
    plain = Topology.from_hosts(names)
    present = [[name for name in site if name in names] for site in sites.split()]
    return Topology(plain.hosts, tuple(Site(f"site of {site[0]}", tuple(site), 2e7, 2e7) for site in present if site))


def one(tree: Tree, size: int) -> Forest:
    return Forest("all_reduce", size, None, (tree,), (1.0,))


def summed(tree: Tree, rank: int, homes: Homes, values: np.ndarray) -> np.float32:
    """What the engine's steps make of the ranks' values at a node."""
    children = tree.children_of(rank)
    if not children:
        return values[rank]
    held = {index: summed(tree, child, homes, values) for index, child in enumerate(children)}
    held[OWN] = values[rank]
    for target, a, b in fold_steps(rank, children, homes):
        assert target in (ACC, TMP, TMP2, DST)
        held[target] = np.float32(held[a] + held[b])
    return held[DST]


def random_tree(rng: random.Random, size: int) -> Tree:
    order = rng.sample(range(size), size)
    return Tree(order[0], tuple((order[i], order[rng.randrange(i)]) for i in range(1, size)))


@pytest.mark.parametrize("seed", range(60))
def test_canonical_trees_give_the_bits_of_the_star_and_others_do_not(seed: int) -> None:
    rng = random.Random(seed)
    names = "".join(rng.choice("abcd") for _ in range(rng.randint(2, 7)))
    topology = sited(names, rng.choice(["", "ab cd", "abc", "ac bd"]))
    homes, size = topology.homes, topology.size
    tree, star = random_tree(rng, size), Tree.star(rng.randrange(size), range(size))
    values = (np.random.default_rng(seed).normal(size=(size, 3000)) * 10.0 ** rng.randint(-3, 3)).astype(np.float32)
    columns = [values[:, i] for i in range(3000)]
    same = all(summed(tree, tree.root, homes, v) == summed(star, star.root, homes, v) for v in columns)
    assert is_canonical(one(star, size), homes)
    assert is_canonical(one(tree, size), homes) == same


@pytest.mark.parametrize("names", ["abcd", "aabb", "aaabbc", "abab"])
@pytest.mark.parametrize("sites", ["", "ab cd", "ac bd"])
@pytest.mark.parametrize("algorithm", ["direct", "hierarchical", "shallow"])
def test_direct_and_hierarchical_forests_are_canonical(names: str, algorithm: str, sites: str) -> None:
    topology = sited(names, sites)
    trees = tuple(ALGORITHMS[algorithm](topology, "all_reduce", None))
    forest = Forest("all_reduce", len(names), None, trees, (1 / len(trees),) * len(trees))
    assert is_canonical(forest, topology.homes)


def test_paths_over_three_hosts_are_not() -> None:
    assert is_canonical(one(Tree.path([0, 1]), 2), alone(2))
    assert not is_canonical(one(Tree.path([1, 0, 2, 3]), 4), alone(4))
    assert is_canonical(Forest("broadcast", 4, 1, (Tree.path([1, 0, 2, 3]),), (1.0,)), alone(4))


def test_a_plan_says_whether_it_is_canonical() -> None:
    made = plan(sited("abcdef", "abc def"), "all_reduce", 25_000_000)
    assert "folds in canonical order" in made.explain()
    other = replace(made, forest=one(Tree.path([1, 0, 2, 3, 4, 5]), 6))
    assert "does not fold in canonical order" in other.explain()


def test_trees_that_carry_nothing_do_not_count() -> None:
    trees = (Tree.star(0, range(3)), Tree.path([0, 1, 2]))
    assert is_canonical(Forest("all_reduce", 3, None, trees, (1.0, 0.0)), alone(3))
    assert not is_canonical(Forest("all_reduce", 3, None, trees, (0.5, 0.5)), alone(3))
