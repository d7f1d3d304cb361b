"""Chooses the forest: which trees, and which share of the message each gets.

Every algorithm's trees are candidates. Their shares come from a linear program (HiGHS), here for a message of one byte:

    minimise    T
    subject to  sum_t bytes_t load(t, l) <= capacity_l T     for each link l, with bytes_t as in cost.py
                the shares of each chunk's trees add up to 1 / (number of chunks)
                share_t >= 0

and, among its many optima, the most even shares and the shallowest trees: two small terms in the objective. The dual
values say how much of T hangs on each link; the largest names the bottleneck. Each algorithm is an option with equal
shares and with the program's, and so are all algorithms together ("mixed") where none alone comes near the bound. The
plainest option whose predicted seconds are within NEAR of the best wins: equal links give the direct forest with equal
shares. Small messages get few messages and hops by the same comparison, because `cost` counts those.

Ranks plan for themselves and must agree: nothing here is random, shares are rounded, and the forest depends on the size
class, not on the exact size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from collectives.algorithms import candidates
from collectives.cost import Cost, Load, bound_s, cost, latency_s, load
from collectives.engine.op import Collective
from collectives.errors import PlanError
from collectives.explain import explain
from collectives.forest import Forest, Tree, verify
from collectives.specification import SPECIFICATIONS
from collectives.topology import Topology

NEAR = 1.01
SMALLEST_CLASS, LARGEST_CLASS = 5, 13  # 4**5 = 1 KiB and less; 4**13 = 64 MiB and more
EVEN, SHALLOW = 1e-3, 3e-3  # weights of the small terms, where T with equal shares is 1
LEAST_SHARE = 0.01  # of an equal share; less is not worth a tree's messages
SHARE_DIGITS = 6


def size_class(num_bytes: int) -> int:
    """The class k of messages that share a forest: 4**(k-1) < num_bytes <= 4**k, within SMALLEST and LARGEST_CLASS."""
    exponent = (max(num_bytes, 1) - 1).bit_length()
    return min(max((exponent + 1) // 2, SMALLEST_CLASS), LARGEST_CLASS)


@dataclass(frozen=True)
class Option:
    """A forest that could be chosen.

    Attributes:
        algorithm: its name, with "planned shares" if the shares came from the linear program.
        cost: what it takes.
        bottleneck: name of the link that limits it; None if it crosses no link.
    """

    algorithm: str
    forest: Forest
    cost: Cost
    bottleneck: str | None


@dataclass(frozen=True)
class Plan:
    """The forest for one topology, one collective and one size class.

    Attributes:
        num_bytes: size of the message that `predicted_s` and `bound_s` are about.
        size_class: all sizes of this class have the same forest and fingerprint.
        algorithm: where the forest comes from, such as "direct" or "mixed, planned shares".
        predicted_s: seconds by `cost.cost`.
        bound_s: seconds below which no forest can be, None if no network link is crossed; see `cost.bound_s`.
        bottleneck: name of the link that limits the forest.
        options: algorithm and predicted seconds of all that was compared, the chosen one included.
    """

    topology: Topology
    collective: Collective
    num_bytes: int
    size_class: int
    forest: Forest
    algorithm: str
    predicted_s: float
    bound_s: float | None
    bottleneck: str | None
    options: tuple[tuple[str, float], ...]

    def explain(self) -> str:
        """For people: the topology, the forest, predicted seconds, the bound, the bottleneck and the losers."""
        return explain(self)

    def summary(self) -> dict[str, Any]:
        """For JSON: the same in short."""
        return {
            "collective": self.collective,
            "num_bytes": self.num_bytes,
            "size_class": self.size_class,
            "ranks": self.topology.size,
            "hosts": len(self.topology.hosts),
            "algorithm": self.algorithm,
            "trees": len(self.forest.trees),
            "root": self.forest.root,
            "predicted_s": self.predicted_s,
            "bound_s": self.bound_s,
            "bottleneck": self.bottleneck,
            "options": dict(self.options),
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> int:
        """32 bits, equal on all ranks that hold the same topology and forest for the same size class."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> int:
        rounded = tuple(f"{share:.{SHARE_DIGITS}f}" for share in self.forest.shares)
        held = (self.topology.fingerprint(), self.size_class, self.forest.title, self.forest.trees, rounded)
        return zlib.crc32(repr(held).encode())


