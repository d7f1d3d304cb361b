"""Predicted seconds of a forest, and the least seconds that any forest could take: equations with units.

For a message of N bytes (counted as nccl-tests does: the larger of what goes into a rank and what comes out), n ranks,
tree t, link l with capacity_l bytes per second:

    (1) bytes_t    = N share_t             where trees carry the message; chunk_share_t N / n where they carry chunks
    (2) busy_l     = sum_t bytes_t load(t, l) / capacity_l                                              [seconds]
    (3) idle_l     = time before link l's first slice arrives, and from its last one to the end         [seconds]
    (4) way        = the longest time of one slice of a tree from the leaves to the root and back       [seconds]
    (5) messages   = most edges of all trees at any rank, plus the depth of the deepest tree; twice that unless the
                     collective only goes down: messages that the busiest rank handles, and those on the way to and
                     from it                                                                            [number]
    (6) seconds    = max(way, max_l idle_l + busy_l) + MESSAGE_S messages

load(t, l) is how often the bytes of tree t cross link l; with a codec (`schedule/codec.py`) a crossing counts as
1 / ratio if its slices are encoded. A collective uses one or both directions of a tree. Where it only goes up, an empty
message comes down for each slice, and ranks wait for it. (2) is what a perfect pipeline would take; (3) and (4) are the
cost of filling and draining it, see `_FirstSlices`; the last term of (6) is a rank's time for messages of any size.
Trees with share 0 do not count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from collectives.options import Options
from collectives.planning.window import MIN_CODED_SLICES, default_window_bytes, longest_slice
from collectives.schedule.codec import PLAIN, RAW, Codec, codec_of
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.schedule.tree import Tree
from collectives.topology import Topology

# Time of a rank's thread for each message that it sends or receives, including the wait for a core. Measured with four
# ranks on two cores, where the 14 messages of a direct forest take 0.5 ms; 13 us of each are CPU time.
MESSAGE_S = 30e-6
SLICE_BYTES = Options().slice_bytes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Idle:
    """Seconds during which a link, or a rank, has no slice yet or none any more: latency plus the time of a slice.

    Attributes:
        latency_s: for slices without bytes.
        s_per_byte: for each byte of the message, as long as a tree's part of it is shorter than a slice.
        slice_s: at most so much for bytes, since longer parts are cut into slices,
        long_slice_s: which grow up to this in long messages if they are encoded, see `window.longest_slice`.
    """

    latency_s: float
    s_per_byte: float
    slice_s: float
    long_slice_s: float

    def seconds(self, num_bytes: int) -> float:
        """For a message of `num_bytes`."""
        whole_s = self.s_per_byte * num_bytes
        return self.latency_s + min(whole_s, max(self.slice_s, min(whole_s / MIN_CODED_SLICES, self.long_slice_s)))


@dataclass(frozen=True)
class Cost:
    """What a forest takes.

    Attributes:
        busy_s_per_byte: (2) for a message of one byte, for each link in the topology's order.
        idle: (3) in the same order.
        way: (4).
        messages_s: MESSAGE_S times (5).
    """

    busy_s_per_byte: tuple[float, ...]
    idle: tuple[Idle, ...]
    way: Idle
    messages_s: float

    @property
    def s_per_byte(self) -> float:
        """Seconds of the busiest link for each byte: what a long message takes."""
        return max(self.busy_s_per_byte)

    def seconds(self, num_bytes: int) -> float:
        """(6) for a message of `num_bytes`; infinite if the forest crosses a link without capacity."""
        if self.s_per_byte == math.inf:
            return math.inf if num_bytes else self.way.latency_s + self.messages_s
        links = zip(self.busy_s_per_byte, self.idle, strict=True)
        longest = max(busy * num_bytes + idle.seconds(num_bytes) for busy, idle in links)
        return max(longest, self.way.seconds(num_bytes)) + self.messages_s


def cost(topology: Topology, forest: Forest, codec: str = "none") -> Cost:
    """Equations (1) to (6) for a verified forest, with the named codec on network links.

    Raises:
        UsageError: there is no such codec.
    """
    return forest_cost(topology, forest, codec_of(codec))


def forest_cost(
    topology: Topology, forest: Forest, codec: Codec = PLAIN, *, slice_bytes: int = SLICE_BYTES,
    passage: Passage | None = None,
) -> Cost:  # fmt: skip
    """As `cost`.

    Args:
        slice_bytes: size of the pipelined unit.
        passage: that of all the forest's trees with this codec, if it is known already.
    """
    used = [i for i, share in enumerate(forest.shares) if share > 0]
    if passage is None or len(used) < len(forest.trees):
        passage = Passage(topology, forest.collective, [forest.trees[i] for i in used], codec)
    per_byte = 1 / forest.size if forest.specification.chunked else 1.0
    parts = per_byte * np.array([forest.chunk_shares[i] for i in used])
    capacity = np.array([link.bytes_per_s for link in topology.links])
    crossed = np.asarray(passage.loads @ parts)
    with np.errstate(divide="ignore", invalid="ignore"):  # a dead link: infinitely busy if it is crossed, else 0
        busy = np.where(crossed > 0, crossed / capacity, 0.0)
    # Runs of the same model give the terms of `Idle`: empty slices, the parts of a one-byte message as slices, slices
    # of full length, and the longest of those that are encoded.
    full = np.full(len(parts), float(slice_bytes))
    runs = [_FirstSlices(passage), _FirstSlices(passage, parts), _FirstSlices(passage, full)]
    runs.append(runs[-1] if codec.code == RAW else _FirstSlices(passage, _longest_slices(passage, parts, full, codec)))
    idle = tuple(map(Idle, *(run.idle_s.tolist() for run in runs)))
    way = Idle(*(run.longest_s for run in runs))
    edges = passage.edges
    edges_at_busiest_rank = int(np.bincount(np.concatenate([edges.child, edges.parent]), minlength=1).max())
    messages = forest.specification.messages_per_edge * (edges_at_busiest_rank + int(edges.depth.max(initial=0)))
    return Cost(tuple(busy.tolist()), idle, way, MESSAGE_S * messages)


def _longest_slices(passage: Passage, parts: Floats, full: Floats, codec: Codec) -> Floats:
    """`full`, but longer in trees of which edges are encoded, as the engine's are by default."""
    window_bytes, longest = default_window_bytes(passage.topology), full.copy()
    for tree in np.unique(passage.edges.tree[passage.left < 1]):
        share = float(parts[tree] / parts.sum()) if parts[tree] > 0 else 0.0
        longest[tree] = longest_slice(share, int(full[tree]), window_bytes, codec)
    return longest


