"""From a forest to one rank's table, which the compiled loop and the reference interpreter run.

In: a forest, an op's spec, this rank, each rank's site and host. Out: a `TableLayout`. Nothing else of the plan
reaches the loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
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
    Records,
    Table,
    TableLayout,
)
from collectives.planning.window import MAX_WINDOW_BYTES, coded_slice_elems, tree_slots
from collectives.schedule.codec import RAW, Codec, codec_of
from collectives.schedule.forest import Forest
from collectives.schedule.op import OpSpec
from collectives.schedule.tree import Tree

Home = tuple[int, int]
"""Of a rank: its site (a host in no site is one), its host."""

Row = dict[str, int]

REGISTERS = (ACC, TMP, TMP2)
"""What a fold needs for ranks in hosts in sites."""

SHORT_BYTES = 64 * 1024
"""The largest message of a short op, whose loop yields before it sleeps."""

# Partial sums of 16-bit types take twice the window, and a tree's slots are rounded up: a part has room for four.
assert MAX_WINDOW_BYTES <= PART_BYTES // 4


def build(
    forest: Forest, spec: OpSpec, rank: int, homes: Sequence[Home], *, slice_bytes: int, window_bytes: int,
    shared_memory: Collection[int] = (), narrow_between: npt.NDArray[np.bool_] | None = None,
) -> TableLayout:  # fmt: skip
    """The table by which `rank` runs `spec` over `forest`.

    Args:
        homes: for each rank the index of its site and of its host, see `Topology.homes`.
        slice_bytes: bytes of a slice in the op's dtype, a multiple of 64; encoded slices may be longer.
        window_bytes: bytes of the message that may be in flight at a time (at least two slices a tree); bounds
            scratch and arena to about as much, twice for a forest with inner nodes, twice again for partial sums of
            16-bit types.
        shared_memory: indices of the hosts whose ranks read each other's arenas.
        narrow_between: for codecs of narrow links which hosts have one between them, see `Topology.narrow_between`.
    """
    assert slice_bytes % 64 == 0, "headers give arena offsets in units of 64 bytes"
    wires = _Wires([host for _, host in homes], shared_memory, codec_of(spec.codec), narrow_between)
    builder = _Builder(forest, spec, rank, homes, wires, slice_bytes, window_bytes)
    for index, part in _parts(forest, spec, rank):
        builder.add(index, forest.trees[index], part)
    return builder.layout()


@dataclass(frozen=True)
class _Wires:
    """How slices travel between two ranks: through memory or over a socket, as numbers or encoded."""

    hosts: Sequence[int]  # of each rank
    shared_memory: Collection[int]
    codec: Codec
    narrow_between: npt.NDArray[np.bool_] | None

    def __post_init__(self) -> None:
        assert self.narrow_between is not None or not self.codec.narrow_only

    def is_near(self, a: int, b: int) -> bool:
        return self.hosts[a] == self.hosts[b] and self.hosts[a] in self.shared_memory

    def is_coded(self, a: int, b: int) -> bool:
        if self.codec.code == RAW:
            return False
        a, b = self.hosts[a], self.hosts[b]
        if a == b:
            return a not in self.shared_memory and not self.codec.narrow_only
        return not self.codec.narrow_only or bool(self.narrow_between is not None and self.narrow_between[a, b])


class _Memory:
    """Hands out consecutive ranges of one memory, each from a cache line on. An empty range takes no room."""

    def __init__(self, start: int = 0, limit: int | None = None) -> None:
        self.end, self._limit = start, limit

    def take(self, num_bytes: int) -> int:
        """Offset of a new range."""
        start = self.end
        self.end += (num_bytes + 63) // 64 * 64
        assert self._limit is None or self.end <= self._limit
        return start


@dataclass(frozen=True)
class _Node:
    """This rank's position in a tree, and how the tree's part of the message is cut."""

    parent: int | None
    children: tuple[int, ...]
    count: int  # elements
    slice_elems: int
    num_slices: int
    slots: int
    slot_elems: int  # elements that all slots together hold
    code_bytes: int  # of a slice, encoded; 0 if no edge of the tree is
    code_room: int  # bytes that all slots together hold, encoded
    coded_parent: bool


class _Builder:
    """Collects one rank's records, tree by tree, and assigns each tree its ranges of scratch and arena."""

    def __init__(
        self, forest: Forest, spec: OpSpec, rank: int, homes: Sequence[Home], wires: _Wires,
        slice_bytes: int, window_bytes: int,
    ) -> None:  # fmt: skip
        self.forest, self.spec, self.rank, self.homes, self.wires = forest, spec, rank, homes, wires
        self.slice_bytes, self.window_bytes = slice_bytes, window_bytes
        self.up, self.down = forest.specification.up, forest.specification.down
        self.acc_size = 4 if spec.dtype in ("bfloat16", "float16") else spec.item_size
        self.total_count = sum(spec.counts)

        self.trees: list[Row] = []
        self.edges: list[Row] = []
        self.steps: list[tuple[int, int, int]] = []
        self.copies = _own_copies(spec, rank, forest.size)
        self.local_tree = np.full(len(forest.trees), -1, np.int64)
        self.frames_to = [0] * forest.size
        # A tree that only goes down waits for its readers, one that goes up for its parent: see `table.py`.
        down_part = DOWN_PART if self.up else ONLY_PART
        self.scratch = _Memory()
        self.arena_up, self.arena_down = (_Memory(part, part + PART_BYTES) for part in (UP_PART, down_part))
        self.num_slots = self.num_slices = self.num_seen = 0

    def add(self, index: int, tree: Tree, part: _Part) -> None:
        """Add a tree of the forest, if this rank takes part in it and it carries anything."""
        count, source_offset, target_offset = part.count, part.source, part.target
        parent, children = tree.parent_of(self.rank), tree.children_of(self.rank)
        if count == 0 or (parent is None and self.rank != tree.root):
            return
        if parent is None and not children:
            if self.up:
                self.copies.append((source_offset, target_offset, count * self.spec.item_size))
            return
        node = self._node(tree, parent, children, count)
        row: Row = {"id": index, "parent": NO_PEER if parent is None else parent}
        row |= {"up": self.up, "down": self.down, "near_parent": self._is_near(parent)}
        row |= {"count": count, "slice_elems": node.slice_elems, "num_slices": node.num_slices, "slots": node.slots}
        row |= {"first_slot": self.num_slots, "first_slice": self.num_slices}
        row |= {"source_offset": source_offset, "target_offset": target_offset}
        row |= self._add_edges(tree, node)
        row |= self._add_steps(node)
        row |= self._outgoing(node)
        self.local_tree[index] = len(self.trees)
        self.trees.append(row)
        self.num_slots += node.slots
        self.num_slices += node.num_slices

    def layout(self) -> TableLayout:
        frames = np.array(self.frames_to, np.int64)
        queues = np.zeros(self.forest.size, QUEUE)
        queues["base"] = np.cumsum(frames) - frames
        max_children = max((tree["num_edges"] for tree in self.trees), default=0)
        table = Table(
            trees=_records(self.trees, TREE),
            edges=_records(self.edges, EDGE),
            steps=np.array(self.steps, STEP),
            copies=np.array([copy for copy in self.copies if copy[2]], COPY),
            local_tree=self.local_tree,
            run=_run(self.forest, self.spec, self.rank, self.acc_size, self.wires.codec),
            due=np.zeros(self.num_slots, np.int64),
            arrived=np.zeros(self.num_slots, np.int64),
            seen=np.zeros(self.num_seen, np.uint8),
            slice_addresses=np.zeros(self.num_seen, np.int64),
            received=np.zeros(self.num_slices, np.uint8),
            queues=queues,
            pending=np.zeros(int(frames.sum()), np.int64),
            operands=np.zeros(max_children, np.int64),
            wire_sizes=np.zeros(max_children, np.int64),
        )
        return TableLayout(table, self.scratch.end)

    def _node(self, tree: Tree, parent: int | None, children: tuple[int, ...], count: int) -> _Node:
        coded = any(self.wires.is_coded(*edge) for edge in tree.edges)
        share, length = count / self.total_count, self.slice_bytes // self.spec.item_size
        if coded:
            length = coded_slice_elems(count, share, self.slice_bytes, self.window_bytes, self.wires.codec)
        num_slices = math.ceil(count / length)
        slots = min(num_slices, tree_slots(share, length * self.spec.item_size, self.window_bytes))
        code_bytes = self.wires.codec.num_bytes(length) if coded else 0
        return _Node(
            parent,
            children,
            count,
            length,
            num_slices,
            slots,
            slot_elems=min(count, slots * length),
            code_bytes=code_bytes,
            code_room=slots * code_bytes,
            coded_parent=parent is not None and self.wires.is_coded(self.rank, parent),
        )

    def _add_edges(self, tree: Tree, node: _Node) -> Row:
        """One edge for each child, with room for what arrives from it if that does not lie in its arena."""
        first, num_near, num_coded = len(self.edges), 0, 0
        for child in node.children:
            near, coded = self._is_near(child), self.wires.is_coded(child, self.rank)
            wire_size = self.acc_size if tree.children_of(child) else self.spec.item_size
            row: Row = {"peer": child, "near": near, "coded": coded, "wire_size": wire_size}
            row["slot_bytes"] = node.code_bytes if coded else node.slice_elems * wire_size
            room = node.code_room if coded else node.slot_elems * wire_size
            row["scratch_offset"] = self.scratch.take(room if self.up and not near else 0)
            row["first_seen"] = self.num_seen
            self.edges.append(row)
            self.num_seen += node.slots
            self.frames_to[child] += node.num_slices
            num_near, num_coded = num_near + near, num_coded + coded
        return {"first_edge": first, "num_edges": len(node.children), "num_near": num_near, "num_coded": num_coded}

    def _add_steps(self, node: _Node) -> Row:
        first = len(self.steps)
        if self.up and node.children:
            self.steps += fold_steps(self.rank, node.children, self.homes)
        return {"first_step": first, "num_steps": len(self.steps) - first}

    def _outgoing(self, node: _Node) -> Row:
        """Where slices lie that this rank passes on: partial sums, results for near children, encoded slices.

        What a leaf sends to a far parent goes straight from the source, a result for far children from the target.
        """
        item_size, near_parent = self.spec.item_size, self._is_near(node.parent)
        sum_bytes = node.slot_elems * (self.acc_size if node.children else item_size)
        is_inner = bool(node.children) and node.parent is not None
        num_near = sum(map(self._is_near, node.children))
        if node.parent is not None and (self.up or near_parent):
            self.frames_to[node.parent] += node.num_slices
        return {
            "partial_offset": self.scratch.take(sum_bytes if self.up and is_inner and not near_parent else 0),
            "arena_up": self.arena_up.take(sum_bytes if self.up and near_parent else 0),
            "arena_down": self.arena_down.take(node.slot_elems * item_size if self.down and num_near else 0),
            "coded": node.code_bytes > 0,
            "coded_parent": node.coded_parent,
            "code_bytes": node.code_bytes,
            "code_up": self.scratch.take(node.code_room if node.coded_parent else 0),
            "code_down": self.scratch.take(node.code_room),
        }

    def _is_near(self, peer: int | None) -> bool:
        return peer is not None and self.wires.is_near(self.rank, peer)


