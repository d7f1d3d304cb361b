"""Hierarchical: fold inside each host first, so that a slice crosses the links of each host and site only once."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.schedule.algorithms.ring import host_order, rotated
from collectives.schedule.algorithms.roots import tree_roots
from collectives.schedule.op import Collective
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def hierarchical(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """A levelled star for each rank; with a root, one around each rank of the other hosts, as a child of the root."""
    if root is None:
        return [
            levelled(topology, tree_root, turn=tree_root) for tree_root in tree_roots(range(topology.size), collective)
        ]
    home = topology.host_of(root).ranks
    centers = [rank for rank in range(topology.size) if rank not in home]
    near = tuple((rank, root) for rank in home if rank != root)
    return [
        Tree(root, (*near, (center, root), *levelled(topology, center, center, without=home).edges))
        for center in tree_roots(centers, collective)
    ]


def hierarchical_ring(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """For each rank (with a root: for the root) a path over the hosts, through one rank of each."""
    order = host_order(topology)
    starts = tree_roots(range(topology.size), collective) if root is None else [root]
    trees = []
    for tree_root in starts if order else []:
        edges: list[tuple[int, int]] = []
        hosts = rotated(order, order.index(topology.host_index(tree_root)))
        leads = [_gather(edges, topology.hosts[host].ranks, tree_root, turn=tree_root) for host in hosts]
        trees.append(Tree(tree_root, (*Tree.path(leads).edges, *edges)))
    return trees


def levelled(topology: Topology, root: int, turn: int, without: Sequence[int] = ()) -> Tree:
    """A star in levels: ranks are children of their host's lead, leads of their site's lead, and these of the root.

    Args:
        turn: rotates which rank of a host is its lead, so that a forest spreads this work evenly.
        without: ranks of a host to leave out.
    """
    edges: list[tuple[int, int]] = []
    hosts = [host.ranks for host in topology.hosts]
    site_leads = []
    for group in topology.site_groups:
        leads = [_gather(edges, hosts[i], root, turn) for i in group if hosts[i][0] not in without]
        site_leads += [_gather(edges, leads, root, turn)] if leads else []
    _gather(edges, site_leads, root, turn)
    return Tree(root, tuple(edges))


def _gather(edges: list[tuple[int, int]], ranks: Sequence[int], root: int, turn: int) -> int:
    """Make the ranks children of one of them, the root if it is among them; returns that one."""
    lead = root if root in ranks else ranks[turn % len(ranks)]
    edges += [(rank, lead) for rank in ranks if rank != lead]
    return lead