def left_between(topology: Topology, codec: Codec) -> Floats:
    """The fraction of a float32 message's bytes that is sent between two hosts, or within one. Shape (hosts, hosts)."""
    coded = topology.narrow_between if codec.narrow_only else ~np.eye(len(topology.hosts), dtype=bool)
    return np.where(coded, 1 / codec.ratio, 1.0)


class Passage:
    """The routes of trees: what all equations need of them, apart from their shares. Costly, so computed once.

    Attributes:
        edges: of all trees.
        up, down: for each edge the links of its route in that direction, as `Topology.routes` returns them; None if
            the collective does not use the direction.
        left: for each edge the fraction of a slice's bytes that crosses it, see `left_between`.
    """

    def __init__(self, topology: Topology, collective: Collective, trees: Sequence[Tree], codec: Codec = PLAIN) -> None:
        spec, edges = SPECIFICATIONS[collective], Edges.of(trees)
        self.topology, self.edges, self.num_trees = topology, edges, len(trees)
        hosts = topology.hosts_of_ranks
        self.left = left_between(topology, codec)[hosts[edges.child], hosts[edges.parent]]
        self.up = topology.routes(edges.child, edges.parent) if spec.up else None
        self.down = topology.routes(edges.parent, edges.child) if spec.down else None

    @cached_property
    def loads(self) -> Any:
        """load(t, l): a sparse matrix of shape (links of the topology, trees)."""
        routes = [route for route in (self.up, self.down) if route is not None]
        links = np.concatenate([route.ravel() for route in routes])
        of_tree = np.concatenate([np.repeat(self.edges.tree, route.shape[1]) for route in routes])
        left = np.concatenate([np.repeat(self.left, route.shape[1]) for route in routes])
        real = links < len(self.topology.links)
        entries = (left[real], (links[real], of_tree[real]))
        return coo_array(entries, shape=(len(self.topology.links), self.num_trees)).tocsr()

    @cached_property
    def latencies_s(self) -> Floats:
        """Seconds of an empty slice through each tree, in the collective's directions. Shape (trees,)."""
        return _FirstSlices(self).of_tree_s

    @cached_property
    def depths(self) -> Ints:
        """Edges from the root of each tree to its farthest rank. Shape (trees,)."""
        depths = np.zeros(self.num_trees, np.int64)
        np.maximum.at(depths, self.edges.tree, self.edges.depth)
        return depths

    @cached_property
    def by_height(self) -> list[Ints]:
        """Positions of the edges by level: those whose children are leaves, then those above them, and so on."""
        return _levels(self.edges.height)

    @cached_property
    def by_depth(self) -> list[Ints]:
        """Positions of the edges by level: those at the root, then those below them, and so on."""
        return _levels(self.edges.depth)


