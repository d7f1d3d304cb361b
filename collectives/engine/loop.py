"""The compiled loop: runs a table on non-blocking sockets until the op is done or something needs a decision.

`advance(net, table)` keeps all its state in its arguments: it returns a status, Python reacts, and may call it again
to go on where it stopped. It tries sockets that may be ready first and blocks in poll only when nothing moved; in a
short op it first lets others have the core a few times and tries again.

A frame is a 32-byte header and a payload. On a far connection the payload follows the header and goes straight to where
it belongs: on the way up into the place in scratch of that child's slice, on the way down into the target. On a near
connection it stays in the sender's arena; headers are read and written many at a time. A header of a later op (a peer
may be ahead) parks its connection: nothing more is read from it until this rank gets there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collectives.engine import libc
from collectives.engine.codecs import (
    C_CODE,
    C_CODEC,
    C_COUNT,
    C_DECODED,
    C_DIVISOR,
    C_RESIDUAL,
    C_VALUES,
    C_WORK,
    code_bytes,
)  # fmt: skip
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
from collectives.engine.net import BATCH, HEADER_BYTES, JOURNAL_FIELDS, PLACE_BYTES, Net
from collectives.engine.table import ARENA_BYTES, DOWN, NO_PEER, STEP, UP, Table

# What `advance` returns. Where it names a peer, `run.culprit` holds its rank.
DONE, INTERRUPTED, CONTROL, PEER_CLOSED, SOCKET_ERROR, TIMEOUT, BAD_HEADER, OP_MISMATCH = range(8)
# What its helpers return while nothing is wrong (below zero, so that any status above is one of the list).
_IDLE, _MOVED = -2, -1

LONGEST_POLL_MS = 1000
MOST_YIELDS = 10  # a short op's peers answer soon, and to be woken takes longer than what they do
WAKE_BYTES = 16 * 1024
STEP_BYTES = STEP.itemsize
BATCH_BYTES = BATCH * HEADER_BYTES


@jit
def advance(net: Net, table: Table) -> int:
    """Run the op of `table.run` until it is done or a decision is needed; see the statuses above."""
    run = table.run[0]
    if run["started"] == 0:
        run["started"] = 1
        _copy_own(table)
        run["last_move_ns"] = _now_ns(net)
        _begin(net, table)
    yields = 0
    while run["to_send"] > 0 or run["to_receive"] > 0:
        moved = False
        for c in range(len(net.conns)):
            status = _receive_near(net, table, c) if net.conns[c]["near"] == 1 else _receive(net, table, c)
            if status >= 0:
                return status
            moved |= status == _MOVED
            status = _transmit(net, table, c)
            if status >= 0:
                return status
            moved |= status == _MOVED
        if moved:
            yields = 0
        elif run["is_short"] == 1 and yields < MOST_YIELDS:
            yields += 1
            libc.sched_yield()
            _try_again(net, table)
        else:
            status = _wait(net, table)
            if status >= 0:
                return status
    return DONE


@jit
def _copy_own(table: Table) -> None:
    run = table.run[0]
    for i in range(len(table.copies)):
        copy = table.copies[i]
        source, target = run["source"] + copy["source_offset"], run["target"] + copy["target_offset"]
        if source != target:
            libc.memmove(target, source, copy["num_bytes"])


@jit
def _begin(net: Net, table: Table) -> None:
    """Forget the last op, count what will come and go in this one, and queue what can leave at once."""
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
        n = tree["num_slices"]
        longest = max(longest, n if _is_far_root(tree) else tree["slots"])
        for slot in range(tree["slots"]):
            table.due[tree["first_slot"] + slot] = slot
            if tree["up"] == 1:
                for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
                    ahead = slot * tree["slice_elems"] * edges[e]["wire_size"]
                    table.places[edges[e]["first_seen"] + slot] = run["scratch"] + edges[e]["scratch_offset"] + ahead
        if tree["parent"] != NO_PEER:
            run["to_send"] += n * (1 if tree["up"] == 1 else tree["near_parent"])
            run["to_receive"] += n
            queues[tree["parent"]]["expect"] += n
        run["to_send"] += n * tree["num_edges"]
        for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
            answers = n if tree["up"] == 1 else n * edges[e]["near"]
            run["to_receive"] += answers
            queues[edges[e]["peer"]]["expect"] += answers
    for s in range(longest):
        for t in range(len(trees)):
            tree = trees[t]
            if s >= tree["num_slices"]:
                continue
            if tree["up"] == 1:
                if tree["num_edges"] == 0 and s < tree["slots"]:
                    _push(table, tree["parent"], t, s, UP)
            elif tree["parent"] == NO_PEER:
                _hand_down(net, table, t, s)
    for c in range(len(net.conns)):
        net.conns[c]["rx_ready"], net.conns[c]["parked"] = 1, 0


@jit
def _is_far_root(tree: Any) -> bool:
    """The root of a tree that only goes down, with children on the network: nothing keeps them from taking it all."""
    return tree["up"] == 0 and tree["parent"] == NO_PEER and tree["num_near"] < tree["num_edges"]


@jit
def _push(table: Table, peer: int, t: int, s: int, direction: int) -> None:
    queue = table.queues[peer]
    table.pending[queue["base"] + queue["tail"]] = (t << 34) | (s << 2) | direction
    queue["tail"] += 1


@jit
def _slice_elems(tree: Any, s: int) -> int:
    return min(tree["slice_elems"], tree["count"] - s * tree["slice_elems"])


# What a slice sets in motion


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
        table.operands[k] = table.places[edge["first_seen"] + slot]
        table.seen[edge["first_seen"] + slot] = 0
    own = run["source"] + tree["source_offset"] + begin * run["item_size"]
    is_root, is_coded = tree["parent"] == NO_PEER, tree["coded"] == 1
    if is_root:
        dst = run["target"] + tree["target_offset"] + begin * run["item_size"]
    else:
        dst = _partial_at(net, table, tree, s)
    f = net.fold
    f[F_DTYPE], f[F_REDUCTION], f[F_ITEM_SIZE] = run["dtype"], run["reduction"], run["item_size"]
    f[F_DIVISOR] = run["divisor"] if is_root and not is_coded else 1
    f[F_STEPS] = table.steps.ctypes.data + tree["first_step"] * STEP_BYTES
    f[F_NUM_STEPS] = tree["num_steps"]
    f[F_OPERANDS], f[F_WIRE_SIZES] = table.operands.ctypes.data, table.wire_sizes.ctypes.data
    f[F_OWN], f[F_DST], f[F_DST_IS_PARTIAL] = own, dst, 0 if is_root else 1
    f[F_COUNT], f[F_WORK] = _slice_elems(tree, s), (net.work.ctypes.data + 63) // 64 * 64
    call(net.fold_address[0], f.ctypes.data)
    if is_root:
        if is_coded:
            _encode(net, table, tree, s, dst, run["divisor"], _code_down(run, tree, s), True, dst)
        _hand_down(net, table, t, s)
    else:
        _push(table, tree["parent"], t, s, UP)


@jit
def _came_down(net: Net, table: Table, t: int, s: int) -> None:
    """Hand a result on. It says that the parent's slot is free, so a leaf may send the slice after next in it."""
    tree = table.trees[t]
    if tree["coded"] == 1 and tree["near_parent"] == 1 and tree["num_near"] < tree["num_edges"]:
        _encode(net, table, tree, s, _result_at(table, tree, s), 1, _code_down(table.run[0], tree, s), False, 0)
    _hand_down(net, table, t, s)
    later = s + tree["slots"]
    if tree["up"] == 0:
        if tree["near_parent"] == 1:
            _push(table, tree["parent"], t, s, UP)
    elif tree["num_edges"] == 0 and later < tree["num_slices"]:
        _push(table, tree["parent"], t, later, UP)


