"""From an op's spec to what the loop runs: plan, table and entry, built on first use and kept.

Training repeats a few ops, so planning and building happen in the first step only. The key is the spec without its
buffers: `TableLayout.set_run` writes addresses, op number and timeout into the table of each op anew.

A table holds the state of the op that runs on it. That is safe since a group runs one op at a time, and no table is
rebuilt while its op runs.
"""

from __future__ import annotations

import collections
import zlib
from typing import NamedTuple

import numpy as np

from collectives.engine import table_builder
from collectives.engine.compiled.connections import Net
from collectives.engine.compiled.loop import Entry
from collectives.engine.compiled.table import TableLayout
from collectives.options import Options
from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.planning.window import default_window_bytes
from collectives.schedule.op import OpSpec
from collectives.topology import Topology

MAX_TABLES = 256


class Prepared(NamedTuple):
    """The plan for an op, and this rank's part of it."""

    plan: Plan
    layout: TableLayout
    entry: Entry


class TableCache:
    """The tables of one rank.

    Args:
        shared_memory: indices of the hosts whose ranks share memory.

    Attributes:
        topology: what ops are planned with.
    """

    def __init__(
        self, rank: int, topology: Topology, options: Options, shared_memory: frozenset[int], net: Net
    ) -> None:
        self._rank, self._shared_memory, self._net = rank, shared_memory, net
        self._slice_bytes = options.slice_bytes
        # Of the first topology: all ranks go on with equal windows whatever they learn about the links later.
        self._window_bytes = options.window_bytes or default_window_bytes(topology)
        self.topology = topology
        self._prepared: collections.OrderedDict[OpSpec, Prepared] = collections.OrderedDict()
        self._scratch, self._scratch_address = np.empty(0, np.uint8), 0

    def __contains__(self, spec: OpSpec) -> bool:
        return spec in self._prepared

    def get(self, spec: OpSpec) -> Prepared:
        """What runs the op; of more than MAX_TABLES the one that was used last longest ago is dropped."""
        prepared = self._prepared.get(spec)
        if prepared is not None:
            self._prepared.move_to_end(spec)
            return prepared
        prepared = self._prepared[spec] = self._prepare(spec)
        if len(self._prepared) > MAX_TABLES:
            self._prepared.popitem(last=False)
        return prepared

    def replan(self, topology: Topology) -> None:
        """Plan with other rates from now on. Every rank must do so between the same two ops."""
        self.topology = topology
        self._prepared.clear()

    def scratch(self, num_bytes: int) -> int:
        """Address of at least that much scratch, on a cache line. It grows to what the largest op needed."""
        if len(self._scratch) < num_bytes + 64:
            self._scratch = np.empty(num_bytes + 64, np.uint8)
            self._scratch_address = (self._scratch.ctypes.data + 63) // 64 * 64
        return self._scratch_address

    def _prepare(self, spec: OpSpec) -> Prepared:
        # All-to-all's counts differ from rank to rank; a plan must not depend on them.
        num_bytes = 0 if spec.specification.counts_are_private else spec.num_bytes
        in_force = plan(self.topology, spec.collective, num_bytes, spec.root, spec.codec)
        layout = table_builder.build(
            in_force.forest, spec, self._rank, self.topology.homes,
            slice_bytes=self._slice_bytes, window_bytes=self._window_bytes, shared_memory=self._shared_memory,
            narrow_between=self.topology.narrow_between,
        )  # fmt: skip
        layout.table.run["spec"] = self._fingerprint(spec, in_force)
        return Prepared(in_force, layout, Entry(self._net, layout.table))

    def _fingerprint(self, spec: OpSpec, in_force: Plan) -> int:
        """32 bits in every header: equal only if op, plan and slicing are."""
        slicing = f"{self._slice_bytes} {self._window_bytes}"
        return spec.fingerprint() ^ in_force.fingerprint() ^ zlib.crc32(slicing.encode())