def plan(topology: Topology, collective: Collective, num_bytes: int, root: int | None = None) -> Plan:
    """The plan for one message; the costly part is cached for each topology, collective and root.

    Args:
        num_bytes: size as nccl-tests counts it: the larger of what goes into a rank and what comes out.
        root: rank that has (broadcast) or gets (reduce) the message; None for other collectives.

    Raises:
        PlanError: a root where none belongs, none where one does, or ranks that no algorithm can join.
    """
    if SPECIFICATIONS[collective].rooted != (root is not None) or not 0 <= (root or 0) < topology.size:
        raise PlanError(f"{collective} of {topology.size} ranks: got root {root}")
    kind = size_class(num_bytes)
    chosen, options = _choice(topology, collective, kind, root)
    return Plan(
        topology=topology,
        collective=collective,
        num_bytes=num_bytes,
        size_class=kind,
        forest=chosen.forest,
        algorithm=chosen.algorithm,
        predicted_s=chosen.cost.seconds(num_bytes),
        bound_s=bound_s(topology, collective, num_bytes, root),
        bottleneck=chosen.bottleneck,
        options=tuple((option.algorithm, option.cost.seconds(num_bytes)) for option in options),
    )


@lru_cache(maxsize=128)
def _choice(
    topology: Topology, collective: Collective, kind: int, root: int | None
) -> tuple[Option, tuple[Option, ...]]:
    options = _options(topology, collective, root)
    seconds = [option.cost.seconds(4**kind) for option in options]
    if not np.isfinite(min(seconds)):
        dead = [link.name for link in topology.links if not link.bytes_per_s]
        raise PlanError(
            f"{collective} of {topology.size} ranks: no algorithm joins them without crossing {', '.join(dead)}"
        )
    chosen = next(option for option, taken in zip(options, seconds, strict=True) if taken <= NEAR * min(seconds))
    verify(chosen.forest)
    return chosen, options


@lru_cache(maxsize=32)
def _options(topology: Topology, collective: Collective, root: int | None) -> tuple[Option, ...]:
    """Everything to compare, the plainest first."""
    offered = candidates(topology, collective, root)
    loads = {name: [load(topology, collective, tree) for tree in trees] for name, trees in offered.items()}
    options = []
    for name, trees in offered.items():
        forest = Forest(collective, topology.size, root, tuple(trees), (1 / len(trees),) * len(trees))
        taken = cost(topology, forest, loads[name])
        options.append(Option(name, forest, taken, _busiest(topology, taken)))
        options += _planned(name, topology, collective, root, trees, loads[name])
    best, bound = min(option.cost.s_per_byte for option in options), bound_s(topology, collective, 1, root)
    if len(offered) > 1 and (bound is None or best > NEAR * bound):
        mixed = {tree: crossed for name in offered for tree, crossed in zip(offered[name], loads[name], strict=True)}
        options += _planned("mixed", topology, collective, root, list(mixed), list(mixed.values()))
    return tuple(options)


def _busiest(topology: Topology, taken: Cost) -> str | None:
    """Name of the first link that is as busy as any, float noise aside."""
    if not taken.s_per_byte:
        return None
    least = taken.s_per_byte * (1 - 1e-9)
    return next(link.name for link, busy in zip(topology.links, taken.busy_s_per_byte, strict=True) if busy >= least)


