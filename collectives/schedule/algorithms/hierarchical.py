"""Hierarchical: fold inside each host first, so that one copy of a slice crosses each host's links, and each site's."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.schedule.algorithms.ring import host_order, turned
from collectives.schedule.algorithms.roots import tree_roots
from collectives.schedule.op import Collective
from collectives.schedule.tree import Tree
from collectives.topology import Topology


def hierarchical(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """A levelled star for each rank; with a root, one around each rank of another host, hung below the root."""
    if root is None:
        return [
            levelled(topology, tree_root, turn=tree_root) for tree_root in tree_roots(range(topology.size), collective)
        ]
    home = topology.host_of(root).ranks
    inner_roots = [rank for rank in range(topology.size) if rank not in home]
    near = tuple((rank, root) for rank in home if rank != root)
    return [
        Tree(root, (*near, (inner_root, root), *levelled(topology, inner_root, inner_root, without=home).edges))
        for inner_root in tree_roots(inner_roots, collective)
    ]


def hierarchical_ring(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """For each rank (with a root: for the root) a path over the hosts, from one rank of each to one of the next."""
    order = host_order(topology)
    starts = tree_roots(range(topology.size), collective) if root is None else [root]
    trees = []
    for tree_root in starts if order else []:
        edges: list[tuple[int, int]] = []
        hosts = turned(order, order.index(topology.host_index(tree_root)))
        leads = [_fold(edges, topology.hosts[host].ranks, tree_root, turn=tree_root) for host in hosts]
        trees.append(Tree(tree_root, (*Tree.path(leads).edges, *edges)))
    return trees


def levelled(topology: Topology, root: int, turn: int, without: Sequence[int] = ()) -> Tree:
    """A star in levels: ranks hang below one of their host, those below one of their site, and those below the root.

    Which local rank crosses the host's links rotates with `turn`, so that a forest uses them evenly.
    """
    edges: list[tuple[int, int]] = []
    hosts = [host.ranks for host in topology.hosts]
    site_leads = []
    for group in topology.site_groups:
        leads = [_fold(edges, hosts[i], root, turn) for i in group if hosts[i][0] not in without]
        site_leads += [_fold(edges, leads, root, turn)] if leads else []
    _fold(edges, site_leads, root, turn)
    return Tree(root, tuple(edges))


def _fold(edges: list[tuple[int, int]], ranks: Sequence[int], root: int, turn: int) -> int:
    """Hang the ranks below one of them, the root if it is there; returns that one."""
    lead = root if root in ranks else ranks[turn % len(ranks)]
    edges += [(rank, lead) for rank in ranks if rank != lead]
    return lead