def _records(rows: Sequence[Row], kind: np.dtype[np.void]) -> Records:
    """Rows by field name as an array; every row gives every field."""
    records = np.zeros(len(rows), kind)
    for name in kind.names or ():
        records[name] = [row[name] for row in rows]
    return records


def _run(forest: Forest, spec: OpSpec, rank: int, acc_size: int, codec: Codec) -> Records:
    run = np.zeros(1, RUN)
    run["rank"] = rank
    run["spec"] = spec.fingerprint()
    run["is_short"] = spec.num_bytes <= SHORT_BYTES
    run["dtype"] = DTYPE_CODE["uint8" if spec.dtype == "bool" else spec.dtype]
    if spec.reduction is not None:
        codes = BOOL_REDUCTION_CODE if spec.dtype == "bool" else REDUCTION_CODE
        run["reduction"] = codes[spec.reduction]
    run["divisor"] = forest.size if spec.reduction == "avg" else 1
    run["item_size"], run["acc_size"], run["codec"] = spec.item_size, acc_size, codec.code
    return run


@dataclass(frozen=True)
class _Part:
    """What a tree carries for a rank: `count` elements, from `source` bytes into its source, to `target` bytes into its
    target."""

    count: int = 0
    source: int = 0
    target: int = 0


def _parts(forest: Forest, spec: OpSpec, rank: int) -> Iterable[tuple[int, _Part]]:
    """Indices of the forest's trees, without some in which the rank has no part, and what each of them carries."""
    specification = forest.specification
    if specification.pairwise:
        return _pair_parts(forest, spec, rank)
    if specification.chunked:
        return enumerate(_chunk_parts(forest, spec))
    bounds = split(spec.counts[0], forest.shares, spec.item_size)
    return enumerate(
        _Part(stop - start, start * spec.item_size, start * spec.item_size)
        for start, stop in itertools.pairwise(bounds)
    )


