"""Binary: two binary trees over the hosts. Each host is an inner node in at most one of them.

An inner node sends three times what its tree carries (once to its parent, twice to its children) and a leaf once. With
half of the message on each tree every host sends twice the message, nearly as little as in a ring, but the depth grows
with the logarithm of the number of hosts, and there are two trees' messages only. So this is for large groups (Sanders,
Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009).
"""

from __future__ import annotations

from collectives.schedule.algorithms.spanning import over_hosts
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def binary(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """Two heaps over the hosts, one in their order and one in the reverse; the collective's root is first in both.

    Empty for collectives whose trees carry chunks: each chunk needs a root of its own. Empty for fewer than 4 hosts.
    """
    count = len(topology.hosts)
    if SPECIFICATIONS[collective].chunked or count < 4:
        return []
    order = list(range(count))
    trees = []
    for turn, hosts in enumerate((order, order[::-1])):
        if root is not None:
            hosts.remove(topology.host_index(root))
            hosts.insert(0, topology.host_index(root))
        above = {hosts[i]: hosts[(i - 1) // 2] for i in range(1, count)}
        tree_root = topology.hosts[hosts[0]].ranks[0] if root is None else root
        trees.append(over_hosts(topology, above, tree_root, turn))
    return trees