@jit
def _hand_down(net: Net, table: Table, t: int, s: int) -> None:
    """Queue a slice for the children: far ones at once, near ones when its slot in the arena is free."""
    tree = table.trees[t]
    if tree["num_near"] < tree["num_edges"]:
        for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
            if table.edges[e]["near"] == 0:
                _push(table, table.edges[e]["peer"], t, s, DOWN)
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
        libc.memmove(net.arenas[run["rank"]] + _arena_down(run, tree, s), at, _slice_elems(tree, s) * item)
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        if table.edges[e]["near"] == 1:
            _push(table, table.edges[e]["peer"], t, s, DOWN)


@jit
def _near_child_has_read(net: Net, table: Table, t: int, s: int) -> None:
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


# Codecs


@jit
def _encode(
    net: Net, table: Table, tree: Any, s: int, values: int, divisor: int, code: int, corrects: bool, decoded: int
) -> None:
    """Encode a slice from one address to another; with the op's residual if there is one and the rank `corrects`."""
    run, f = table.run[0], net.code
    residual = np.int64(0)
    if corrects and run["residual"] != 0:
        residual = run["residual"] + tree["source_offset"] + s * tree["slice_elems"] * run["item_size"]
    f[C_CODEC], f[C_COUNT], f[C_VALUES], f[C_CODE] = run["codec"], _slice_elems(tree, s), values, code
    f[C_RESIDUAL], f[C_DIVISOR], f[C_DECODED], f[C_WORK] = residual, divisor, decoded, net.code_work.ctypes.data
    call(net.code_address[0], f.ctypes.data)


