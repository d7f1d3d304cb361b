"""Predicted seconds of a forest, and the least seconds that any forest could take: equations with units.

For a message of N bytes (counted as nccl-tests does: the larger of what goes into a rank and what comes out), n ranks,
tree t, link l with capacity_l bytes per second:

    (1) bytes_t    = N share_t             where trees carry the message; chunk_share_t N / n where they carry chunks
    (2) busy_l     = sum_t bytes_t load(t, l) / capacity_l
    (3) latency_t  = seconds of the slowest way between a leaf and the root, once for each direction
    (4) messages_r = trees' edges at rank r, once for each direction
    (5) seconds    = max_l busy_l + max_t latency_t + MESSAGE_S max_r messages_r

load(t, l) is how often link l is crossed by what tree t carries. A collective uses one direction of a tree or both. (2)
is what a perfect pipeline would take, (3) what it takes to fill; (5) adds what a rank spends on messages however short
they are. Trees with share 0 count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collectives.engine.op import Collective
from collectives.forest import Forest, Tree
from collectives.specification import SPECIFICATIONS
from collectives.topology import Topology

MESSAGE_S = 5e-6  # of a rank's thread, for each message that it sends or receives


@dataclass(frozen=True)
class Cost:
    """What a forest takes: `s_per_byte` for each byte of the message, and `fixed_s` however short it is.

    Attributes:
        busy_s_per_byte: for each link of the topology, in its order: (2) for a message of one byte.
    """

    s_per_byte: float
    fixed_s: float
    busy_s_per_byte: tuple[float, ...]

    def seconds(self, num_bytes: int) -> float:
        """(5) for a message of `num_bytes`; infinite if the forest crosses a link without capacity."""
        return self.s_per_byte * num_bytes + self.fixed_s if num_bytes else self.fixed_s


Load = dict[int, int]


def load(topology: Topology, collective: Collective, tree: Tree) -> Load:
    """How often what the tree carries crosses a link: by position in the topology's links, crossed ones only."""
    spec = SPECIFICATIONS[collective]
    crossed: Load = {}
    for child, parent in tree.edges:
        for link in topology.route(child, parent) if spec.up else ():
            crossed[link] = crossed.get(link, 0) + 1
        for link in topology.route(parent, child) if spec.down else ():
            crossed[link] = crossed.get(link, 0) + 1
    return crossed


def cost(topology: Topology, forest: Forest, loads: Sequence[Load] | None = None) -> Cost:
    """Equations (1) to (5) for a forest; `loads` are its trees' loads if they are known already."""
    if loads is None:
        loads = [load(topology, forest.collective, tree) for tree in forest.trees]
    per_byte = 1 / forest.size if forest.specification.chunked else 1.0
    busy = [0.0] * len(topology.links)
    for share, crossed in zip(forest.chunk_shares, loads, strict=True):
        for link, times in crossed.items() if share > 0 else ():
            capacity = topology.links[link].bytes_per_s
            busy[link] += per_byte * share * times / capacity if capacity else math.inf
    used = [tree for tree, share in zip(forest.trees, forest.shares, strict=True) if share > 0]
    slowest_s = max(latency_s(topology, forest.collective, tree) for tree in used)
    return Cost(max(busy), slowest_s + MESSAGE_S * max(_messages(forest, used)), tuple(busy))


def latency_s(topology: Topology, collective: Collective, tree: Tree) -> float:
    """(3): seconds that an empty slice takes through the tree, there and back as the collective asks."""
    spec, way_s, order = SPECIFICATIONS[collective], {tree.root: 0.0}, [tree.root]
    for parent in order:
        for child in tree.children_of(parent):
            way_s[child] = way_s[parent] + topology.latency_s(child, parent)
            order.append(child)
    return (spec.up + spec.down) * max(way_s.values())


def _messages(forest: Forest, used: Sequence[Tree]) -> list[int]:
    """(4) for each rank."""
    directions = forest.specification.up + forest.specification.down
    messages = [0] * forest.size
    for tree in used:
        for child, parent in tree.edges:
            messages[child] += directions
            messages[parent] += directions
    return messages


def bound_s(topology: Topology, collective: Collective, num_bytes: int, root: int | None = None) -> float | None:
    """Seconds below which no forest can be, from the bytes that must leave and enter each host and each site.

    Take hosts (or sites) i with m_i of the n ranks, up_i and down_i in bytes per second, H of them, N bytes. Ranks of
    one host are treated as one, which only lowers the bound; so does leaving out sites, pairs and latency.

        collective      must leave host i     must enter host i    together at least
        all_reduce      N                     N                    2 (H - 1) N
        reduce          N, 0 at the root      N at the root        (H - 1) N
        broadcast       N at the root         N, 0 at the root     (H - 1) N
        reduce_scatter  N (n - m_i) / n       N m_i / n            (H - 1) N
        all_gather      N m_i / n             N (n - m_i) / n      (H - 1) N
        all_to_all      N m_i (n - m_i) / n   the same             the sum of these

    The first two columns count what only host i knows or lacks. The third: to fold H contributions to one element takes
    H - 1 transfers, to give a value to H - 1 others again H - 1 (Patarasuk and Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", 2009). Each quantity is divided by the capacity that it must pass: up_i,
    down_i, and for the third sum_i up_i and sum_i down_i. For an all-reduce with up_i = down_i = b_i that is
    max(N / min_i b_i, 2 (H - 1) N / sum_i b_i), which the direct forest reaches for hosts behind one switch.

    Returns None if all ranks share one host: no link is crossed.
    """
    if len(topology.hosts) == 1:
        return None
    by_host = [_Part(host.ranks, host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts]
    by_site = [_site_part(topology, group) for group in topology.site_groups]
    divisions = [by_host, by_site] if topology.sites and len(by_site) > 1 else [by_host]
    return num_bytes * max(_division_bound(parts, collective, topology.size, root) for parts in divisions)


class _Part(NamedTuple):
    """A host or a site: its ranks and what passes its border, in bytes per second."""

    ranks: tuple[int, ...]
    up: float
    down: float


def _site_part(topology: Topology, group: tuple[int, ...]) -> _Part:
    border = topology.site_of(group[0]) or topology.hosts[group[0]]
    ranks = tuple(rank for index in group for rank in topology.hosts[index].ranks)
    return _Part(ranks, border.up_bytes_per_s, border.down_bytes_per_s)


def _division_bound(parts: list[_Part], collective: Collective, size: int, root: int | None) -> float:
    """The table of `bound_s` for N = 1: seconds per byte."""
    seconds, least_total = 0.0, 0.0
    for part in parts:
        inside, outside, at_root = len(part.ranks) / size, 1 - len(part.ranks) / size, root in part.ranks
        leave, enter = {
            "all_reduce": (1.0, 1.0),
            "reduce": (float(not at_root), float(at_root)),
            "broadcast": (float(at_root), float(not at_root)),
            "reduce_scatter": (outside, inside),
            "all_gather": (inside, outside),
            "all_to_all": (len(part.ranks) * outside, len(part.ranks) * outside),
        }[collective]
        seconds = max(seconds, leave / part.up, enter / part.down)
        least_total += leave
    if collective != "all_to_all":
        least_total = (2.0 if collective == "all_reduce" else 1.0) * (len(parts) - 1)
    capacity = min(sum(part.up for part in parts), sum(part.down for part in parts))
    return max(seconds, least_total / capacity)
