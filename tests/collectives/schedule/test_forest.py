"""Forests print and read back; the verifier lets right ones pass and points at what is wrong in the others."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from collectives.errors import PlanError
from collectives.schedule.forest import Forest
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.schedule.verify import verify

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 13, 32]


def random_tree(rng: random.Random, size: int, root: int) -> Tree:
    """Each rank hangs below one that is in the tree already; edges in any order."""
    ranks = [rank for rank in range(size) if rank != root]
    rng.shuffle(ranks)
    joined = [root]
    edges = []
    for rank in ranks:
        edges.append((rank, rng.choice(joined)))
        joined.append(rank)
    rng.shuffle(edges)
    return Tree(root, tuple(edges))


def random_forest(rng: random.Random, collective: str, size: int) -> Forest:
    spec = SPECIFICATIONS[collective]
    root = rng.randrange(size) if spec.rooted else None
    if spec.pairwise:
        pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
        trees = [Tree(i, ((j, i),)) for i, j in pairs] or [Tree(0, ())]
    elif spec.chunked:
        trees = [random_tree(rng, size, rank) for rank in range(size) for _ in range(rng.randint(1, 2))]
    else:
        roots = [rng.randrange(size) if root is None else root for _ in range(rng.randint(1, 4))]
        trees = [random_tree(rng, size, at) for at in roots]
    weights = [rng.random() + 0.1 for _ in trees]
    shares = tuple(weight / sum(weights) for weight in weights)
    return Forest(collective, size, root, tuple(trees), shares)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("collective", SPECIFICATIONS)
def test_random_forests_are_right_and_read_back(collective: str, size: int) -> None:
    rng = random.Random(f"{collective} {size}")
    for _ in range(5):
        forest = random_forest(rng, collective, size)
        verify(forest)
        assert Forest.parse(str(forest)) == forest
        chunks = {forest.specification.chunk_of(tree) for tree in forest.trees}
        assert sum(forest.chunk_shares) == pytest.approx(len(chunks) if forest.specification.chunked else 1)


def test_tree_answers() -> None:
    tree = Tree(4, ((3, 4), (0, 3), (2, 4), (1, 3)))
    assert tree.members == (0, 1, 2, 3, 4)
    assert [tree.parent_of(rank) for rank in range(6)] == [3, 3, 4, 4, None, None]
    assert [tree.children_of(rank) for rank in (4, 3, 0, 9)] == [(2, 3), (0, 1), (), ()]
    assert tree.depth == 2
    assert Tree(7, ()).members == (7,)
    assert Tree(7, ()).depth == 0
    assert Tree.path([2, 0, 1]) == Tree(2, ((0, 2), (1, 0)))
    assert Tree.star(1, range(3)) == Tree(1, ((0, 1), (2, 1)))


STARS = Forest("all_reduce", 4, None, tuple(Tree.star(root, range(4)) for root in range(4)), (0.25,) * 4)


def broken(tree: Tree) -> Forest:
    return replace(STARS, trees=(*STARS.trees[:2], tree, STARS.trees[3]))


@pytest.mark.parametrize(
    ("forest", "message", "marked"),
    [
        (broken(Tree(2, ((0, 2), (1, 2)))), "tree 2: rank 3 is missing", "2"),
        (broken(Tree(2, ((0, 2), (1, 2), (3, 2), (3, 1)))), "tree 2: rank 3 is counted twice: child of 2 and 1", "3>1"),
        (broken(Tree(2, ((0, 2), (1, 3), (3, 1)))), "tree 2: rank 1 is on a cycle or leads to one: 1 > 3 > 1", "1>3"),
        (broken(Tree(2, ((0, 0), (1, 2), (3, 2)))), "tree 2: rank 0 is on a cycle or leads to one: 0 > 0", "0>0"),
        (broken(Tree(2, ((0, 2), (1, 2), (3, 2), (4, 2)))), "tree 2: rank 4 is not one of", "4>2"),
        (broken(Tree(2, ((0, 2), (1, -1), (3, 2)))), "tree 2: rank -1 is not one of", "1>-1"),
        (broken(Tree(2, ((0, 2), (1, 2), (2, 0), (3, 2)))), "tree 2: rank 2 is the root but has a parent, 0", "2>0"),
        (broken(Tree(9, ((0, 2), (1, 2), (3, 2)))), "tree 2: the tree's root is 9; wanted a rank from 0 to 3", "9"),
        (replace(STARS, shares=(0.5, 0.5, -0.25, 0.25)), "tree 2: the share is -0.25; wanted at least 0", "-0.25"),
        (replace(STARS, shares=(0.5, 0.5, float("nan"), 0.0)), "tree 2: the share is nan", "nan"),
        (replace(STARS, shares=(0.25, 0.25, 0.25, 0.5)), "tree 3: with this tree the shares add up to 1.25", "0.5"),
    ],
)  # fmt: skip
def test_verifier_points_at_the_fault(forest: Forest, message: str, marked: str) -> None:
    with pytest.raises(PlanError) as caught:
        verify(forest)
    said, line, arrow = str(caught.value).split("\n")
    assert message in said
    assert line[arrow.index("^") : arrow.rindex("^") + 1] == marked


@pytest.mark.parametrize(
    ("forest", "message"),
    [
        (replace(STARS, root=0), "the root is 0; wanted none"),
        (replace(STARS, collective="broadcast"), "the root is None; wanted a rank from 0 to 3"),
        (replace(STARS, collective="reduce", root=4), "the root is 4"),
        (replace(STARS, collective="reduce", root=1), "tree 0: the tree's root is 0; wanted the collective's root 1"),
        (replace(STARS, shares=(0.5, 0.5)), "got 4 trees and 2 shares"),
        (replace(STARS, trees=(), shares=()), "got 0 trees"),
        (replace(STARS, collective="all_to_all"), "tree 0: the tree of rank 0 joins 4 ranks; wanted 2"),
        (replace(STARS, collective="all_gather", trees=(STARS.trees[0],) * 4), "no tree carries the chunk of rank 1"),
        (replace(STARS, collective="reduce_scatter", shares=(0.5, 0.5, 0, 0)), "no tree carries the chunk of rank 2"),
        (Forest("all_to_all", 2, None, (Tree(0, ((1, 0),)),), (1.0,)), "no tree carries the chunk of rank 1 to rank 0"),
    ],
)  # fmt: skip
def test_verifier_refuses_what_is_not_this_collective(forest: Forest, message: str) -> None:
    with pytest.raises(PlanError, match=message.replace("'", ".")):
        verify(forest)


@pytest.mark.parametrize("collective", ["all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather"])
def test_every_mutation_is_refused(collective: str) -> None:
    rng = random.Random(collective)
    for _ in range(200):
        forest = random_forest(rng, collective, rng.randint(2, 8))
        index = rng.randrange(len(forest.trees))
        tree, edges = forest.trees[index], list(forest.trees[index].edges)
        place = rng.randrange(len(edges))
        child, parent = edges[place]
        below = [child]
        for rank in below:
            below.extend(tree.children_of(rank))
        mutations = [
            [*edges[:place], *edges[place + 1 :]],
            [*edges, (child, rng.randrange(forest.size))],
            [*edges[:place], (child, rng.choice(below)), *edges[place + 1 :]],
            [*edges[:place], (child, forest.size), *edges[place + 1 :]],
            [*edges, (tree.root, parent)],
            [*edges[:place], (tree.root, parent), *edges[place + 1 :]],
        ]
        for mutated in mutations:
            trees = [*forest.trees]
            trees[index] = Tree(tree.root, tuple(mutated))
            with pytest.raises(PlanError, match=rf"tree {index}: .*rank"):
                verify(replace(forest, trees=tuple(trees)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: wanted 'C of N ranks'"),
        ("all_reduce of four ranks", "line 1"),
        ("allreduce of 4 ranks", "line 1"),
        ("all_reduce of 2 ranks\nshare x root 0: 1>0", "line 2: wanted 'share S root R"),
        ("all_reduce of 2 ranks\nshare 1.0 root 0: 1>0 2<0", "line 2: got '2<0', wanted child>parent"),
    ],
)
def test_parse_names_the_line(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Forest.parse(text)


def test_long_lines_are_cut_around_the_fault() -> None:
    size = 200
    tree = Tree(0, (*Tree.star(0, range(size)).edges, (150, 3)))
    with pytest.raises(PlanError) as caught:
        verify(Forest("all_reduce", size, None, (tree,), (1.0,)))
    _, line, arrow = str(caught.value).split("\n")
    assert len(line) < 120
    assert line[arrow.index("^") : arrow.rindex("^") + 1] == "150>3"
