"""From a forest to one rank's table, which the compiled loop and the reference interpreter run.

In: a forest, an op's spec, this rank, each rank's site and host. Out: a `TableLayout`. Nothing else of the plan
reaches the loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collectives.engine.compiled.kernels import (
    ACC,
    BOOL_REDUCTION_CODE,
    DST,
    DTYPE_CODE,
    OWN,
    REDUCTION_CODE,
    TMP,
    TMP2,
)
from collectives.engine.compiled.table import (
    COPY,
    DOWN_PART,
    EDGE,
    NO_PEER,
    ONLY_PART,
    PART_BYTES,
    QUEUE,
    RUN,
    STEP,
    TREE,
    UP_PART,
    Table,
    TableLayout,
)
from collectives.schedule.codec import RAW, codec_of
from collectives.schedule.forest import Forest
from collectives.schedule.op import REDUCING, OpSpec
from collectives.schedule.tree import Tree

Home = tuple[int, int]  # of a rank: its site (a host in no site is one), its host


REGISTERS = (ACC, TMP, TMP2)  # what a fold needs for ranks in hosts in sites


SHORT_BYTES = 64 * 1024


MIN_SLOTS = 2  # one slice in work while the next is on its way


def build(
    forest: Forest, spec: OpSpec, rank: int, homes: Sequence[Home], *, slice_bytes: int, window_bytes: int,
    shared_memory: Collection[int] = (), narrow_between: npt.NDArray[np.bool_] | None = None,
) -> TableLayout:  # fmt: skip
    """The table by which `rank` runs `spec` over `forest`.

    Args:
        homes: for each rank the index of its site and of its host, see `Topology.homes`.
        slice_bytes: bytes of a slice in the op's dtype, a multiple of 64.
        window_bytes: bytes of the message that may be on their way at a time (at least two slices a tree); bounds
            scratch and arena to about as much, twice for a forest with inner nodes, twice again for partial sums of
            16-bit types.
        shared_memory: indices of the hosts whose ranks read each other's arenas.
        narrow_between: for codecs of narrow links which hosts have one between them, see `Topology.narrow_between`.
    """
    is_half = spec.dtype in ("bfloat16", "float16")
    acc_size = 4 if is_half else spec.item_size
    up = spec.collective in REDUCING
    down = spec.collective not in ("reduce", "reduce_scatter")
    assert slice_bytes % 64 == 0, "a slot of an arena begins at a place that a header can tell"
    slice_elems = slice_bytes // spec.item_size
    hosts = [host for _, host in homes]
    near = {peer for peer, host in enumerate(hosts) if host == hosts[rank] and host in shared_memory}
    codec = codec_of(spec.codec)
    assert narrow_between is not None or not codec.narrow_only
    code_bytes = codec.num_bytes(slice_elems)

    def is_coded(a: int, b: int) -> bool:
        if hosts[a] == hosts[b]:
            return hosts[a] not in shared_memory and not codec.narrow_only
        return not codec.narrow_only or bool(narrow_between is not None and narrow_between[hosts[a], hosts[b]])

    trees: list[tuple[int, ...]] = []
    edges: list[tuple[int, ...]] = []
    steps: list[tuple[int, int, int]] = []
    copies = _own_copies(spec, rank, forest.size)
    scratch = all_slots = all_slices = seen = 0
    arena_up, arena_down = UP_PART, DOWN_PART if up else ONLY_PART
    local_tree = np.full(len(forest.trees), -1, np.int64)
    to_peer = np.zeros(forest.size, np.int64)
    for index, (tree, part) in enumerate(zip(forest.trees, _parts(forest, spec), strict=True)):
        count, source_offset, target_offset = part.of(tree, rank)
        children = tree.children_of(rank)
        parent = tree.parent_of(rank)
        if count == 0 or (parent is None and rank != tree.root):
            continue
        if not children and parent is None:
            if up:
                copies.append((source_offset, target_offset, count * spec.item_size))
            continue
        num_slices = math.ceil(count / slice_elems)
        in_flight = math.ceil(count / sum(spec.counts) * window_bytes / slice_bytes)
        slots = min(num_slices, max(MIN_SLOTS, in_flight))
        slot_elems = min(count, slots * slice_elems)
        first_edge, first_step = len(edges), len(steps)
        coded = codec.code != RAW and any(is_coded(*edge) for edge in tree.edges)
        coded_children = [child for child in children if coded and is_coded(child, rank)]
        coded_parent = coded and parent is not None and is_coded(rank, parent)
        code_room = _aligned(slots * code_bytes) if coded else 0
        for child in children:
            wire_size = acc_size if tree.children_of(child) else spec.item_size
            code_offset = scratch
            if child in coded_children:
                scratch += code_room
            edges.append(
                (child, int(child in near), int(child in coded_children), wire_size, scratch, code_offset, seen)
            )
            seen += slots
            if up and child not in near:
                scratch += _aligned(slot_elems * wire_size)
            to_peer[child] += num_slices
        num_near = sum(child in near for child in children)
        partial_offset, up_offset, down_offset = scratch, arena_up, arena_down
        if up and children:
            steps += fold_steps(rank, children, homes)
        if up and parent in near:
            arena_up += _aligned(slot_elems * (acc_size if children else spec.item_size))
        elif up and children and parent is not None:
            scratch += _aligned(slot_elems * acc_size)
        code_up, code_down = scratch, scratch + (code_room if coded_parent else 0)
        if coded:
            scratch = code_down + code_room
        if down and num_near:
            arena_down += _aligned(slot_elems * spec.item_size)
        if parent is not None and (up or parent in near):
            to_peer[parent] += num_slices
        local_tree[index] = len(trees)
        trees.append(
            (
                index, NO_PEER if parent is None else parent,
                first_edge, len(children), first_step, len(steps) - first_step,
                int(up), int(down), int(parent in near), num_near,
                count, slice_elems, num_slices, slots, all_slots, all_slices,
                source_offset, target_offset, partial_offset, up_offset, down_offset,
                int(coded), int(coded_parent), len(coded_children), code_bytes, code_up, code_down,
            )
        )  # fmt: skip
        all_slots += slots
        all_slices += num_slices

    run = np.zeros(1, RUN)
    run["rank"] = rank
    run["spec"] = spec.fingerprint()
    run["is_short"] = int(spec.num_bytes <= SHORT_BYTES)
    run["dtype"] = DTYPE_CODE["uint8" if spec.dtype == "bool" else spec.dtype]
    if spec.reduction is not None:
        codes = BOOL_REDUCTION_CODE if spec.dtype == "bool" else REDUCTION_CODE
        run["reduction"] = codes[spec.reduction]
    run["divisor"] = forest.size if spec.reduction == "avg" else 1
    run["item_size"], run["acc_size"], run["codec"] = spec.item_size, acc_size, codec.code

    assert arena_up <= UP_PART + PART_BYTES
    assert arena_down <= (DOWN_PART if up else ONLY_PART) + PART_BYTES
    queues = np.zeros(forest.size, QUEUE)
    queues["base"] = np.concatenate(([0], np.cumsum(to_peer)[:-1]))
    most_children = max((tree[3] for tree in trees), default=0)
    table = Table(
        trees=np.array(trees, TREE),
        edges=np.array(edges, EDGE),
        steps=np.array(steps, STEP),
        copies=np.array([copy for copy in copies if copy[2]], COPY),
        local_tree=local_tree,
        run=run,
        due=np.zeros(all_slots, np.int64),
        arrived=np.zeros(all_slots, np.int64),
        seen=np.zeros(seen, np.uint8),
        slice_addresses=np.zeros(seen, np.int64),
        received=np.zeros(all_slices, np.uint8),
        queues=queues,
        pending=np.zeros(int(to_peer.sum()), np.int64),
        operands=np.zeros(most_children, np.int64),
        wire_sizes=np.zeros(most_children, np.int64),
    )
    return TableLayout(table, scratch)


@dataclass(frozen=True)
class _Part:
    """What a tree carries: `count` elements, from `source` bytes into a source, to `target` bytes into a target.

    All-to-all has other offsets and counts at each end: `ends` maps the ranks of its two-rank tree.
    """

    count: int = 0
    source: int = 0
    target: int = 0
    ends: dict[int, tuple[int, int, int]] | None = None

    def of(self, tree: Tree, rank: int) -> tuple[int, int, int]:
        if self.ends is not None:
            return self.ends.get(rank, (0, 0, 0))
        return self.count, self.source, self.target


def _parts(forest: Forest, spec: OpSpec) -> list[_Part]:
    """For each tree of the forest, its part of the message."""
    if spec.collective == "all_to_all":
        return [_pair_part(tree, spec, forest.size) for tree in forest.trees]
    if spec.collective in ("reduce_scatter", "all_gather"):
        return _chunk_parts(forest, spec)
    bounds = split(spec.counts[0], forest.shares, spec.item_size)
    return [
        _Part(stop - start, start * spec.item_size, start * spec.item_size)
        for start, stop in itertools.pairwise(bounds)
    ]


def _chunk_parts(forest: Forest, spec: OpSpec) -> list[_Part]:
    """Each rank's chunk goes by the trees rooted there, by their shares. Only one side has all chunks."""
    parts: list[_Part] = [_Part()] * len(forest.trees)
    first = np.concatenate(([0], np.cumsum(spec.counts)))
    for owner, count in enumerate(spec.counts):
        own = [index for index, tree in enumerate(forest.trees) if tree.root == owner]
        bounds = split(count, [forest.shares[index] for index in own], spec.item_size)
        for index, (start, stop) in zip(own, itertools.pairwise(bounds), strict=True):
            chunk, whole = start * spec.item_size, int(first[owner] + start) * spec.item_size
            scattered = spec.collective == "reduce_scatter"
            parts[index] = _Part(stop - start, whole if scattered else chunk, chunk if scattered else whole)
    return parts