@jit
def _decode(net: Net, table: Table, tree: Any, s: int, code: int, values: int) -> None:
    f = net.code
    f[C_CODEC], f[C_COUNT], f[C_VALUES], f[C_CODE] = table.run[0]["codec"], _slice_elems(tree, s), values, code
    f[C_WORK] = net.code_work.ctypes.data
    call(net.code_address[1], f.ctypes.data)


@jit
def _code_up(run: Any, tree: Any, s: int) -> int:
    return run["scratch"] + tree["code_up"] + (s % tree["slots"]) * tree["code_bytes"]


@jit
def _code_down(run: Any, tree: Any, s: int) -> int:
    """Where the code of a result lies: as it came from a far parent, or as it goes to far children."""
    return run["scratch"] + tree["code_down"] + (s % tree["slots"]) * tree["code_bytes"]


@jit
def _result_at(table: Table, tree: Any, s: int) -> int:
    """Address of a slice in the target."""
    run = table.run[0]
    return run["target"] + tree["target_offset"] + s * tree["slice_elems"] * run["item_size"]


# Where slices lie


@jit
def _partial_at(net: Net, table: Table, tree: Any, s: int) -> int:
    """Address of what an inner node passes up."""
    run, slot = table.run[0], s % tree["slots"]
    if tree["near_parent"] == 1:
        return net.arenas[run["rank"]] + _arena_up(run, tree, s)
    return run["scratch"] + tree["partial_offset"] + slot * tree["slice_elems"] * run["acc_size"]


@jit
def _arena_up(run: Any, tree: Any, s: int) -> int:
    item = run["acc_size"] if tree["num_edges"] > 0 else run["item_size"]
    return tree["arena_up"] + (s % tree["slots"]) * tree["slice_elems"] * item


@jit
def _arena_down(run: Any, tree: Any, s: int) -> int:
    return tree["arena_down"] + (s % tree["slots"]) * tree["slice_elems"] * run["item_size"]


# Receiving


@jit
def _receive(net: Net, table: Table, c: int) -> int:
    """Read once from a connection: a header, or as much of a payload as is there, with the header that follows it."""
    conn = net.conns[c]
    if conn["rx_ready"] == 0 or conn["parked"] == 1 or table.queues[conn["peer"]]["expect"] == 0:
        return _IDLE
    headers = net.rx_headers.ctypes.data + c * BATCH_BYTES
    if conn["header_got"] < HEADER_BYTES:
        got = libc.recv(conn["fd"], headers + conn["header_got"], HEADER_BYTES - conn["header_got"], libc.MSG_DONTWAIT)
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
        if conn["payload_length"] == 0:
            conn["header_got"] = 0
            _complete(net, table, c)
            return _MOVED
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
        return _MOVED
    conn["header_got"] = got - left
    _complete(net, table, c)
    return _MOVED


@jit
def _receive_near(net: Net, table: Table, c: int) -> int:
    """Read as many headers as are there, and act on each."""
    conn = net.conns[c]
    if conn["parked"] == 1 or table.queues[conn["peer"]]["expect"] == 0:
        return _IDLE
    here = conn["header_got"] - conn["header_at"]
    if here < HEADER_BYTES:
        if conn["rx_ready"] == 0:
            return _IDLE
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
            libc.memmove(_result_at(table, tree, conn["slice"]), conn["payload_at"], conn["payload_length"])
        _complete(net, table, c)
    return _MOVED


