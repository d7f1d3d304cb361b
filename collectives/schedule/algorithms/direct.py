"""Direct: one star for each rank. Each inner_root receives its share from everyone and sends the result back."""

from __future__ import annotations

from collectives.schedule.algorithms.roots import tree_roots
from collectives.schedule.op import Collective
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def direct(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """One star for each rank; with a root, a star around each other rank that hands on to (or from) the root.

    With the root r and the inner root h, every rank but r is a child of h, and h is the only child of r: a broadcast is
    then a scatter and an all-gather in one, and no rank sends much more than the message.
    """
    ranks = range(topology.size)
    if root is None:
        return [Tree.star(inner_root, ranks) for inner_root in tree_roots(ranks, collective)]
    others = [rank for rank in ranks if rank != root]
    return [
        Tree(root, ((inner_root, root), *Tree.star(inner_root, others).edges))
        for inner_root in tree_roots(others, collective)
    ] or [Tree(root, ())]


def pairs(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """All-to-all's only forest: a tree for each ordered pair of ranks."""
    ranks = range(topology.size)
    return [Tree(i, ((j, i),)) for i in ranks for j in ranks if i != j] or [Tree(0, ())]
