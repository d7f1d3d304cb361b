"""The compiled loop: runs a table on non-blocking sockets until the op is done or something needs a decision.

`advance(net, table)` keeps all its state in its arguments: it returns a status, Python reacts, and may call it again
to go on where it stopped. It tries sockets that may be ready first and blocks in poll only when nothing moved.

A frame is a 32-byte header and a payload. A payload goes straight to where it belongs: on the way up into the place
in scratch of that child's slice, on the way down into the target. A header of a later op or window (a peer may be
ahead) parks its connection: nothing more is read from it until this rank gets there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collectives.engine import libc
from collectives.engine.jit import call, jit
from collectives.engine.kernels import (
    F_COUNT,
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
)  # fmt: skip
from collectives.engine.net import HEADER_BYTES, Net
from collectives.engine.table import DOWN, NO_PEER, STEP, UP, Table

# What `advance` returns. Where it names a peer, `run.culprit` holds its rank.
DONE, INTERRUPTED, CONTROL, PEER_CLOSED, SOCKET_ERROR, TIMEOUT, BAD_HEADER, OP_MISMATCH = range(8)
# What its helpers return while nothing is wrong (below zero, so that any status above is one of the list).
_IDLE, _MOVED = -2, -1

LONGEST_POLL_MS = 1000
STEP_BYTES = STEP.itemsize


@jit
def advance(net: Net, table: Table) -> int:
    """Run the op of `table.run` until it is done or a decision is needed; see the statuses above."""
    run = table.run[0]
    if run["started"] == 0:
        run["started"] = 1
        _copy_own(table)
        run["last_move_ns"] = _now_ns(net)
        _begin_window(net, table)
    while True:
        while run["to_send"] == 0 and run["to_receive"] == 0:
            run["window"] += 1
            if run["window"] >= run["num_windows"]:
                return DONE
            _begin_window(net, table)
        moved = False
        for c in range(len(net.conns)):
            status = _receive(net, table, c)
            if status >= 0:
                return status
            moved |= status == _MOVED
            status = _transmit(net, table, c)
            if status >= 0:
                return status
            moved |= status == _MOVED
        if not moved:
            status = _wait(net, table)
            if status >= 0:
                return status


@jit
def _copy_own(table: Table) -> None:
    run = table.run[0]
    for i in range(len(table.copies)):
        copy = table.copies[i]
        source, target = run["source"] + copy["source_offset"], run["target"] + copy["target_offset"]
        if source != target:
            libc.memmove(target, source, copy["num_bytes"])


@jit
def _begin_window(net: Net, table: Table) -> None:
    """Forget the last window, count what will come and go in this one, and queue what can leave at once."""
    run, trees, edges, queues = table.run[0], table.trees, table.edges, table.queues
    run["to_send"], run["to_receive"] = 0, 0
    table.arrived[:] = 0
    table.seen[:] = 0
    table.received[:] = 0
    for p in range(len(queues)):
        queues[p]["head"], queues[p]["tail"], queues[p]["expect"] = 0, 0, 0
    longest = 0
    for t in range(len(trees)):
        tree = trees[t]
        first, stop = _window_of(run, tree)
        n = stop - first
        at_once = min(n, tree["slots"]) if run["sliding"] == 1 else n
        longest = max(longest, at_once)
        for k in range(tree["slots"]):
            table.due[tree["first_slot"] + (first + k) % tree["slots"]] = first + k
        has_parent = 1 if tree["parent"] != NO_PEER else 0
        run["to_send"] += n * (tree["up"] * has_parent + tree["down"] * tree["num_edges"])
        run["to_receive"] += n * (tree["up"] * tree["num_edges"] + tree["down"] * has_parent)
        if has_parent:
            queues[tree["parent"]]["expect"] += n * tree["down"]
        for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
            queues[edges[e]["peer"]]["expect"] += n * tree["up"]
    for s in range(longest):
        for t in range(len(trees)):
            tree = trees[t]
            first, stop = _window_of(run, tree)
            if first + s >= stop or (run["sliding"] == 1 and s >= tree["slots"]):
                continue
            if tree["up"] == 1 and tree["num_edges"] == 0:
                _push(table, tree["parent"], t, first + s, UP)
            elif tree["up"] == 0 and tree["parent"] == NO_PEER:
                _push_down(table, t, first + s)
    for c in range(len(net.conns)):
        net.conns[c]["rx_ready"], net.conns[c]["parked"] = 1, 0


@jit
def _window_of(run: Any, tree: Any) -> tuple[int, int]:
    """First and past-the-last slice of a tree in the current window; a sliding one passes over all."""
    if run["sliding"] == 1 or run["num_windows"] == 1:
        return np.int64(0), tree["num_slices"]
    first = run["window"] * tree["slots"]
    return min(first, tree["num_slices"]), min(first + tree["slots"], tree["num_slices"])


@jit
def _push(table: Table, peer: int, t: int, s: int, direction: int) -> None:
    queue = table.queues[peer]
    table.pending[queue["base"] + queue["tail"]] = (t << 34) | (s << 2) | direction
    queue["tail"] += 1


@jit
def _push_down(table: Table, t: int, s: int) -> None:
    tree = table.trees[t]
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        _push(table, table.edges[e]["peer"], t, s, DOWN)


@jit
def _slice_elems(tree: Any, s: int) -> int:
    return min(tree["slice_elems"], tree["count"] - s * tree["slice_elems"])


@jit
def _receive(net: Net, table: Table, c: int) -> int:
    """Read once from a connection: a header, or as much of a payload as is there, with the header that follows it."""
    conn = net.conns[c]
    if conn["rx_ready"] == 0 or conn["parked"] == 1 or table.queues[conn["peer"]]["expect"] == 0:
        return _IDLE
    if conn["header_got"] < HEADER_BYTES:
        at = net.rx_headers.ctypes.data + c * HEADER_BYTES + conn["header_got"]
        got = libc.recv(conn["fd"], at, HEADER_BYTES - conn["header_got"], libc.MSG_DONTWAIT)
        if got <= 0:
            return _after_failed_recv(table, conn, got)
        table.run[0]["bytes_received"] += got
        conn["header_got"] += got
        if conn["header_got"] < HEADER_BYTES:
            return _MOVED
    if conn["accepted"] == 0:
        status = _accept_header(net, table, c)
        if status >= 0 or conn["parked"] == 1:
            return status
    left = conn["payload_length"] - conn["payload_got"]
    net.iov[0], net.iov[1] = conn["payload_at"] + conn["payload_got"], left
    net.iov[2], net.iov[3] = net.rx_headers.ctypes.data + c * HEADER_BYTES, HEADER_BYTES
    got = libc.recvmsg(conn["fd"], net.message.ctypes.data, libc.MSG_DONTWAIT)
    if got <= 0:
        return _after_failed_recv(table, conn, got)
    table.run[0]["bytes_received"] += got
    if got < left + HEADER_BYTES:
        conn["rx_ready"] = 0
    if got < left:
        conn["payload_got"] += got
        return _MOVED
    conn["header_got"], conn["accepted"] = got - left, 0
    table.run[0]["to_receive"] -= 1
    table.queues[conn["peer"]]["expect"] -= 1
    if conn["direction"] == UP:
        _child_arrived(net, table, conn["tree"], conn["slice"])
    else:
        _came_down(table, conn["tree"], conn["slice"])
    return _MOVED


@jit
def _after_failed_recv(table: Table, conn: Any, got: int) -> int:
    if got == 0:
        table.run[0]["culprit"] = conn["peer"]
        return PEER_CLOSED
    error = libc.errno()
    if error == libc.EAGAIN or error == libc.EINTR:
        conn["rx_ready"] = 0 if error == libc.EAGAIN else 1
        return _IDLE
    table.run[0]["culprit"], table.run[0]["errno"] = conn["peer"], error
    return SOCKET_ERROR


@jit
def _accept_header(net: Net, table: Table, c: int) -> int:
    """Check a complete header against the table; find where its payload goes, or park the connection."""
    conn, header, run = net.conns[c], net.rx_headers[c], table.run[0]
    run["culprit"] = conn["peer"]
    if header["epoch"] != run["epoch"]:
        return BAD_HEADER
    if header["op"] < run["op"]:
        return OP_MISMATCH  # a slice that this rank never asked for
    if header["op"] > run["op"]:
        conn["parked"] = 1
        return OP_MISMATCH if _has_gone_on(net, run, conn["peer"]) else _MOVED
    if header["spec"] != run["spec"]:
        return OP_MISMATCH
    if header["tree"] >= len(table.local_tree) or table.local_tree[header["tree"]] < 0:
        return BAD_HEADER
    t, s = table.local_tree[header["tree"]], np.int64(header["slice"])
    tree = table.trees[t]
    first, stop = _window_of(run, tree)
    if s >= tree["num_slices"] or s < first:
        return BAD_HEADER
    if s >= stop:
        conn["parked"] = 1
        return _MOVED
    slot, n = s % tree["slots"], _slice_elems(tree, s)
    if header["direction"] == UP and tree["up"] == 1:
        e = _edge_from(table, tree, conn["peer"])
        if e < 0 or table.due[tree["first_slot"] + slot] != s or table.seen[table.edges[e]["first_seen"] + slot] == 1:
            return BAD_HEADER
        table.seen[table.edges[e]["first_seen"] + slot] = 1
        item = table.edges[e]["wire_size"]
        at = run["scratch"] + table.edges[e]["scratch_offset"] + slot * tree["slice_elems"] * item
    elif header["direction"] == DOWN and tree["down"] == 1 and tree["parent"] == conn["peer"]:
        if table.received[tree["first_slice"] + s] == 1:
            return BAD_HEADER
        table.received[tree["first_slice"] + s] = 1
        item = run["item_size"]
        at = run["target"] + tree["target_offset"] + s * tree["slice_elems"] * item
    else:
        return BAD_HEADER
    if header["length"] != n * item:
        return BAD_HEADER
    conn["accepted"], conn["payload_at"], conn["payload_length"], conn["payload_got"] = 1, at, n * item, 0
    conn["tree"], conn["slice"], conn["direction"] = t, s, np.int64(header["direction"])
    return _MOVED


@jit
def _has_gone_on(net: Net, run: Any, peer: int) -> bool:
    """Whether all streams of a peer are at a later op. They are in order, so what it still owes will never come."""
    for c in range(len(net.conns)):
        conn = net.conns[c]
        if conn["peer"] == peer and not (conn["parked"] == 1 and net.rx_headers[c]["op"] > run["op"]):
            return False
    return True


@jit
def _edge_from(table: Table, tree: Any, peer: int) -> int:
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        if table.edges[e]["peer"] == peer:
            return e
    return -1


@jit
def _child_arrived(net: Net, table: Table, t: int, s: int) -> None:
    """Count a child's slice; once all are there fold them, free the slot and send the sum on."""
    run, tree = table.run[0], table.trees[t]
    slot = s % tree["slots"]
    at = tree["first_slot"] + slot
    table.arrived[at] += 1
    if table.arrived[at] < tree["num_edges"]:
        return
    table.arrived[at] = 0
    table.due[at] += tree["slots"]
    begin = s * tree["slice_elems"]
    for k in range(tree["num_edges"]):
        edge = table.edges[tree["first_edge"] + k]
        table.wire_sizes[k] = edge["wire_size"]
        table.operands[k] = run["scratch"] + edge["scratch_offset"] + slot * tree["slice_elems"] * edge["wire_size"]
        table.seen[edge["first_seen"] + slot] = 0
    own = run["source"] + tree["source_offset"] + begin * run["item_size"]
    is_root = tree["parent"] == NO_PEER
    if is_root:
        dst = run["target"] + tree["target_offset"] + begin * run["item_size"]
    else:
        dst = run["scratch"] + tree["partial_offset"] + slot * tree["slice_elems"] * run["acc_size"]
    f = net.fold
    f[F_DTYPE], f[F_REDUCTION], f[F_ITEM_SIZE] = run["dtype"], run["reduction"], run["item_size"]
    f[F_DIVISOR] = run["divisor"] if is_root else 1
    f[F_STEPS] = table.steps.ctypes.data + tree["first_step"] * STEP_BYTES
    f[F_NUM_STEPS] = tree["num_steps"]
    f[F_OPERANDS], f[F_WIRE_SIZES] = table.operands.ctypes.data, table.wire_sizes.ctypes.data
    f[F_OWN], f[F_DST], f[F_DST_IS_PARTIAL] = own, dst, 0 if is_root else 1
    f[F_COUNT], f[F_WORK] = _slice_elems(tree, s), (net.work.ctypes.data + 63) // 64 * 64
    call(net.fold_address[0], f.ctypes.data)
    if not is_root:
        _push(table, tree["parent"], t, s, UP)
    elif tree["down"] == 1:
        _push_down(table, t, s)


