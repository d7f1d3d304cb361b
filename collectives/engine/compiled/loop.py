"""The compiled loop: runs a table on non-blocking sockets until the op is done or something needs a decision.

`advance` keeps all its state in a net and a table: it returns a status, Python reacts, and may call it again to go on
where it stopped. It tries sockets that may be ready first and blocks in poll only when nothing moved; in a
short op it first lets others have the core a few times and tries again.

A frame is a 32-byte header and a payload. On a far connection the payload follows the header and goes straight to where
it belongs: on the way up into the place in scratch of that child's slice, on the way down into the target. On a near
connection it stays in the sender's arena; headers are read and written many at a time. A header of a later op (a peer
may be ahead) parks its connection: nothing more is read from it until this rank gets there.

    receiving.py    frames in, each checked            progress.py   what a slice sets in motion
    sending.py      frames out                         coding.py     slices between numbers and code
    waiting.py      what to do when nothing moves      addresses.py     where slices lie
"""

from __future__ import annotations

from collectives.engine.compiled import libc
from collectives.engine.compiled.arrays import arrays_at, describe
from collectives.engine.compiled.connections import Net
from collectives.engine.compiled.jit import jit
from collectives.engine.compiled.polling import try_again, wait
from collectives.engine.compiled.receiving import receive, receive_near
from collectives.engine.compiled.sending import transmit
from collectives.engine.compiled.status import DONE, MOVED
from collectives.engine.compiled.table import NO_PEER, UP, Table
from collectives.engine.compiled.trace_ring import now_ns
from collectives.engine.compiled.transitions import hand_down, is_far_root, push

MAX_YIELDS = 10  # a short op's peers answer soon, and to be woken takes longer than what they do


class Entry:
    """A net and a table, ready to be run. Keeps both alive; their arrays must not be replaced."""

    def __init__(self, net: Net, table: Table) -> None:
        self._arrays = (net, table)
        self._described = describe(net, table)
        self._at = int(self._described.ctypes.data)

    def advance(self) -> int:
        """As the function of that name."""
        return advance(self._at)


@jit
def advance(at: int) -> int:
    """Run the op of the net and the table at an address (see `arrays.py`) until it is done or needs a decision.

    Returns one of the statuses of `status.py`.
    """
    net, table = arrays_at(at)
    run = table.run[0]
    if run["started"] == 0:
        run["started"] = 1
        _copy_own(table)
        run["last_move_ns"] = now_ns(net)
        _begin(net, table)
    yields = 0
    while run["to_send"] > 0 or run["to_receive"] > 0:
        moved = False
        for c in range(len(net.conns)):
            status = receive_near(net, table, c) if net.conns[c]["near"] == 1 else receive(net, table, c)
            if status >= 0:
                return status
            moved |= status == MOVED
            status = transmit(net, table, c)
            if status >= 0:
                return status
            moved |= status == MOVED
        if moved:
            yields = 0
        elif run["is_short"] == 1 and yields < MAX_YIELDS:
            yields += 1
            libc.sched_yield()
            try_again(net, table)
        else:
            status = wait(net, table)
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
        longest = max(longest, n if is_far_root(tree) else tree["slots"])
        for slot in range(tree["slots"]):
            table.due[tree["first_slot"] + slot] = slot
            if tree["up"] == 1:
                for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
                    ahead = slot * tree["slice_elems"] * edges[e]["wire_size"]
                    table.slice_addresses[edges[e]["first_seen"] + slot] = (
                        run["scratch"] + edges[e]["scratch_offset"] + ahead
                    )
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
                    push(table, tree["parent"], t, s, UP)
            elif tree["parent"] == NO_PEER:
                hand_down(net, table, t, s)
    for c in range(len(net.conns)):
        net.conns[c]["rx_ready"], net.conns[c]["parked"] = 1, 0