def _chunk_parts(forest: Forest, spec: OpSpec) -> list[_Part]:
    """Each rank's chunk goes by the trees rooted there, by their shares. Only one side has all chunks."""
    parts: list[_Part] = [_Part()] * len(forest.trees)
    first = np.concatenate(([0], np.cumsum(spec.counts)))
    for owner, count in enumerate(spec.counts):
        own = [index for index, tree in enumerate(forest.trees) if tree.root == owner]
        bounds = split(count, [forest.shares[index] for index in own], spec.item_size)
        for index, (start, stop) in zip(own, itertools.pairwise(bounds), strict=True):
            chunk, whole = start * spec.item_size, int(first[owner] + start) * spec.item_size
            source, target = (whole, chunk) if forest.specification.up else (chunk, whole)
            parts[index] = _Part(stop - start, source, target)
    return parts


def _pair_parts(forest: Forest, spec: OpSpec, rank: int) -> Iterable[tuple[int, _Part]]:
    """In each tree the chunk goes from the root to its only child. A rank knows the counts at its own end only, and
    there is a tree for each pair of ranks: only the rank's own are looked at closely."""
    sent, received = spec.counts[: forest.size], spec.counts[forest.size :]
    first_sent, first_received = ([0, *itertools.accumulate(counts)] for counts in (sent, received))
    for index, tree in enumerate(forest.trees):
        for child, root in tree.edges:  # none in a group of one
            if root == rank:
                yield index, _Part(sent[child], first_sent[child] * spec.item_size, 0)
            elif child == rank:
                yield index, _Part(received[root], 0, first_received[root] * spec.item_size)


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