@jit
def _came_down(table: Table, t: int, s: int) -> None:
    """Hand a result on. It says that the parent's slot is free, so a leaf may send the slice after next in it."""
    tree = table.trees[t]
    _push_down(table, t, s)
    later = s + tree["slots"]
    if tree["up"] == 1 and tree["num_edges"] == 0 and later < tree["num_slices"]:
        _push(table, tree["parent"], t, later, UP)


@jit
def _transmit(net: Net, table: Table, c: int) -> int:
    """Write once to a connection: go on with its frame, or take the peer's next slice (any idle connection may)."""
    conn = net.conns[c]
    if conn["tx_ready"] == 0:
        return _IDLE
    if conn["tx_active"] == 0:
        queue = table.queues[conn["peer"]]
        if queue["head"] == queue["tail"]:
            return _IDLE
        _begin_frame(net, table, c, table.pending[queue["base"] + queue["head"]])
        queue["head"] += 1
    total = HEADER_BYTES + conn["tx_length"]
    if conn["tx_sent"] < HEADER_BYTES:
        net.iov[0] = net.tx_headers.ctypes.data + c * HEADER_BYTES + conn["tx_sent"]
        net.iov[1] = HEADER_BYTES - conn["tx_sent"]
        net.iov[2], net.iov[3] = conn["tx_at"], conn["tx_length"]
        sent = libc.sendmsg(conn["fd"], net.message.ctypes.data, libc.MSG_DONTWAIT | libc.MSG_NOSIGNAL)
    else:
        at = conn["tx_at"] + conn["tx_sent"] - HEADER_BYTES
        sent = libc.send(conn["fd"], at, total - conn["tx_sent"], libc.MSG_DONTWAIT | libc.MSG_NOSIGNAL)
    if sent < 0:
        error = libc.errno()
        if error == libc.EAGAIN or error == libc.EINTR:
            conn["tx_ready"] = 0 if error == libc.EAGAIN else 1
            return _IDLE
        table.run[0]["culprit"], table.run[0]["errno"] = conn["peer"], error
        return SOCKET_ERROR
    table.run[0]["bytes_sent"] += sent
    conn["tx_sent"] += sent
    if conn["tx_sent"] < total:
        conn["tx_ready"] = 0
    else:
        conn["tx_active"] = 0
        table.run[0]["to_send"] -= 1
    return _MOVED