def _planned(
    name: str,
    topology: Topology,
    collective: Collective,
    root: int | None,
    trees: Sequence[Tree],
    loads: Sequence[Load],
) -> list[Option]:
    """The trees with shares by linear program; [] if there is nothing to choose or a chunk has no way through."""
    spec = SPECIFICATIONS[collective]
    numbers: dict[tuple[int, ...], int] = {}
    chunk = [numbers.setdefault(spec.chunk_of(tree) if spec.chunked else (), len(numbers)) for tree in trees]
    if len(numbers) == len(trees):
        return []
    latencies = np.array([latency_s(topology, collective, tree) for tree in trees])
    solution = _solve(topology, loads, latencies, chunk)
    if solution is None:
        return []
    shares, bottleneck = solution
    kept = [i for i, share in enumerate(shares) if share > 0]
    forest = Forest(collective, topology.size, root, tuple(trees[i] for i in kept), tuple(shares[i] for i in kept))
    taken = cost(topology, forest, [loads[i] for i in kept])
    return [Option(f"{name}, planned shares", forest, taken, topology.links[bottleneck].name)]


def _solve(
    topology: Topology, loads: Sequence[Load], latencies: NDArray[np.float64], chunk: Sequence[int]
) -> tuple[list[float], int] | None:
    """The linear program. Variables: the share of each tree, then T, then the largest share.

    Args:
        loads: of each tree.
        latencies: seconds of each tree; shape (trees,).
        chunk: for each tree the number of its chunk, from 0.

    Returns:
        The shares, rounded, and the position of the bottleneck in the topology's links; None if there is no solution.
    """
    trees, links, chunks = len(loads), topology.links, max(chunk) + 1
    entries = [(link, tree, times) for tree, crossed in enumerate(loads) for link, times in crossed.items()]
    dead = {tree for link, tree, _ in entries if not links[link].bytes_per_s}
    busy = np.zeros((len(links), trees))
    for link, tree, times in entries:
        if links[link].bytes_per_s:
            busy[link, tree] = times / links[link].bytes_per_s
    unit = busy.mean(axis=1).max() or 1.0
    link_rows = np.hstack([busy / unit, np.full((len(links), 1), -1.0), np.zeros((len(links), 1))])
    even_rows = np.hstack([np.eye(trees), np.zeros((trees, 1)), np.full((trees, 1), -1.0)])
    found = linprog(
        c=np.concatenate([SHALLOW * latencies / (latencies.max() or 1.0), [1.0, EVEN]]),
        A_ub=csr_matrix(np.vstack([link_rows, even_rows])),
        b_ub=np.zeros(len(links) + trees),
        A_eq=csr_matrix((np.ones(trees), (chunk, range(trees))), shape=(chunks, trees + 2)),
        b_eq=np.full(chunks, 1 / chunks),
        bounds=[(0, 0 if tree in dead else 1) for tree in range(trees)] + [(0, None), (0, 1)],
        method="highs",
    )
    if not found.success:
        return None
    bottleneck = int(np.argmax(np.round(-found.ineqlin.marginals[: len(links)], 6)))
    return _rounded(found.x[:trees], chunk), bottleneck


def _rounded(shares: NDArray[np.float64], chunk: Sequence[int]) -> list[float]:
    """Shares without crumbs and float noise; each chunk's still add up to 1 / (number of chunks)."""
    members: dict[int, list[int]] = {}
    for tree, number in enumerate(chunk):
        members.setdefault(number, []).append(tree)
    rounded = [0.0] * len(chunk)
    for trees in members.values():
        total = 1 / len(members)
        kept = [tree for tree in trees if shares[tree] >= LEAST_SHARE * total / len(trees)]
        kept_total = sum(float(shares[tree]) for tree in kept)
        for tree in kept:
            rounded[tree] = round(total * float(shares[tree]) / kept_total, SHARE_DIGITS)
        largest = max(kept, key=lambda tree: (rounded[tree], -tree))
        rounded[largest] = total - sum(rounded[tree] for tree in kept if tree != largest)
    return rounded
