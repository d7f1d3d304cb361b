"""The sending half of the loop: the next frame of a peer's queue out, over any of its connections that is idle."""

from __future__ import annotations

import numpy as np

from collectives.engine.compiled import libc
from collectives.engine.compiled.addresses import (
    arena_down,
    arena_up,
    code_down,
    code_up,
    edge_to,
    partial_at,
    slice_elems,
)
from collectives.engine.compiled.codecs import code_bytes
from collectives.engine.compiled.connections import ARENA_OFFSET_BYTES, BATCH, BATCH_BYTES, HEADER_BYTES, Net
from collectives.engine.compiled.jit import jit
from collectives.engine.compiled.slice_codec import encode_slice
from collectives.engine.compiled.status import IDLE, MOVED, SOCKET_ERROR
from collectives.engine.compiled.table import DOWN, NO_PEER, UP, Table


@jit
def transmit(net: Net, table: Table, c: int) -> int:
    """Write once to a connection: go on with its frames, or take the peer's next (any idle connection may)."""
    conn = net.conns[c]
    if conn["tx_ready"] == 0:
        return IDLE
    if conn["tx_active"] == 0:
        queue = table.queues[conn["peer"]]
        if queue["head"] == queue["tail"]:
            return IDLE
        # Frames are made only now, when they can leave: a queue entry is 8 bytes, and a slice is encoded as late as
        # possible, when its connection is about to take it.
        frames = min(queue["tail"] - queue["head"], BATCH if conn["near"] == 1 else 1)
        for k in range(frames):
            _begin_frame(net, table, c, k, table.pending[queue["base"] + queue["head"]])
            queue["head"] += 1
        conn["tx_active"], conn["tx_sent"] = frames, 0
    headers = net.tx_headers.ctypes.data + c * BATCH_BYTES
    head_bytes = conn["tx_active"] * HEADER_BYTES
    total = head_bytes + conn["tx_length"]
    flags = libc.MSG_DONTWAIT | libc.MSG_NOSIGNAL
    if conn["tx_sent"] >= head_bytes:
        sent = libc.send(conn["fd"], conn["tx_at"] + conn["tx_sent"] - head_bytes, total - conn["tx_sent"], flags)
    elif conn["tx_length"] == 0:
        sent = libc.send(conn["fd"], headers + conn["tx_sent"], head_bytes - conn["tx_sent"], flags)
    else:
        net.iov[0], net.iov[1] = headers + conn["tx_sent"], head_bytes - conn["tx_sent"]
        net.iov[2], net.iov[3] = conn["tx_at"], conn["tx_length"]
        sent = libc.sendmsg(conn["fd"], net.message.ctypes.data, flags)
    if sent < 0:
        error = libc.errno()
        if error == libc.EAGAIN or error == libc.EINTR:
            conn["tx_ready"] = 0 if error == libc.EAGAIN else 1
            return IDLE
        table.run[0]["culprit"], table.run[0]["errno"] = conn["peer"], error
        return SOCKET_ERROR
    table.run[0]["bytes_sent"] += sent
    conn["tx_sent"] += sent
    if conn["tx_sent"] < total:
        conn["tx_ready"] = 0
    else:
        table.run[0]["to_send"] -= conn["tx_active"]
        conn["tx_active"] = 0
    return MOVED


@jit
def _begin_frame(net: Net, table: Table, c: int, k: int, entry: int) -> None:
    """Write a connection's k-th header; its payload is where `tx_at` says, or in the arena."""
    conn, run = net.conns[c], table.run[0]
    header = net.tx_headers[c * BATCH + k]
    t, s, direction = entry >> 34, (entry >> 2) & 0xFFFFFFFF, entry & 3
    tree = table.trees[t]
    begin, n, item = s * tree["slice_elems"], slice_elems(tree, s), run["item_size"]
    at, offset, num_bytes = np.int64(0), np.int64(0), n * item
    if direction == UP:
        if tree["up"] == 0:
            num_bytes = 0  # the word that a slice has been read
        elif tree["num_edges"] > 0:
            num_bytes = n * run["acc_size"]
            at, offset = partial_at(net, table, tree, s), arena_up(run, tree, s)
        else:
            at, offset = run["source"] + tree["source_offset"] + begin * item, arena_up(run, tree, s)
            if conn["near"] == 1:
                # A peer cannot read the source: it is the caller's memory, not shared.
                libc.memmove(net.arenas[run["rank"]] + offset, at, num_bytes)
    elif tree["down"] == 0:
        num_bytes = 0  # the word that a slot is free
    else:
        offset = arena_down(run, tree, s)
        if tree["up"] == 0 and tree["parent"] == NO_PEER:
            at = run["source"] + tree["source_offset"] + begin * item
        else:
            at = run["target"] + tree["target_offset"] + begin * item
    if direction == UP and tree["coded_parent"] == 1:
        num_bytes = code_bytes(run["codec"], n)
        encode_slice(net, table, tree, s, at, 1, code_up(run, tree, s), True, 0)
        at = code_up(run, tree, s)
    elif direction == DOWN and tree["num_coded"] > 0 and table.edges[edge_to(table, tree, conn["peer"])]["coded"] == 1:
        num_bytes = code_bytes(run["codec"], n)
        at = code_down(run, tree, s)  # encoded once, for all children
    header["op"], header["spec"], header["generation"] = run["op"], run["spec"], run["generation"]
    header["direction"], header["tree"], header["slice"] = direction, tree["id"], s
    header["length"], header["arena_offset"] = num_bytes, offset // ARENA_OFFSET_BYTES if conn["near"] == 1 else 0
    conn["tx_at"], conn["tx_length"] = at, 0 if conn["near"] == 1 else num_bytes
