"""Candidate trees: pure functions from a topology, a collective and its root (if it has one) to a list of trees.

An empty list means that the algorithm does not apply. The planner decides on the shares.
"""

from __future__ import annotations

from collections.abc import Callable

from collectives.schedule.algorithms.binary import binary
from collectives.schedule.algorithms.direct import direct, pairs
from collectives.schedule.algorithms.hierarchical import hierarchical, hierarchical_ring
from collectives.schedule.algorithms.ring import ring
from collectives.schedule.algorithms.shallow import shallow
from collectives.schedule.algorithms.spanning import spanning
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import Topology

Algorithm = Callable[[Topology, Collective, "int | None"], "list[Tree]"]

ALGORITHMS: dict[str, Algorithm] = {
    "direct": direct,
    "hierarchical": hierarchical,
    "shallow": shallow,
    "ring": ring,
    "hierarchical_ring": hierarchical_ring,
    "binary": binary,
    "spanning": spanning,
}
"""By name, the plainest first: of options that take equally long the planner takes the first."""


def candidates(topology: Topology, collective: Collective, root: int | None = None) -> dict[str, list[Tree]]:
    """The trees of each algorithm that applies; one with the same trees as an earlier one is left out."""
    if SPECIFICATIONS[collective].pairwise:
        return {"direct": pairs(topology, collective, root)}
    offered: dict[str, list[Tree]] = {}
    for name, algorithm in ALGORITHMS.items():
        trees = algorithm(topology, collective, root)
        if trees and trees not in offered.values():
            offered[name] = trees
    return offered
