"""Shallow: one levelled star for small messages, whose time depends on messages and hops, not on bandwidth."""

from __future__ import annotations

from collectives.schedule.algorithms.hierarchical import levelled
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def shallow(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """One levelled star around the root, or else around the first rank of the host with the best links.

    Empty for collectives whose trees carry chunks: each chunk needs a root of its own.
    """
    if SPECIFICATIONS[collective].chunked:
        return []
    if root is None:
        root = max(
            topology.hosts, key=lambda h: (-h.latency_s, min(h.up_bytes_per_s, h.down_bytes_per_s), -h.ranks[0])
        ).ranks[0]
    return [levelled(topology, root, turn=0)]
