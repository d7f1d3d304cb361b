"""Where slices lie: addresses of a slice in the target, in scratch and in this rank's arena."""

from __future__ import annotations

from typing import Any

from collectives.engine.compiled.connections import Net
from collectives.engine.compiled.jit import jit
from collectives.engine.compiled.table import Table


@jit
def slice_elems(tree: Any, s: int) -> int:
    return min(tree["slice_elems"], tree["count"] - s * tree["slice_elems"])


@jit
def edge_to(table: Table, tree: Any, peer: int) -> int:
    """Position of the edge to a child; -1 if the peer is none."""
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        if table.edges[e]["peer"] == peer:
            return e
    return -1


@jit
def result_at(table: Table, tree: Any, s: int) -> int:
    """Address of a slice in the target."""
    run = table.run[0]
    return run["target"] + tree["target_offset"] + s * tree["slice_elems"] * run["item_size"]


@jit
def partial_at(net: Net, table: Table, tree: Any, s: int) -> int:
    """Address of what an inner node passes up."""
    run, slot = table.run[0], s % tree["slots"]
    if tree["near_parent"] == 1:
        return net.arenas[run["rank"]] + arena_up(run, tree, s)
    return run["scratch"] + tree["partial_offset"] + slot * tree["slice_elems"] * run["acc_size"]


@jit
def arena_up(run: Any, tree: Any, s: int) -> int:
    item = run["acc_size"] if tree["num_edges"] > 0 else run["item_size"]
    return tree["arena_up"] + (s % tree["slots"]) * tree["slice_elems"] * item


@jit
def arena_down(run: Any, tree: Any, s: int) -> int:
    return tree["arena_down"] + (s % tree["slots"]) * tree["slice_elems"] * run["item_size"]


@jit
def code_up(run: Any, tree: Any, s: int) -> int:
    return run["scratch"] + tree["code_up"] + (s % tree["slots"]) * tree["code_bytes"]


@jit
def code_down(run: Any, tree: Any, s: int) -> int:
    """Where the code of a result lies: as it came from the parent, or as it goes to children."""
    return run["scratch"] + tree["code_down"] + (s % tree["slots"]) * tree["code_bytes"]
