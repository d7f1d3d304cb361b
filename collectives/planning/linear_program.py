"""Shares by linear program (HiGHS), and better trees by its prices.

Shares, for a message of one byte (T is the busiest link's seconds):

    minimise    T
    subject to  sum_t share_t load(t, l) <= capacity_l T     for each link l
                the shares of each chunk's trees add up to 1 / (number of chunks)
                share_t >= 0

Of its many optima we want one whose other links have something to spare: a link that is as busy as the slowest passes
every hiccup on to all. Of these the one with the most even shares and the shallowest trees. So small terms are added to
T, which is scaled to be 1 with equal shares:

    BEYOND mean_l max(0, busy_l - (1 - SPARE) T)  +  EVEN max_t share_t
    +  SHALLOW sum_t share_t (depth_t / largest depth + latency_t / max(largest latency, LONG_S))

Without them the solver would return a corner of the optimal face: few trees with odd shares. A larger T lessens the
first term by less than it costs, since BEYOND is below 1. LONG_S keeps the latencies of a local network from deciding:
they are measured to a tenth at best, and chance would choose among the optima.

Trees, by column generation. All spanning trees are too many to list, so the program starts with those of the algorithms
and asks for more. Its dual values are prices of links, at least 0, with sum 1. Since a mean is at most the maximum, for
any prices and any forest

    T >= sum_l price_l busy_l = sum_t share_t cost_t >= cost of the cheapest tree

where cost_t adds price_l / capacity_l over the links that the edges of tree t cross. So the cheapest tree under the
prices, a spanning arborescence of least weight, has the least reduced cost: it is the best one to add. And its cost is
a lower bound for every forest, listed or not. `grow` adds cheapest trees until T meets the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import block_array, coo_array, csr_array, diags_array, eye_array

from collectives.planning.cost import Passage, left_between
from collectives.schedule.algorithms.spanning import over_hosts
from collectives.schedule.codec import PLAIN, Codec
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS, Specification
from collectives.schedule.tree import Tree
from collectives.topology import Topology

EVEN, SHALLOW, BEYOND = 1e-3, 3e-3, 0.3  # weights of the small terms
SPARE = 0.3  # part of the time that links are to be idle which need not be as busy as the slowest one
LONG_S = 10e-3  # seconds; of trees whose latencies are all below, they count less
MIN_SHARE = 0.01  # of an equal share; a smaller one is not worth a tree's messages
SHARE_DIGITS = 6
PRICE_DIGITS = 9  # ranks plan for themselves, and prices that differ in the last bits must not choose other trees
GAP = 1.003  # T over the bound, at which `grow` stops
MAX_GROWN_HOSTS, MAX_ROUNDS = 32, 60

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shared:
    """The trees with a share above 0, their shares, and the position in `links` of the link that limits them."""

    trees: tuple[Tree, ...]
    shares: tuple[float, ...]
    bottleneck: int


def solve_shares(topology: Topology, collective: Collective, trees: Sequence[Tree], passage: Passage) -> Shared | None:
    """The best shares of these trees.

    Args:
        passage: that of the trees.

    Returns:
        None if there is nothing to choose, one tree for each chunk, or if some chunk can only cross dead links.
    """
    chunk = chunks_of(collective, trees)
    if max(chunk) + 1 == len(trees):
        return None
    busy, dead = _busy(topology, passage.loads)
    unit = _unit(busy)
    links, count = busy.shape
    latencies = passage.latencies_s / max(passage.latencies_s.max(), LONG_S)
    depths = passage.depths / max(passage.depths.max(), 1)
    column = coo_array((np.ones(links), (range(links), [0] * links)), shape=(links, 1))
    ones = coo_array((np.ones(count), (range(count), [0] * count)), shape=(count, 1))
    # Variables: shares, T, the largest share, and of each link what it is busy beyond (1 - SPARE) T. Rows: busy_l <= T
    # of each link, share_t <= the largest of each tree, busy_l <= (1 - SPARE) T + what it is busy beyond.
    rows = block_array(
        [
            [busy / unit, -column, None, None],
            [eye_array(count), None, -ones, None],
            [busy / unit, -(1 - SPARE) * column, None, -eye_array(links)],
        ],
        format="csr",
    )
    found = linprog(
        c=np.concatenate([SHALLOW * (depths + latencies), [1.0, EVEN], np.full(links, BEYOND / links)]),
        A_ub=rows,
        b_ub=np.zeros(2 * links + count),
        A_eq=_chunk_rows(chunk, 2 + links),
        b_eq=np.full(max(chunk) + 1, 1 / (max(chunk) + 1)),
        bounds=[(0, 0 if tree in dead else 1) for tree in range(count)] + [(0, None), (0, 1)] + [(0, None)] * links,
        method="highs",
    )
    if not found.success:
        return None
    shares = _rounded(found.x[:count], chunk)
    kept = [i for i, share in enumerate(shares) if share > 0]
    # The link with the highest price: more capacity there would help most.
    bottleneck = int(np.argmax(np.round(-found.ineqlin.marginals[:links], 6)))
    return Shared(tuple(trees[i] for i in kept), tuple(shares[i] for i in kept), bottleneck)


def grow(
    topology: Topology, collective: Collective, root: int | None, trees: Sequence[Tree], codec: Codec = PLAIN
) -> tuple[list[Tree], float]:
    """Add trees until none would help.

    Args:
        root: the collective's, if it has one.
        trees: those to start with.

    Returns:
        New trees that get a share beside the first ones, and a bound in seconds per byte that no forest goes below.
        ([], 0.0) if the topology is too large for this, or some chunk can only cross dead links.
    """
    if len(topology.hosts) > MAX_GROWN_HOSTS or SPECIFICATIONS[collective].pairwise:
        return [], 0.0
    grown, bound, known = list(trees), 0.0, set(trees)
    for turn in range(MAX_ROUNDS):  # each round solves the program again with the trees found so far
        solved = _prices(topology, collective, grown, codec)
        if solved is None:
            return [], 0.0
        taken, prices, shares = solved
        cheapest, cost = _cheapest(topology, collective, root, prices, turn, codec)
        bound = max(bound, cost)  # the bound holds for any prices, so the best of all rounds counts
        new = [tree for tree in cheapest if tree not in known]
        if taken <= GAP * bound or not new:
            break
        known.update(new)
        grown += new
    first = set(trees)
    return [tree for tree, share in zip(grown, shares, strict=False) if share > 0 and tree not in first], bound


def _prices(
    topology: Topology, collective: Collective, trees: Sequence[Tree], codec: Codec
) -> tuple[float, Floats, Floats] | None:
    """The program without its small terms, which would distort the prices: T in seconds per byte, prices, shares."""
    chunk = chunks_of(collective, trees)
    busy, dead = _busy(topology, Passage(topology, collective, trees, codec).loads)
    unit = _unit(busy)
    links, count = busy.shape
    column = coo_array((np.ones(links), (range(links), [0] * links)), shape=(links, 1))
    found = linprog(
        c=np.concatenate([np.zeros(count), [1.0]]),
        A_ub=block_array([[busy / unit, -column]], format="csr"),
        b_ub=np.zeros(links),
        A_eq=_chunk_rows(chunk, 1),
        b_eq=np.full(max(chunk) + 1, 1 / (max(chunk) + 1)),
        bounds=[(0, 0 if tree in dead else 1) for tree in range(count)] + [(0, None)],
        method="highs",
    )
    if not found.success:
        return None
    prices = np.round(np.maximum(-found.ineqlin.marginals, 0.0), PRICE_DIGITS)
    return float(found.x[-1] * unit), prices / prices.sum(), found.x[:count]


def _cheapest(
    topology: Topology, collective: Collective, root: int | None, prices: Floats, turn: int, codec: Codec
) -> tuple[list[Tree], float]:
    """The cheapest tree of each chunk under the prices, and the cost of all: a bound, in seconds per byte.

    Ranks of a host have the same links, so the arborescence is sought over hosts. A host's other ranks hang below its
    lead, or below another host's lead where memory is the more expensive way.
    """
    spec, hosts = SPECIFICATIONS[collective], topology.hosts
    weights, memory = _weights(topology, spec, prices, codec)
    near = weights.argmin(axis=1)
    nearest = weights[np.arange(len(hosts)), near] if len(hosts) > 1 else memory
    hang = {host: int(near[host]) for host in range(len(hosts)) if memory[host] > nearest[host]}
    others = np.array([len(host.ranks) - 1 for host in hosts])
    below = float((others * np.minimum(memory, nearest)).sum())
    if root is not None:
        tree_roots = [root]
    elif spec.chunked:
        tree_roots = list(range(topology.size))
    else:
        # The weights are the same in both directions together, so any root gives the same cost; taking turns spreads
        # the roots over hosts.
        tree_roots = [hosts[turn % len(hosts)].ranks[0]]
    trees, cost = [], 0.0
    at_host: dict[int, dict[int, int]] = {}
    for tree_root in tree_roots:
        home = topology.host_index(tree_root)
        if home not in at_host:
            at_host[home] = cheapest_arborescence(weights, home)
        above = at_host[home]
        trees.append(over_hosts(topology, above, tree_root, turn, hang))
        cost += (below + sum(float(weights[child, parent]) for child, parent in above.items())) / len(tree_roots)
    return trees, cost


def _weights(topology: Topology, spec: Specification, prices: Floats, codec: Codec) -> tuple[Floats, Floats]:
    """The price of a byte of the message between a child host (row) and its parent (column), and within each host."""
    first = np.array([host.ranks[0] for host in topology.hosts])
    rates = np.array([link.bytes_per_s for link in topology.links])
    paid = np.full(len(rates) + 1, np.inf)  # dead links cost infinitely much
    paid[:-1][rates > 0] = prices[rates > 0] / rates[rates > 0]
    paid[-1] = 0.0
    children, parents = (ranks.ravel() for ranks in np.meshgrid(first, first, indexing="ij"))
    weights = np.zeros(len(children))
    if spec.up:
        weights += paid[topology.routes(children, parents)].sum(axis=1)
    if spec.down:
        weights += paid[topology.routes(parents, children)].sum(axis=1)
    square = weights.reshape(len(first), len(first)) * left_between(topology, codec)
    memory = square.diagonal().copy()
    np.fill_diagonal(square, np.inf)
    return square, memory


def cheapest_arborescence(weights: Floats, root: int) -> dict[int, int]:
    """Each node's parent in the tree of least weight whose paths all end at the root (Chu and Liu, Edmonds).

    Each node takes its cheapest parent. If that makes a cycle, it is contracted to one node and the smaller problem is
    solved, which opens the cycle at one node.

    Args:
        weights: from child (row) to parent (column); infinite where there is no edge.
    """
    parents = {node: int(weights[node].argmin()) for node in range(len(weights)) if node != root}
    cycle = _cycle(parents)
    if not cycle:
        return parents
    # The cycle becomes one node, the last. Its edge out replaces one of the cycle's own: its weight is the difference.
    outside = [node for node in range(len(weights)) if node not in cycle]
    into = weights[np.ix_(outside, cycle)]
    saved = np.array([weights[node, parents[node]] for node in cycle])
    out_of = weights[np.ix_(cycle, outside)] - saved[:, None]
    size = len(outside) + 1
    contracted = np.full((size, size), np.inf)
    contracted[:-1, :-1] = weights[np.ix_(outside, outside)]
    contracted[:-1, -1], contracted[-1, :-1] = into.min(axis=1), out_of.min(axis=0)
    found = {node: parents[node] for node in cycle}
    for child, parent in cheapest_arborescence(contracted, outside.index(root)).items():
        if child == size - 1:
            found[cycle[int(out_of[:, parent].argmin())]] = outside[parent]
        else:
            found[outside[child]] = cycle[int(into[child].argmin())] if parent == size - 1 else outside[parent]
    return found


def _cycle(parents: dict[int, int]) -> list[int]:
    """A cycle among the parents; [] if there is none."""
    done: set[int] = set()
    for start in parents:
        way: list[int] = []
        node = start
        while node in parents and node not in done:
            if node in way:
                return way[way.index(node) :]
            way.append(node)
            node = parents[node]
        done.update(way)
    return []


def chunks_of(collective: Collective, trees: Sequence[Tree]) -> list[int]:
    """For each tree the number of its chunk, from 0 in order of appearance; all 0 where trees carry the message."""
    spec, numbers = SPECIFICATIONS[collective], dict[tuple[int, ...], int]()
    return [numbers.setdefault(spec.chunk_of(tree) if spec.chunked else (), len(numbers)) for tree in trees]


def _busy(topology: Topology, loads: Any) -> tuple[Any, set[int]]:
    """Seconds per byte of each link (row) for each tree (column), and the trees that cross a link without capacity."""
    rates = np.array([link.bytes_per_s for link in topology.links])
    per_rate = np.divide(1.0, rates, out=np.zeros(len(rates)), where=rates > 0)
    dead = np.asarray(loads.T @ (rates == 0).astype(np.float64)) > 0
    return csr_array(diags_array(per_rate) @ loads), set(np.flatnonzero(dead).tolist())


def _unit(busy: Any) -> float:
    """T with equal shares, in seconds per byte."""
    return float(np.asarray(busy.mean(axis=1)).max()) or 1.0


def _chunk_rows(chunk: Sequence[int], others: int) -> Any:
    """One row for each chunk, which adds up its trees' shares; `others` variables follow the shares."""
    return coo_array(
        (np.ones(len(chunk)), (chunk, range(len(chunk)))), shape=(max(chunk) + 1, len(chunk) + others)
    ).tocsr()


def _rounded(shares: Floats, chunk: Sequence[int]) -> list[float]:
    """Shares without tiny ones and float noise; those of each chunk still add up to 1 / (number of chunks)."""
    members: dict[int, list[int]] = {}
    for tree, number in enumerate(chunk):
        members.setdefault(number, []).append(tree)
    rounded = [0.0] * len(chunk)
    for trees in members.values():
        total = 1 / len(members)
        kept = [tree for tree in trees if shares[tree] >= MIN_SHARE * total / len(trees)]
        kept_total = sum(float(shares[tree]) for tree in kept)
        for tree in kept:
            rounded[tree] = round(total * float(shares[tree]) / kept_total, SHARE_DIGITS)
        largest = max(kept, key=lambda tree: (rounded[tree], -tree))
        rounded[largest] = total - sum(rounded[tree] for tree in kept if tree != largest)
    return rounded