@jit
def _begin_frame(net: Net, table: Table, c: int, entry: int) -> None:
    conn, header, run = net.conns[c], net.tx_headers[c], table.run[0]
    t, s, direction = entry >> 34, (entry >> 2) & 0xFFFFFFFF, entry & 3
    tree = table.trees[t]
    slot, begin, n = s % tree["slots"], s * tree["slice_elems"], _slice_elems(tree, s)
    item = run["item_size"]
    if direction == UP and tree["num_edges"] > 0:
        item = run["acc_size"]
        at = run["scratch"] + tree["partial_offset"] + slot * tree["slice_elems"] * item
    elif direction == UP or (tree["up"] == 0 and tree["parent"] == NO_PEER):
        at = run["source"] + tree["source_offset"] + begin * item
    else:
        at = run["target"] + tree["target_offset"] + begin * item
    header["op"], header["spec"], header["epoch"] = run["op"], run["spec"], run["epoch"]
    header["direction"], header["tree"], header["slice"] = direction, tree["id"], s
    header["length"] = n * item
    conn["tx_active"], conn["tx_at"], conn["tx_length"], conn["tx_sent"] = 1, at, n * item, 0


@jit
def _wait(net: Net, table: Table) -> int:
    """Block until a socket that matters is ready, the timeout is over, or Python is needed."""
    run, polls, conns = table.run[0], net.polls, net.conns
    num_conns, num_ranks = len(conns), len(net.control)
    for c in range(num_conns):
        conn, events = conns[c], 0
        queue = table.queues[conn["peer"]]
        if queue["expect"] > 0 and conn["parked"] == 0:
            events |= libc.POLLIN
        if conn["tx_active"] == 1 or queue["head"] < queue["tail"]:
            events |= libc.POLLOUT
        polls[c]["fd"] = conn["fd"] if events != 0 else -1
        polls[c]["events"], polls[c]["revents"] = events, 0
    for r in range(num_ranks):
        polls[num_conns + r]["fd"] = net.control[r]
        polls[num_conns + r]["events"], polls[num_conns + r]["revents"] = libc.POLLIN, 0
    last = num_conns + num_ranks
    polls[last]["fd"], polls[last]["events"], polls[last]["revents"] = net.waker[0], libc.POLLIN, 0

    now = _now_ns(net)
    moved_bytes = run["bytes_sent"] + run["bytes_received"]
    if moved_bytes != run["last_move_bytes"]:
        run["last_move_bytes"], run["last_move_ns"] = moved_bytes, now
    left_ms = (run["last_move_ns"] + run["timeout_ns"] - now) // 1_000_000
    if left_ms < 0:
        return TIMEOUT
    ready = libc.poll(polls.ctypes.data, last + 1, min(left_ms + 1, LONGEST_POLL_MS))
    run["poll_ns"] += _now_ns(net) - now
    if ready < 0:
        error = libc.errno()
        if error == libc.EINTR:
            return INTERRUPTED
        run["culprit"], run["errno"] = NO_PEER, error
        return SOCKET_ERROR
    if polls[last]["revents"] != 0:
        return INTERRUPTED
    if ready == 0:
        return INTERRUPTED  # a signal may have come just before poll; Python looks
    for r in range(num_ranks):
        if polls[num_conns + r]["revents"] != 0:
            run["culprit"] = r
            return CONTROL
    for c in range(num_conns):
        revents = polls[c]["revents"]
        if revents & ~libc.POLLOUT:
            conns[c]["rx_ready"] = 1
        if revents & ~libc.POLLIN:
            conns[c]["tx_ready"] = 1
    return _IDLE


@jit
def _now_ns(net: Net) -> int:
    libc.clock_gettime(libc.CLOCK_MONOTONIC, net.clock.ctypes.data)
    return net.clock[0] * 1_000_000_000 + net.clock[1]
