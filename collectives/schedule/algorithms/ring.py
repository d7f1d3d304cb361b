"""Ring: for one cyclic order of the ranks, a path for each rank. Every rank talks only to its two neighbours."""

from __future__ import annotations

import numpy as np

from collectives.schedule.algorithms.roots import tree_roots
from collectives.schedule.op import Collective
from collectives.schedule.tree import Tree
from collectives.topology import Topology

SEARCH_STEPS = 20_000


def ring(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """A path from each rank (with a root: from the root) once round the order. Empty if no order avoids a dead pair."""
    order = [rank for host in host_order(topology) for rank in topology.hosts[host].ranks]
    starts = tree_roots(order, collective) if root is None else [root]
    return [Tree.path(turned(order, order.index(tree_root))) for tree_root in starts] if order else []


def turned(order: list[int], start: int) -> list[int]:
    """The cyclic order, begun at position `start`."""
    return order[start:] + order[:start]


def host_order(topology: Topology) -> list[int]:
    """The cyclic order of host indices that maximises the slowest link between neighbours; empty if none is possible.

    Hosts behind one switch send as fast to any neighbour as to any other, so only pairs with a link of their own count;
    hosts of one site stay together. With pairs, the largest rate is sought for which neighbours that are all at least
    as fast still make a cycle (a bottleneck travelling salesman), by bisection over the rates that occur.
    """
    order = [host for group in topology.site_groups for host in group]
    if not topology.pairs or len(order) < 2:
        return order
    speed = speeds(topology)
    rates = sorted({rate for row in speed.values() for rate in row.values() if rate > 0})
    best: list[int] = []
    low, high = 0, len(rates)
    while low < high:
        middle = (low + high) // 2
        found = _cycle(order, {a: [b for b in order if b != a and speed[a][b] >= rates[middle]] for a in order})
        if found:
            best, low = found, middle + 1
        else:
            high = middle
    return best


def speeds(topology: Topology) -> dict[int, dict[int, float]]:
    """For hosts a, b the slowest link between them in bytes per second, either way: a path is crossed both ways."""
    first = np.array([host.ranks[0] for host in topology.hosts])
    rates = np.array([*(link.bytes_per_s for link in topology.links), np.inf])
    found = {}
    for a, rank in enumerate(first):
        there = rates[topology.routes(np.full_like(first, rank), first)].min(axis=1)
        back = rates[topology.routes(first, np.full_like(first, rank))].min(axis=1)
        found[a] = {b: rate for b, rate in enumerate(np.minimum(there, back).tolist()) if b != a}
    return found


def _cycle(order: list[int], neighbours: dict[int, list[int]]) -> list[int]:
    """A cycle through all hosts, or [] if none was found: depth first, the neighbour with the fewest ways on first."""
    way, options = [order[0]], [iter(neighbours[order[0]])]
    used = {order[0]}
    for _ in range(SEARCH_STEPS):
        if not way:
            break
        if len(way) == len(order) and order[0] in neighbours[way[-1]]:
            return way
        following = next((host for host in options[-1] if host not in used), None)
        if following is None:
            options.pop()
            used.discard(way.pop())
            continue
        way.append(following)
        used.add(following)
        free = [host for host in neighbours[following] if host not in used]
        options.append(iter(sorted(free, key=lambda host: (len(set(neighbours[host]) - used), host))))
    return []
