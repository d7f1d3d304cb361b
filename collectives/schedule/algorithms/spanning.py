"""Spanning: trees over the fastest links between hosts, for topologies where some pairs are slow or not connected.

A chain or a grid of hosts may have no cycle for a ring, and no host that reaches all others for a star, but it always
has a spanning tree.
"""

from __future__ import annotations

from collections.abc import Mapping

from collectives.schedule.algorithms.ring import speeds
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def spanning(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """The maximum spanning tree of the hosts, rooted at its middle, at the root, or (with chunks) at every rank.

    Its slowest link is the fastest possible. Empty if no pair has a link of its own: then a star is such a tree.
    """
    if not topology.pairs or len(topology.hosts) < 2:
        return []
    beside = _widest_tree(topology)
    if root is not None:
        roots = [root]
    elif SPECIFICATIONS[collective].chunked:
        roots = list(range(topology.size))
    else:
        roots = [topology.hosts[_middle(beside)].ranks[0]]
    return [
        over_hosts(topology, _directed(beside, topology.host_index(tree_root)), tree_root, turn=tree_root)
        for tree_root in roots
    ]


def over_hosts(
    topology: Topology, above: Mapping[int, int], root: int, turn: int, hang: Mapping[int, int] | None = None
) -> Tree:
    """A tree over hosts as a tree over ranks: one rank of each host is its lead, the others are the lead's children.

    Args:
        above: for each host but the root's, by index, its parent host.
        root: the rank at the root; the lead of its host.
        turn: rotates which rank of a host is its lead.
        hang: for some hosts another host, whose lead is the parent of their other ranks.
    """
    home, hang = topology.host_index(root), hang or {}
    leads = [root if index == home else host.ranks[turn % len(host.ranks)] for index, host in enumerate(topology.hosts)]
    edges = [(leads[child], leads[parent]) for child, parent in above.items()]
    for index, host in enumerate(topology.hosts):
        edges += [(rank, leads[hang.get(index, index)]) for rank in host.ranks if rank != leads[index]]
    return Tree(root, tuple(edges))


def _widest_tree(topology: Topology) -> dict[int, list[int]]:
    """Each host's neighbours in the maximum spanning tree, by Prim's algorithm."""
    rates = speeds(topology)
    best = {host: (rates[0][host], 0) for host in rates if host != 0}
    beside: dict[int, list[int]] = {host: [] for host in rates}
    while best:
        host = max(best, key=lambda h: (best[h][0], -h))
        _, parent = best.pop(host)
        beside[host].append(parent)
        beside[parent].append(host)
        for other in best:
            if rates[host][other] > best[other][0]:
                best[other] = (rates[host][other], host)
    return beside


def _directed(beside: dict[int, list[int]], root: int) -> dict[int, int]:
    """Each host's parent when the tree is rooted at `root`."""
    above: dict[int, int] = {}
    order = [root]
    for host in order:
        for other in beside[host]:
            if other != above.get(host):
                above[other] = host
                order.append(other)
    return above


def _middle(beside: dict[int, list[int]]) -> int:
    """The host whose farthest host is nearest: the middle of the longest path.

    The host farthest from any host is one end of a longest path, and the one farthest from that end is the other.
    """
    ways: list[int] = [0]
    for _ in range(2):
        above = _directed(beside, ways[0])
        ways = [list(above)[-1] if above else ways[0]]
        while ways[-1] in above:
            ways.append(above[ways[-1]])
    return ways[len(ways) // 2]