@jit
def _complete(net: Net, table: Table, c: int) -> None:
    """A frame is here in full."""
    conn = net.conns[c]
    conn["accepted"] = 0
    table.run[0]["to_receive"] -= 1
    table.queues[conn["peer"]]["expect"] -= 1
    tree = table.trees[conn["tree"]]
    if tree["coded"] == 1 and conn["near"] == 0:
        _decode(net, table, tree, conn["slice"], conn["payload_at"], conn["decoded_at"])
    if len(net.journal) > 0:
        _note(net, _now_ns(net), conn["direction"], conn["peer"], (tree["id"] << 32) | conn["slice"])
    if conn["direction"] == DOWN:
        table.received[tree["first_slice"] + conn["slice"]] = 2
        _came_down(net, table, conn["tree"], conn["slice"])
    elif tree["up"] == 1:
        _child_arrived(net, table, conn["tree"], conn["slice"])
    else:
        _near_child_has_read(net, table, conn["tree"], conn["slice"])


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
    """Check a complete header against the table; find where its payload goes (or lies), or park the connection."""
    conn, run = net.conns[c], table.run[0]
    header = net.rx_headers[c * BATCH + conn["header_at"] // HEADER_BYTES]
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
    if s >= tree["num_slices"]:
        return BAD_HEADER
    slot, seen, num_bytes = s % tree["slots"], np.int64(0), np.int64(0)
    is_coded = tree["coded"] == 1 and conn["near"] == 0
    if header["direction"] == UP:
        e = _edge_from(table, tree, conn["peer"])
        if e < 0 or (tree["up"] == 0 and conn["near"] == 0):
            return BAD_HEADER
        seen = table.edges[e]["first_seen"] + slot
        if table.due[tree["first_slot"] + slot] != s or table.seen[seen] == 1:
            return BAD_HEADER
        table.seen[seen] = 1
        at = table.places[seen]
        if tree["up"] == 1:
            num_bytes = _slice_elems(tree, s) * table.edges[e]["wire_size"]
        if is_coded:
            conn["decoded_at"] = at
            at = run["scratch"] + table.edges[e]["code_offset"] + slot * tree["code_bytes"]
            num_bytes = code_bytes(run["codec"], _slice_elems(tree, s))
    elif header["direction"] == DOWN and tree["parent"] == conn["peer"]:
        if table.received[tree["first_slice"] + s] != 0:
            return BAD_HEADER
        table.received[tree["first_slice"] + s] = 1
        at = _result_at(table, tree, s)
        if tree["down"] == 1:
            num_bytes = _slice_elems(tree, s) * run["item_size"]
        if is_coded:
            conn["decoded_at"], at = at, _code_down(run, tree, s)
            num_bytes = code_bytes(run["codec"], _slice_elems(tree, s))
    else:
        return BAD_HEADER
    if header["length"] != num_bytes:
        return BAD_HEADER
    if conn["near"] == 1 and num_bytes > 0:
        place = np.int64(header["place"]) * PLACE_BYTES
        if place + num_bytes > ARENA_BYTES:
            return BAD_HEADER
        at = net.arenas[conn["peer"]] + place
        if header["direction"] == UP:
            table.places[seen] = at
    conn["accepted"], conn["payload_at"], conn["payload_length"], conn["payload_got"] = 1, at, num_bytes, 0
    conn["tree"], conn["slice"], conn["direction"] = t, s, np.int64(header["direction"])
    return _MOVED


@jit
def _has_gone_on(net: Net, run: Any, peer: int) -> bool:
    """Whether all streams of a peer are at a later op. They are in order, so what it still owes will never come."""
    for c in range(len(net.conns)):
        conn = net.conns[c]
        header = net.rx_headers[c * BATCH + conn["header_at"] // HEADER_BYTES]
        if conn["peer"] == peer and not (conn["parked"] == 1 and header["op"] > run["op"]):
            return False
    return True


@jit
def _edge_from(table: Table, tree: Any, peer: int) -> int:
    for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
        if table.edges[e]["peer"] == peer:
            return e
    return -1


# Sending


@jit
def _transmit(net: Net, table: Table, c: int) -> int:
    """Write once to a connection: go on with its frames, or take the peer's next (any idle connection may)."""
    conn = net.conns[c]
    if conn["tx_ready"] == 0:
        return _IDLE
    if conn["tx_active"] == 0:
        queue = table.queues[conn["peer"]]
        if queue["head"] == queue["tail"]:
            return _IDLE
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
            return _IDLE
        table.run[0]["culprit"], table.run[0]["errno"] = conn["peer"], error
        return SOCKET_ERROR
    table.run[0]["bytes_sent"] += sent
    conn["tx_sent"] += sent
    if conn["tx_sent"] < total:
        conn["tx_ready"] = 0
    else:
        table.run[0]["to_send"] -= conn["tx_active"]
        conn["tx_active"] = 0
    return _MOVED


@jit
def _begin_frame(net: Net, table: Table, c: int, k: int, entry: int) -> None:
    """Write a connection's k-th header; its payload is where `tx_at` says, or in the arena."""
    conn, run = net.conns[c], table.run[0]
    header = net.tx_headers[c * BATCH + k]
    t, s, direction = entry >> 34, (entry >> 2) & 0xFFFFFFFF, entry & 3
    tree = table.trees[t]
    begin, n, item = s * tree["slice_elems"], _slice_elems(tree, s), run["item_size"]
    at, place, num_bytes = np.int64(0), np.int64(0), n * item
    if direction == UP:
        if tree["up"] == 0:
            num_bytes = 0  # the word that a slice has been read
        elif tree["num_edges"] > 0:
            num_bytes = n * run["acc_size"]
            at, place = _partial_at(net, table, tree, s), _arena_up(run, tree, s)
        else:
            at, place = run["source"] + tree["source_offset"] + begin * item, _arena_up(run, tree, s)
            if conn["near"] == 1:
                libc.memmove(net.arenas[run["rank"]] + place, at, num_bytes)
    elif tree["down"] == 0:
        num_bytes = 0  # the word that a slot is free
    else:
        place = _arena_down(run, tree, s)
        if tree["up"] == 0 and tree["parent"] == NO_PEER:
            at = run["source"] + tree["source_offset"] + begin * item
        else:
            at = run["target"] + tree["target_offset"] + begin * item
    if tree["coded"] == 1 and conn["near"] == 0:
        num_bytes = code_bytes(run["codec"], n)
        if direction == UP:
            _encode(net, table, tree, s, at, 1, _code_up(run, tree, s), True, 0)
            at = _code_up(run, tree, s)
        else:
            at = _code_down(run, tree, s)
    header["op"], header["spec"], header["epoch"] = run["op"], run["spec"], run["epoch"]
    header["direction"], header["tree"], header["slice"] = direction, tree["id"], s
    header["length"], header["place"] = num_bytes, place // PLACE_BYTES if conn["near"] == 1 else 0
    conn["tx_at"], conn["tx_length"] = at, 0 if conn["near"] == 1 else num_bytes


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
            _wake_at(net, conn)
        if conn["tx_active"] > 0 or queue["head"] < queue["tail"]:
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
    slept = _now_ns(net) - now
    run["poll_ns"] += slept
    _charge(net, table, now, slept)
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
def _charge(net: Net, table: Table, since: int, slept: int) -> None:
    """Note whose fault a sleep is: of the ranks that owe something, in equal parts; else of those that take nothing."""
    debtors, one, queues = 0, -1, table.queues
    owing = False
    for p in range(len(queues)):
        owing |= queues[p]["expect"] > 0
    for p in range(len(queues)):
        if (queues[p]["expect"] > 0) if owing else (queues[p]["head"] < queues[p]["tail"]):
            debtors, one = debtors + 1, p
    for p in range(len(queues)):
        if (queues[p]["expect"] > 0) if owing else (queues[p]["head"] < queues[p]["tail"]):
            net.waited_ns[p] += slept // debtors
    if len(net.journal) > 0:
        _note(net, since, 2, one if debtors == 1 else -1, slept)


@jit
def _note(net: Net, when: int, kind: int, peer: int, what: int) -> None:
    """Add an entry to the journal."""
    at = net.journal_head[0] * JOURNAL_FIELDS % len(net.journal)
    net.journal[at], net.journal[at + 1], net.journal[at + 2], net.journal[at + 3] = when, kind, peer, what
    net.journal_head[0] += 1


@jit
def _try_again(net: Net, table: Table) -> None:
    """Read from every connection that owes something, as if poll had told."""
    for c in range(len(net.conns)):
        if table.queues[net.conns[c]["peer"]]["expect"] > 0:
            net.conns[c]["rx_ready"] = 1


@jit
def _wake_at(net: Net, conn: Any) -> None:
    """Have poll tell of a payload only when a good part of it is here: on slow links it comes packet by packet."""
    wanted = np.int64(1)
    if conn["accepted"] == 1:
        wanted = max(wanted, min(WAKE_BYTES, conn["payload_length"] - conn["payload_got"]))
    if wanted != conn["wakes_at"]:
        net.iov[0] = wanted
        libc.setsockopt(conn["fd"], libc.SOL_SOCKET, libc.SO_RCVLOWAT, net.iov.ctypes.data, 4)
        conn["wakes_at"] = wanted


@jit
def _now_ns(net: Net) -> int:
    libc.clock_gettime(libc.CLOCK_MONOTONIC, net.clock.ctypes.data)
    return net.clock[0] * 1_000_000_000 + net.clock[1]