def _pair_part(tree: Tree, spec: OpSpec, size: int) -> _Part:
    """The chunk from a tree's root to its only child. A rank knows the counts at its own end only."""
    sent, received = spec.counts[:size], spec.counts[size:]
    if not tree.edges:  # a group of one
        return _Part()
    ((child, root),) = tree.edges
    at_root = (sent[child], sum(sent[:child]) * spec.item_size, 0)
    at_child = (received[root], 0, sum(received[:root]) * spec.item_size)
    return _Part(ends={root: at_root, child: at_child})


def _own_copies(spec: OpSpec, rank: int, size: int) -> list[tuple[int, int, int]]:
    """What goes from source to target without crossing a link, as (source offset, target offset, bytes)."""
    item = spec.item_size
    if spec.collective == "all_gather":
        return [(0, sum(spec.counts[:rank]) * item, spec.counts[rank] * item)]
    if spec.collective == "all_to_all":
        sent, received = spec.counts[:size], spec.counts[size:]
        return [(sum(sent[:rank]) * item, sum(received[:rank]) * item, sent[rank] * item)]
    if spec.collective == "broadcast" and rank == spec.root:
        return [(0, 0, spec.counts[0] * item)]
    return []


def split(count: int, shares: Sequence[float], item_size: int) -> list[int]:
    """Bounds (len(shares) + 1 of them) that cut `count` elements by `shares`, on cache lines where it is large."""
    total = math.fsum(shares)
    grain = max(1, 64 // item_size) if count * item_size >= 4096 * len(shares) else 1
    bounds, running = [0], 0.0
    for share in shares:
        running += share
        bounds.append(min(count, round(running / total * count / grain) * grain))
    bounds[-1] = count
    return bounds


def fold_steps(rank: int, children: Sequence[int], homes: Sequence[Home]) -> list[tuple[int, int, int]]:
    """The canonical fold at a node as (dst, a, b) steps.

    Operands are a child's index, OWN, or a register: ACC, TMP, TMP2; the last step's target is DST.
    """
    steps: list[tuple[int, int, int]] = []

    def fold(operands: Sequence[tuple[int, int, int, int]], level: int, register: int) -> int:
        """Fold the ranks of one site (level 1), one host (2), or all (0); where the result is."""
        if level == len(REGISTERS) - 1:
            parts = [operand[-1] for operand in operands]
            total = parts[0]
            for part in parts[1:]:
                steps.append((REGISTERS[register], total, part))
                total = REGISTERS[register]
            return total
        groups = [list(group) for _, group in itertools.groupby(operands, key=lambda operand: operand[level])]
        total = fold(groups[0], level + 1, register)
        for group in groups[1:]:
            steps.append((REGISTERS[register], total, fold(group, level + 1, register + 1)))
            total = REGISTERS[register]
        return total

    own = [(*homes[rank], rank, OWN)]
    fold(sorted(own + [(*homes[child], child, index) for index, child in enumerate(children)]), 0, 0)
    steps[-1] = (DST, *steps[-1][1:])
    return steps


def _aligned(num_bytes: int) -> int:
    return (num_bytes + 63) // 64 * 64
