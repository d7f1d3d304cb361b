"""What a slice sets in motion: folds, results that are handed on, slots that are free again.

How a window slides. On the way up slot s % slots is free above once slice s has been folded (`due` then names slice
s + slots); the leaf learns of it when slice s comes down. On the way down over the network nothing waits: the target
has room for all. Only an arena is smaller than the message, so where a tree only goes down near children answer each
slice, and its slot is written again when all of them have.
"""

from __future__ import annotations

from typing import Any

from collectives.engine.compiled import libc
from collectives.engine.compiled.addresses import arena_down, code_down, partial_at, result_at, slice_elems
from collectives.engine.compiled.codecs import C_WORK
from collectives.engine.compiled.connections import Net
from collectives.engine.compiled.jit import call, jit
from collectives.engine.compiled.kernels import (
    ENCODED,
    F_CODE,
    F_CODEC,
    F_COUNT,
    F_DECODE,
    F_DIVISOR,
    F_DST,
    F_DST_IS_PARTIAL,
    F_DTYPE,
    F_ITEM_SIZE,
    F_NUM_STEPS,
    F_OPERANDS,
    F_OWN,
    F_REDUCTION,
    F_STEPS,
    F_WIRE_SIZES,
    F_WORK,
)
from collectives.engine.compiled.slice_codec import encode_slice
from collectives.engine.compiled.table import DOWN, NO_PEER, STEP, UP, Table

STEP_BYTES = STEP.itemsize


@jit
def push(table: Table, peer: int, t: int, s: int, direction: int) -> None:
    queue = table.queues[peer]
    table.pending[queue["base"] + queue["tail"]] = (t << 34) | (s << 2) | direction
    queue["tail"] += 1


@jit
def is_far_root(tree: Any) -> bool:
    """The root of a tree that only goes down, with children on the network: nothing keeps them from taking it all."""
    return tree["up"] == 0 and tree["parent"] == NO_PEER and tree["num_near"] < tree["num_edges"]


@jit
def child_arrived(net: Net, table: Table, t: int, s: int) -> None:
    """Count a child's slice; once all are there fold them, free the slot and send the sum on."""
    run, tree = table.run[0], table.trees[t]
    slot = s % tree["slots"]
    at = tree["first_slot"] + slot
    table.arrived[at] += 1
    if table.arrived[at] < tree["num_edges"]:
        return
    # Reset before the fold: nothing is received during it, and after it the slot is free.
    table.arrived[at] = 0
    table.due[at] += tree["slots"]
    begin = s * tree["slice_elems"]
    for k in range(tree["num_edges"]):
        edge = table.edges[tree["first_edge"] + k]
        table.wire_sizes[k] = ENCODED if edge["coded"] == 1 else edge["wire_size"]
        table.operands[k] = table.slice_addresses[edge["first_seen"] + slot]
        table.seen[edge["first_seen"] + slot] = 0
    own = run["source"] + tree["source_offset"] + begin * run["item_size"]
    is_root, is_coded = tree["parent"] == NO_PEER, tree["coded"] == 1
    if is_root:
        dst = run["target"] + tree["target_offset"] + begin * run["item_size"]
    else:
        dst = partial_at(net, table, tree, s)
    f = net.fold
    f[F_DTYPE], f[F_REDUCTION], f[F_ITEM_SIZE] = run["dtype"], run["reduction"], run["item_size"]
    f[F_DIVISOR] = run["divisor"] if is_root and not is_coded else 1
    f[F_STEPS] = table.steps.ctypes.data + tree["first_step"] * STEP_BYTES
    f[F_NUM_STEPS] = tree["num_steps"]
    f[F_OPERANDS], f[F_WIRE_SIZES] = table.operands.ctypes.data, table.wire_sizes.ctypes.data
    f[F_OWN], f[F_DST], f[F_DST_IS_PARTIAL] = own, dst, 0 if is_root else 1
    f[F_CODEC], f[F_DECODE], f[F_CODE] = run["codec"], net.code_address[1], net.code.ctypes.data
    net.code[C_WORK] = net.code_work.ctypes.data
    f[F_COUNT], f[F_WORK] = slice_elems(tree, s), (net.work.ctypes.data + 63) // 64 * 64
    call(net.fold_address[0], f.ctypes.data)
    if is_root:
        if is_coded:
            # The root keeps what the others will decode, so that all ranks hold the same bits.
            encode_slice(net, table, tree, s, dst, run["divisor"], code_down(run, tree, s), True, dst)
        hand_down(net, table, t, s)
    else:
        push(table, tree["parent"], t, s, UP)


@jit
def came_down(net: Net, table: Table, t: int, s: int) -> None:
    """Hand a result on. It says that the parent's slot is free, so a leaf may send the slice after next in it."""
    tree = table.trees[t]
    if tree["num_coded"] > 0 and tree["coded_parent"] == 0:
        # It came as numbers that have been decoded, so encoding them gives the root's code again.
        encode_slice(net, table, tree, s, result_at(table, tree, s), 1, code_down(table.run[0], tree, s), False, 0)
    hand_down(net, table, t, s)
    later = s + tree["slots"]
    if tree["up"] == 0:
        if tree["near_parent"] == 1:
            push(table, tree["parent"], t, s, UP)
    elif tree["num_edges"] == 0 and later < tree["num_slices"]:
        push(table, tree["parent"], t, later, UP)


@jit
def hand_down(net: Net, table: Table, t: int, s: int) -> None:
    """Queue a slice for the children: far ones at once, near ones when its slot in the arena is free."""
    tree = table.trees[t]
    if tree["num_near"] < tree["num_edges"]:
        for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
            if table.edges[e]["near"] == 0:
                push(table, table.edges[e]["peer"], t, s, DOWN)
    # After a way up every near child has sent its slice s, so it has read what was in this slot before.
    if tree["num_near"] > 0 and (tree["up"] == 1 or table.due[tree["first_slot"] + s % tree["slots"]] == s):
        _hand_to_near(net, table, t, s)


@jit
def _hand_to_near(net: Net, table: Table, t: int, s: int) -> None:
    """Put a slice into the arena, once for all near children, and queue its headers."""
    run, tree = table.run[0], table.trees[t]
    if tree["down"] == 1:
        item, begin = run["item_size"], s * tree["slice_elems"]
        is_source = tree["up"] == 0 and tree["parent"] == NO_PEER
        if is_source:
            at = run["source"] + tree["source_offset"] + begin * item
        else:
            at = run["target"] + tree["target_offset"] + begin * item
        libc.memmove(net.arenas[run["rank"]] + arena_down(run, tree, s), at, slice_elems(tree, s) * item)
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        if table.edges[e]["near"] == 1:
            push(table, table.edges[e]["peer"], t, s, DOWN)


@jit
def near_child_has_read(net: Net, table: Table, t: int, s: int) -> None:
    """In a tree that only goes down: once all near children have read a slice, its slot takes the one after next."""
    tree = table.trees[t]
    at = tree["first_slot"] + s % tree["slots"]
    table.arrived[at] += 1
    if table.arrived[at] < tree["num_near"]:
        return
    table.arrived[at] = 0
    table.due[at] += tree["slots"]
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        table.seen[table.edges[e]["first_seen"] + s % tree["slots"]] = 0
    later = table.due[at]
    if later < tree["num_slices"] and (tree["parent"] == NO_PEER or table.received[tree["first_slice"] + later] == 2):
        _hand_to_near(net, table, t, later)
