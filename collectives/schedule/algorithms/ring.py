"""Ring: for one cyclic order of the ranks, a path for each rank. Every rank has connections to two neighbours only."""

from __future__ import annotations

import numpy as np

from collectives.schedule.algorithms.roots import tree_roots
from collectives.schedule.op import Collective
from collectives.schedule.tree import Tree
from collectives.topology import Topology

SEARCH_STEPS = 20_000  # finding a Hamiltonian cycle may take exponential time


def ring(topology: Topology, collective: Collective, root: int | None = None) -> list[Tree]:
    """A path from each rank (with a root: from the root) round the order. Empty if every order crosses a dead pair."""
    order = [rank for host in host_order(topology) for rank in topology.hosts[host].ranks]
    starts = tree_roots(order, collective) if root is None else [root]
    return [Tree.path(rotated(order, order.index(tree_root))) for tree_root in starts] if order else []


def rotated(order: list[int], start: int) -> list[int]:
    """The cyclic order from position `start` on."""
    return order[start:] + order[:start]


def host_order(topology: Topology) -> list[int]:
    """The cyclic order of host indices that maximises the slowest link between neighbours; empty if none is possible.

    Hosts behind one switch reach all others at the same rate, so without pairs any order that keeps sites together will
    do. With pairs this is a bottleneck travelling salesman problem: find the largest rate such that links of at least
    that rate contain a cycle through all hosts, by bisection over the rates that occur.
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
    """For hosts a, b the rate of the slowest link between them in either direction, in bytes per second.

    Either, because an all-reduce uses a path in both.
    """
    first = np.array([host.ranks[0] for host in topology.hosts])
    rates = np.array([*(link.bytes_per_s for link in topology.links), np.inf])
    found = {}
    for a, rank in enumerate(first):
        there = rates[topology.routes(np.full_like(first, rank), first)].min(axis=1)
        back = rates[topology.routes(first, np.full_like(first, rank))].min(axis=1)
        found[a] = {b: rate for b, rate in enumerate(np.minimum(there, back).tolist()) if b != a}
    return found


def _cycle(order: list[int], neighbours: dict[int, list[int]]) -> list[int]:
    """A cycle through all hosts; [] if none was found in SEARCH_STEPS.

    Depth first. The next host is the neighbour with the fewest unused neighbours (Warnsdorff's rule), because that one
    is the most likely to become unreachable later.
    """
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
