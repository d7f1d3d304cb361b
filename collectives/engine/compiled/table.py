"""The contract between a forest and what executes it: one rank's part of one op, as numpy arrays.

`table_builder.py` makes a `Table` of a forest. `reference.py` and `loop.py` run the same table and may use nothing else
of the plan.

A tree's range of the message is cut into slices. On the way up a node waits for a slice of all its children, folds
them with its own and passes the sum on; on the way down a slice goes straight into the target.

Slice s of a tree waits in slot s % slots, above and below, and a slot is used again only when it is free: a window
slides over the message, and what waits stays small enough for the processor's cache. Where a tree goes up, a slice that
comes down says that its slot is free above, so a child sends slice s + slots once it has s; in collectives that only go
up, what comes down is a header without a payload. Where a tree only goes down, nothing waits on the network, and
a child that reads from its parent's memory answers with such a header.

With a codec, far edges of a tree carry encoded slices: all of them, or those over narrow links. A rank encodes what it
passes up, once; the root encodes the result, once, and itself keeps what the others will decode. Encoding what was
decoded gives the same code, so a rank that has a result as numbers can encode it for others.

Ranks that share memory are near: on the connection between them only headers travel. A payload lies in the sender's
arena, at an offset that the header gives. An arena has three parts, and each is free when it is written again, even by
the next op:

    UP_PART     partial sums on their way up; an op is not over before they have been read and answered
    DOWN_PART   results on their way down after a way up; written when all ranks' contributions to this op are there,
                so all have finished reading those of the op before
    ONLY_PART   what only goes down; an op is not over before every reader has answered

The fold order is canonical: contributions are grouped by site and by host, ranks of a host ascending, hosts and sites
in order of their lowest rank; a host's contributions are folded first, then the hosts' sums of a site, then the
sites'. It does not depend on what arrives first, nor on where in the message an element lies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]


NO_PEER = -1
UP, DOWN = 0, 1  # direction of a slice

# An arena is mapped whole but takes only the memory that is written to.
PART_BYTES = 512 * 1024 * 1024
UP_PART, DOWN_PART, ONLY_PART = 0, PART_BYTES, 2 * PART_BYTES
ARENA_BYTES = 3 * PART_BYTES

TREE = np.dtype(
    [
        ("id", "i8"),  # index in the forest, as it stands in slice headers
        ("parent", "i8"),  # rank, or NO_PEER at the root
        ("first_edge", "i8"), ("num_edges", "i8"),  # children, ascending rank
        ("first_step", "i8"), ("num_steps", "i8"),  # fold steps
        ("up", "i8"), ("down", "i8"),  # which ways values travel
        ("near_parent", "i8"),  # 1: the parent shares memory with this rank
        ("num_near", "i8"),  # children that do
        ("count", "i8"), ("slice_elems", "i8"), ("num_slices", "i8"),
        ("slots", "i8"),
        ("first_slot", "i8"),  # where the tree's slots start in `arrived` and `due`
        ("first_slice", "i8"),  # where the tree's slices start in `received`
        ("source_offset", "i8"), ("target_offset", "i8"),  # bytes from the buffers' start
        ("partial_offset", "i8"),  # bytes into scratch: what an inner node passes up to a far parent
        ("arena_up", "i8"), ("arena_down", "i8"),  # bytes into the arena: what goes to a near parent, to near children
        ("coded", "i8"),  # 1: an edge of the tree, perhaps elsewhere, carries encoded slices
        ("coded_parent", "i8"), ("num_coded", "i8"),  # 1: that to the parent does; children to which it does
        ("code_bytes", "i8"),  # of a full slice, encoded
        ("code_up", "i8"), ("code_down", "i8"),  # bytes into scratch: encoded slices to the parent, and down
    ]
)  # fmt: skip
EDGE = np.dtype(
    [
        ("peer", "i8"),  # the child's rank
        ("near", "i8"),  # 1: it shares memory with this rank
        ("coded", "i8"),  # 1: slices to it and from it are encoded
        ("wire_size", "i8"),  # bytes of an element on its way up: a leaf's own type, or the accumulator's
        ("scratch_offset", "i8"),  # bytes into scratch where its slices arrive, encoded ones as such, if it is far
        ("slot_bytes", "i8"),  # from one of its slots there to the next
        ("first_seen", "i8"),  # where its slots start in `seen` and `slice_addresses`
    ]
)
STEP = np.dtype([("dst", "i8"), ("a", "i8"), ("b", "i8")])
COPY = np.dtype([("source_offset", "i8"), ("target_offset", "i8"), ("num_bytes", "i8")])
QUEUE = np.dtype([("base", "i8"), ("head", "i8"), ("tail", "i8"), ("expect", "i8")])
RUN = np.dtype(
    [
        # Set anew for each op, in one go.
        ("op", "i8"), ("generation", "i8"), ("source", "i8"), ("target", "i8"), ("scratch", "i8"), ("timeout_ns", "i8"),
        ("residual", "i8"), ("started", "i8"), ("last_move_bytes", "i8"),
        ("bytes_received", "i8"), ("poll_ns", "i8"), ("bytes_sent", "i8"),  # counters
        # The loop's own.
        ("to_send", "i8"), ("to_receive", "i8"),  # frames still to go
        ("last_move_ns", "i8"),
        ("culprit", "i8"), ("errno", "i8"),  # where a status other than DONE came from
        # Fixed.
        ("rank", "i8"), ("spec", "i8"),
        ("is_short", "i8"),  # worth a few tries before sleeping
        ("dtype", "i8"), ("reduction", "i8"), ("divisor", "i8"), ("item_size", "i8"), ("acc_size", "i8"),
        ("codec", "i8"),
    ]
)  # fmt: skip
_SET, _COUNTERS = struct.Struct("=12q"), struct.Struct("=2q")  # what is set, and the last of it


class Table(NamedTuple):
    """One rank's part of an op. The first group is fixed, the second is the op's state while it runs."""

    trees: Records
    edges: Records
    steps: Records
    copies: Records
    local_tree: npt.NDArray[np.int64]  # tree id -> index in `trees`, or -1

    run: Records  # one RUN
    due: npt.NDArray[np.int64]  # for each (tree, slot): the slice that waits there, or may be put there
    arrived: npt.NDArray[np.int64]  # and how many children have answered for it
    seen: npt.NDArray[np.uint8]  # for each (edge, slot): whether that child has
    slice_addresses: npt.NDArray[np.int64]  # and the address of its slice
    received: npt.NDArray[np.uint8]  # for each (tree, slice): whether it has come down, or begun to
    queues: Records  # for each peer: a ring of slices to send, and how many slices are still to come
    pending: npt.NDArray[np.int64]  # the queues' entries: (tree, slice, direction), see `loop.py`
    operands: npt.NDArray[np.int64]  # a fold's addresses
    wire_sizes: npt.NDArray[np.int64]  # and sizes


@dataclass(frozen=True)
class TableLayout:
    """A table and what its owner must provide."""

    table: Table
    scratch_bytes: int

    def set_run(
        self, op: int, generation: int, source: int, target: int, scratch: int, timeout_ns: int, residual: int = 0
    ) -> None:
        """Make the table ready for an op; all else starts anew."""
        _SET.pack_into(self._run, 0, op, generation, source, target, scratch, timeout_ns, residual, 0, 0, 0, 0, 0)

    def counters(self) -> tuple[int, int]:
        """The last op's poll_ns and bytes_sent."""
        return _COUNTERS.unpack_from(self._run, _SET.size - _COUNTERS.size)

    @cached_property
    def _run(self) -> memoryview:
        return self.table.run.view(np.uint8).data  # far quicker to write than a record's fields, one by one