class Edges(NamedTuple):
    """The edges of several trees, one after the other.

    Attributes:
        tree, child, parent: the position of each edge's tree, and its two ranks.
        above: the next edge on the path from the parent to the root; -1 if the parent is the root.
        depth: edges from the child to the root, at least 1.
        height: edges from the child to the farthest leaf below it; 0 if it is one.
    """

    tree: Ints
    child: Ints
    parent: Ints
    above: Ints
    depth: Ints
    height: Ints

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Edges:
        counts = [len(tree.edges) for tree in trees]
        flat = itertools.chain.from_iterable(itertools.chain.from_iterable(tree.edges for tree in trees))
        child, parent = np.fromiter(flat, np.int64, 2 * sum(counts)).reshape(-1, 2).T
        tree = np.repeat(np.arange(len(trees)), counts)
        size = int(max(child.max(), parent.max())) + 1 if len(child) else 1
        # An edge is known by its tree and child, so the edge above is that with this one's parent as its child.
        own, wanted = tree * size + child, tree * size + parent
        order = np.argsort(own)
        place = np.minimum(np.searchsorted(own, wanted, sorter=order), max(0, len(own) - 1))
        found = order[place] if len(order) else order
        above = np.where(own[found] == wanted, found, -1) if len(order) else order
        depth = _depths(above)
        height = np.zeros(len(tree), np.int64)
        for level in reversed(_levels(depth)):
            inner = level[above[level] >= 0]
            np.maximum.at(height, above[inner], height[inner] + 1)
        return cls(tree, child, parent, above, depth, height)


def _depths(above: Ints) -> Ints:
    """Edges to the root, by pointer doubling: after k rounds `ahead` points 2**k edges ahead."""
    depth, ahead = np.ones(len(above), np.int64), above.copy()
    while (more := ahead >= 0).any():
        depth[more] += depth[ahead[more]]
        ahead[more] = ahead[ahead[more]]
    return depth


def _levels(value: Ints) -> list[Ints]:
    """Positions of the edges with each value, the smallest first."""
    order = np.argsort(value, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(value[order])) + 1) if len(order) else []


