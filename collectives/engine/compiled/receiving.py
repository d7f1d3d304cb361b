"""The receiving half of the loop: frames in, headers checked against the table before a byte is written.

A connection is between frames (`header_got` < HEADER_BYTES), at a header of a later op (`parked`), or in a payload
(`accepted`). A far connection reads the rest of a payload and the header behind it in one call, so a stream of slices
costs one system call for each. A near connection has no payloads: it reads headers in batches and acts on each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collectives.engine.compiled import libc
from collectives.engine.compiled.addresses import code_down, edge_to, result_at, slice_elems
from collectives.engine.compiled.codecs import code_bytes
from collectives.engine.compiled.connections import ARENA_OFFSET_BYTES, BATCH, BATCH_BYTES, HEADER_BYTES, Net
from collectives.engine.compiled.jit import inline_jit, jit
from collectives.engine.compiled.slice_codec import decode_slice
from collectives.engine.compiled.status import BAD_HEADER, IDLE, MOVED, OP_MISMATCH, PEER_CLOSED, SOCKET_ERROR
from collectives.engine.compiled.table import ARENA_BYTES, DOWN, UP, Table
from collectives.engine.compiled.trace_ring import note, now_ns
from collectives.engine.compiled.transitions import came_down, child_arrived, near_child_has_read

REFUSED = -1  # a payload length that no header has


@jit
def receive(net: Net, table: Table, c: int) -> int:
    """Read once from a connection: a header, or as much of a payload as is there, with the header that follows it."""
    conn = net.conns[c]
    if conn["rx_ready"] == 0 or conn["parked"] == 1 or table.queues[conn["peer"]]["expect"] == 0:
        return IDLE
    headers = net.rx_headers.ctypes.data + c * BATCH_BYTES
    if conn["header_got"] < HEADER_BYTES:
        got = libc.recv(conn["fd"], headers + conn["header_got"], HEADER_BYTES - conn["header_got"], libc.MSG_DONTWAIT)
        if got <= 0:
            return _after_failed_recv(table, conn, got)
        table.run[0]["bytes_received"] += got
        conn["header_got"] += got
        if conn["header_got"] < HEADER_BYTES:
            return MOVED
    if conn["accepted"] == 0:
        status = _accept_header(net, table, c)
        if status >= 0 or conn["parked"] == 1:
            return status
        if conn["payload_length"] == 0:
            conn["header_got"] = 0
            _complete(net, table, c)
            return MOVED
    left = conn["payload_length"] - conn["payload_got"]
    net.iov[0], net.iov[1] = conn["payload_at"] + conn["payload_got"], left
    net.iov[2], net.iov[3] = headers, HEADER_BYTES
    got = libc.recvmsg(conn["fd"], net.message.ctypes.data, libc.MSG_DONTWAIT)
    if got <= 0:
        return _after_failed_recv(table, conn, got)
    table.run[0]["bytes_received"] += got
    if got < left + HEADER_BYTES:
        conn["rx_ready"] = 0
    if got < left:
        conn["payload_got"] += got
        return MOVED
    conn["header_got"] = got - left  # of the next header
    _complete(net, table, c)
    return MOVED


@jit
def receive_near(net: Net, table: Table, c: int) -> int:
    """Read as many headers as are there, and act on each."""
    conn = net.conns[c]
    if conn["parked"] == 1 or table.queues[conn["peer"]]["expect"] == 0:
        return IDLE
    here = conn["header_got"] - conn["header_at"]
    if here < HEADER_BYTES:
        if conn["rx_ready"] == 0:
            return IDLE
        headers = net.rx_headers.ctypes.data + c * BATCH_BYTES
        if here > 0:
            libc.memmove(headers, headers + conn["header_at"], here)
        conn["header_at"], conn["header_got"] = 0, here
        got = libc.recv(conn["fd"], headers + here, BATCH_BYTES - here, libc.MSG_DONTWAIT)
        if got <= 0:
            return _after_failed_recv(table, conn, got)
        table.run[0]["bytes_received"] += got
        conn["header_got"] += got
        if conn["header_got"] < BATCH_BYTES:
            conn["rx_ready"] = 0
    while conn["header_got"] - conn["header_at"] >= HEADER_BYTES and table.queues[conn["peer"]]["expect"] > 0:
        status = _accept_header(net, table, c)
        if status >= 0 or conn["parked"] == 1:
            return status
        conn["header_at"] += HEADER_BYTES
        tree = table.trees[conn["tree"]]
        if conn["direction"] == DOWN and conn["payload_length"] > 0:
            libc.memmove(result_at(table, tree, conn["slice"]), conn["payload_at"], conn["payload_length"])
        _complete(net, table, c)
    return MOVED


@jit
def _complete(net: Net, table: Table, c: int) -> None:
    """A frame is here in full."""
    conn = net.conns[c]
    conn["accepted"] = 0
    table.run[0]["to_receive"] -= 1
    table.queues[conn["peer"]]["expect"] -= 1
    tree = table.trees[conn["tree"]]
    if conn["decoded_at"] != 0:
        decode_slice(net, table, tree, conn["slice"], conn["payload_at"], conn["decoded_at"])
    if len(net.trace_ring) > 0:
        note(net, now_ns(net), conn["direction"], conn["peer"], (tree["id"] << 32) | conn["slice"])
    if conn["direction"] == DOWN:
        table.received[tree["first_slice"] + conn["slice"]] = 2
        came_down(net, table, conn["tree"], conn["slice"])
    elif tree["up"] == 1:
        child_arrived(net, table, conn["tree"], conn["slice"])
    else:
        near_child_has_read(net, table, conn["tree"], conn["slice"])


@jit
def _after_failed_recv(table: Table, conn: Any, got: int) -> int:
    if got == 0:
        table.run[0]["culprit"] = conn["peer"]
        return PEER_CLOSED
    error = libc.errno()
    if error == libc.EAGAIN or error == libc.EINTR:
        conn["rx_ready"] = 0 if error == libc.EAGAIN else 1
        return IDLE
    table.run[0]["culprit"], table.run[0]["errno"] = conn["peer"], error
    return SOCKET_ERROR


@jit
def _accept_header(net: Net, table: Table, c: int) -> int:
    """Check a complete header against the table; set where its payload goes (or lies), or park the connection."""
    conn, run = net.conns[c], table.run[0]
    header = net.rx_headers[c * BATCH + conn["header_at"] // HEADER_BYTES]
    run["culprit"] = conn["peer"]
    status = _check_op(net, run, conn, header)
    if status >= 0 or conn["parked"] == 1:
        return status
    if header["tree"] >= len(table.local_tree) or table.local_tree[header["tree"]] < 0:
        return BAD_HEADER
    t, s = table.local_tree[header["tree"]], np.int64(header["slice"])
    tree = table.trees[t]
    if s >= tree["num_slices"]:
        return BAD_HEADER
    if header["direction"] == UP:
        at, num_bytes, decoded_at, seen = _expect_up(table, conn, tree, s)
    elif header["direction"] == DOWN and tree["parent"] == conn["peer"]:
        at, num_bytes, decoded_at, seen = _expect_down(table, tree, s)
    else:
        return BAD_HEADER
    # The table alone says how long a payload is: what a peer announces is compared with that and never used.
    if header["length"] != num_bytes:
        return BAD_HEADER
    if conn["near"] == 1 and num_bytes > 0:
        offset = np.int64(header["arena_offset"]) * ARENA_OFFSET_BYTES
        if offset + num_bytes > ARENA_BYTES:
            return BAD_HEADER
        at = net.arenas[conn["peer"]] + offset
        if header["direction"] == UP:
            table.slice_addresses[seen] = at  # the fold reads it there; nothing is copied on the way up
    conn["accepted"], conn["payload_at"], conn["payload_length"], conn["payload_got"] = 1, at, num_bytes, 0
    conn["tree"], conn["slice"], conn["direction"] = t, s, np.int64(header["direction"])
    conn["decoded_at"] = decoded_at
    return MOVED


@inline_jit
def _check_op(net: Net, run: Any, conn: Any, header: Any) -> int:
    """Whether a header belongs to the op that runs. One of a later op parks its connection."""
    if header["generation"] != run["generation"]:
        return BAD_HEADER
    if header["op"] < run["op"]:
        return OP_MISMATCH  # all that this rank expected of that op has come: the peer runs another collective there
    if header["op"] > run["op"]:
        # The peer is ahead, which is allowed: it needed nothing more of this rank. Its stream is left alone, and TCP's
        # window holds the peer up, until this rank gets to that op.
        conn["parked"] = 1
        return OP_MISMATCH if _has_gone_on(net, run, conn["peer"]) else MOVED
    return MOVED if header["spec"] == run["spec"] else OP_MISMATCH


@inline_jit
def _expect_up(table: Table, conn: Any, tree: Any, s: int) -> tuple[int, int, int, int]:
    """Claim the slot of a child's slice.

    Returns:
        Address for the payload; its length, REFUSED if no such slice is expected now; address for the decoded slice, 0
        if it is not decoded here; position in `slice_addresses`.
    """
    run, slot = table.run[0], s % tree["slots"]
    refused = (np.int64(0), np.int64(REFUSED), np.int64(0), np.int64(0))
    e = edge_to(table, tree, conn["peer"])
    if e < 0 or (tree["up"] == 0 and conn["near"] == 0):
        return refused
    edge = table.edges[e]
    seen = edge["first_seen"] + slot
    # The slot must be free for this very slice, and the child must not have sent it yet: a window that slid too early
    # would overwrite a slice that another child's is still to be folded with.
    if table.due[tree["first_slot"] + slot] != s or table.seen[seen] == 1:
        return refused
    table.seen[seen] = 1
    at = table.slice_addresses[seen]
    if edge["coded"] == 1:  # the fold decodes it
        return at, np.int64(code_bytes(run["codec"], slice_elems(tree, s))), np.int64(0), seen
    # Where a tree only goes down, this is the word that a near child has read a slice.
    num_bytes = slice_elems(tree, s) * edge["wire_size"] if tree["up"] == 1 else np.int64(0)
    return at, num_bytes, np.int64(0), seen


@inline_jit
def _expect_down(table: Table, tree: Any, s: int) -> tuple[int, int, int, int]:
    """As `_expect_up`, for a slice from the parent. Slices come down in any order, each once."""
    run = table.run[0]
    if table.received[tree["first_slice"] + s] != 0:
        return np.int64(0), np.int64(REFUSED), np.int64(0), np.int64(0)
    table.received[tree["first_slice"] + s] = 1
    at = result_at(table, tree, s)
    if tree["coded_parent"] == 1:
        return code_down(run, tree, s), np.int64(code_bytes(run["codec"], slice_elems(tree, s))), at, np.int64(0)
    # Where a tree only goes up, this is the word that a slot is free above.
    num_bytes = slice_elems(tree, s) * run["item_size"] if tree["down"] == 1 else np.int64(0)
    return at, num_bytes, np.int64(0), np.int64(0)


@jit
def _has_gone_on(net: Net, run: Any, peer: int) -> bool:
    """Whether all streams of a peer are at a later op. They are in order, so its outstanding slices will never come."""
    for c in range(len(net.conns)):
        conn = net.conns[c]
        header = net.rx_headers[c * BATCH + conn["header_at"] // HEADER_BYTES]
        if conn["peer"] == peer and not (conn["parked"] == 1 and header["op"] > run["op"]):
            return False
    return True
