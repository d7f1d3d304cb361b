"""Direct: one star for each rank, whose center receives its share from all others and sends the result back."""

from __future__ import annotations

from collectives.schedule.algorithms.roots import tree_roots
from collectives.schedule.op import Collective
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def direct(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """One star for each rank; with a root, one star around each other rank, which is the root's only child.

    With the root r and a star's center c, every rank but r is a child of c, and c is the only child of r. A broadcast
    then is a scatter and an all-gather in one, and no rank sends much more than the message.
    """
    ranks = range(topology.size)
    if root is None:
        return [Tree.star(center, ranks) for center in tree_roots(ranks, collective)]
    others = [rank for rank in ranks if rank != root]
    return [
        Tree(root, ((center, root), *Tree.star(center, others).edges)) for center in tree_roots(others, collective)
    ] or [Tree(root, ())]


def pairs(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """The only forest of all-to-all: a tree for each ordered pair of ranks."""
    ranks = range(topology.size)
    return [Tree(i, ((j, i),)) for i in ranks for j in ranks if i != j] or [Tree(0, ())]