class _FirstSlices:
    """One slice of every tree on its way through the tree, level by level: equations (3) and (4).

    All trees start at once, and slices that cross a link on the same level share its rate. A link is idle until its
    first slice arrives, and again from its last slice until that one has reached the end of its tree. Links that leaves
    use on the way up are busy from the start: with a direct forest on equal hosts no link is ever idle.

    Attributes:
        idle_s: for each link, (3); 0 for links that are not crossed.
        of_tree_s: for each tree, seconds until the last rank has its slice.
        longest_s: the largest of these, (4).
    """

    def __init__(self, passage: Passage, slices: Floats | None = None) -> None:
        """
        Args:
            slices: bytes of each tree's slice; None for empty slices, which take the latency of each hop.
        """
        self._passage, self._edges, self._slices = passage, passage.edges, slices
        links = passage.topology.links
        # A dead link counts as infinitely fast here; `Cost.seconds` is infinite for a forest that crosses one. The last
        # entry is that of the padding in routes.
        self._capacity = np.array([*(link.bytes_per_s or math.inf for link in links), math.inf])
        # For each link: when its first slice arrives, and how long its last one then needs to the end.
        first, rest = np.full(len(links) + 1, math.inf), np.full(len(links) + 1, math.inf)
        at_root, below_root = np.zeros(passage.num_trees), np.zeros(passage.num_trees)
        up, down = passage.up, passage.down
        if up is not None:
            up_s = self._hops(up, passage.by_height)
            self._note(first, up, self._fold(up_s, at_root))
        if down is None and slices is None:  # the empty message that frees the slot
            self._hand_down(self._hops(None, passage.by_depth), at_root, below_root)
        if down is not None:
            down_s = self._hops(down, passage.by_depth)
            begin, left = self._hand_down(down_s, at_root, below_root)
            self._note(first, down, begin)
            self._note(rest, down, left)
        if up is not None:
            self._note(rest, up, self._after(up_s, below_root))
        self.of_tree_s = at_root + below_root
        self.longest_s = float(self.of_tree_s.max()) if passage.num_trees else 0.0
        self.idle_s = np.where(np.isfinite(first + rest), first + rest, 0.0)[:-1]

    def _hops(self, routes: Ints | None, levels: list[Ints]) -> Floats:
        """Seconds of each edge's hop, where the slices of a level that cross a link share it."""
        if self._slices is None or routes is None:
            return self._passage.topology.latencies_s(self._edges.child, self._edges.parent)
        seconds = np.zeros(len(routes))
        for members in levels:
            crossed = routes[members]
            each = np.repeat((self._slices[self._edges.tree] * self._passage.left)[members], crossed.shape[1])
            # Bytes of the level on each link; a hop takes as long as the slowest link of its route.
            passing = np.bincount(crossed.ravel(), each, minlength=len(self._capacity))
            seconds[members] = (passing / self._capacity)[crossed].max(axis=1)
        return seconds

    def _fold(self, up_s: Floats, at_root: Floats) -> Floats:
        """When each edge's child has all contributions below it; writes to `at_root` when each root has all of them."""
        ready = np.zeros(len(up_s))
        for members in self._passage.by_height:
            above, done = self._edges.above[members], ready[members] + up_s[members]
            np.maximum.at(ready, above[above >= 0], done[above >= 0])
            np.maximum.at(at_root, self._edges.tree[members[above < 0]], done[above < 0])
        return ready

    def _hand_down(self, down_s: Floats, at_root: Floats, below_root: Floats) -> tuple[Floats, Floats]:
        """When each edge's parent has the result, and the time below its child; writes the latter for roots."""
        begin, left = np.zeros(len(down_s)), np.zeros(len(down_s))
        for members in self._passage.by_depth:
            above = self._edges.above[members]
            begin[members] = np.where(above < 0, at_root[self._edges.tree[members]], begin[above] + down_s[above])
        for members in reversed(self._passage.by_depth):
            above, more = self._edges.above[members], left[members] + down_s[members]
            np.maximum.at(left, above[above >= 0], more[above >= 0])
            np.maximum.at(below_root, self._edges.tree[members[above < 0]], more[above < 0])
        return begin, left

    def _after(self, up_s: Floats, below_root: Floats) -> Floats:
        """Seconds from the moment when a slice has crossed an edge on its way up to its end."""
        after = np.zeros(len(up_s))
        for members in self._passage.by_depth:
            above = self._edges.above[members]
            after[members] = np.where(above < 0, below_root[self._edges.tree[members]], after[above] + up_s[above])
        return after

    def _note(self, least: Floats, routes: Ints, seconds: Floats) -> None:
        """For each link keep the least seconds of all edges whose routes cross it."""
        np.minimum.at(least, routes.ravel(), np.repeat(seconds, routes.shape[1]))


def bound_s(topology: Topology, collective: Collective, num_bytes: int, root: int | None = None) -> float | None:
    """Seconds below which no forest can be, from the bytes that must leave and enter each host and each site.

    Take H hosts (or sites), host i with m_i of the n ranks and up_i and down_i bytes per second, and N bytes. The ranks
    of a host are treated as one, which only lowers the bound; so does leaving out sites, pairs and latency.

        collective      must leave host i     must enter host i    together at least
        all_reduce      N                     N                    2 (H - 1) N
        reduce          N, 0 at the root      N at the root        (H - 1) N
        broadcast       N at the root         N, 0 at the root     (H - 1) N
        reduce_scatter  N (n - m_i) / n       N m_i / n            (H - 1) N
        all_gather      N m_i / n             N (n - m_i) / n      (H - 1) N
        all_to_all      N m_i (n - m_i) / n   the same             the sum of these

    The first two columns count what only host i has or lacks (`Specification.border_crossings`). The third: folding H
    contributions to one element takes H - 1 transfers, giving a value to H - 1 others takes another H - 1 (Patarasuk
    and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009). Each quantity is divided by
    the capacity that it must pass: up_i, down_i, and for the third sum_i up_i and sum_i down_i. For an all-reduce with
    up_i = down_i = b_i that is max(N / min_i b_i, 2 (H - 1) N / sum_i b_i), which the direct forest reaches for hosts
    behind one switch.

    Args:
        num_bytes: N, counted as in the equations above.
        root: of reduce and broadcast; None for other collectives.

    Returns:
        None if all ranks share one host, so that no link is crossed.
    """
    if len(topology.hosts) == 1:
        return None
    by_host = [_Part(host.ranks, host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts]
    by_site = [_site_part(topology, group) for group in topology.site_groups]
    divisions = [by_host, by_site] if topology.sites and len(by_site) > 1 else [by_host]
    return num_bytes * max(_division_bound(parts, collective, topology.size, root) for parts in divisions)


class _Part(NamedTuple):
    """A host or a site: its ranks and the rates of its links to the outside, in bytes per second."""

    ranks: tuple[int, ...]
    up: float
    down: float


def _site_part(topology: Topology, group: tuple[int, ...]) -> _Part:
    border = topology.site_of(group[0]) or topology.hosts[group[0]]
    ranks = tuple(rank for index in group for rank in topology.hosts[index].ranks)
    return _Part(ranks, border.up_bytes_per_s, border.down_bytes_per_s)


def _division_bound(parts: list[_Part], collective: Collective, size: int, root: int | None) -> float:
    """The table of `bound_s` for N = 1: seconds per byte."""
    spec, seconds, least_total = SPECIFICATIONS[collective], 0.0, 0.0
    for part in parts:
        leave, enter = spec.border_crossings(len(part.ranks), size, root in part.ranks)
        seconds = max(seconds, leave / part.up, enter / part.down)
        least_total += leave
    if not spec.pairwise:
        least_total = float(spec.directions) * (len(parts) - 1)
    capacity = min(sum(part.up for part in parts), sum(part.down for part in parts))
    return max(seconds, least_total / capacity)
