"""The compiled loop: runs a table on non-blocking sockets until the op is done or something needs a decision.

In: a net and a table, which hold all of the loop's state. Out: a status. After INTERRUPTED and CONTROL Python may call
`advance` again and the op goes on where it stopped; all others end it.

    DONE          all frames of the op have been sent and received
    INTERRUPTED   poll was cut short, by a signal, the waker, or after a second: Python looks
    CONTROL       a peer's control connection is readable
    PEER_CLOSED, SOCKET_ERROR, TIMEOUT, BAD_HEADER, OP_MISMATCH     the op fails; `run` holds the culprit's rank

There is no list of events. `to_send` and `to_receive` count frames; the queues hold what each peer is to get next; what
a slice sets in motion is queued by whoever received it. An op is over for a rank when both counts are 0: it has
everything and all it sent has left, though its peers may still be at work.

Sockets that may be ready (`rx_ready`, `tx_ready`) are tried first, and poll is asked only when nothing moved: while
slices flow no time goes to asking. A short op's peers answer within microseconds, and being woken takes longer than
that, so there the loop yields the core a few times and tries every connection again before it sleeps.

A frame is a 32-byte header and a payload. On a far connection the payload follows the header and goes straight to where
it belongs: on the way up into scratch, at the address of that child's slot, on the way down into the target. On a near
connection it stays in the sender's arena; headers are read and written many at a time. A header of a later op (a peer
may be ahead) parks its connection: nothing more is read from it until this rank gets there, and the next op begins with
that header.

    receiving.py    frames in, each checked            transitions.py   what a slice sets in motion
    sending.py      frames out                         slice_codec.py   slices between numbers and code
    polling.py      what to do when nothing moves      addresses.py     where slices lie
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

MAX_YIELDS = 10  # more would take the core from the peers of this machine, who are to answer


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
                    at = run["scratch"] + edges[e]["scratch_offset"] + slot * edges[e]["slot_bytes"]
                    table.slice_addresses[edges[e]["first_seen"] + slot] = at
        if tree["parent"] != NO_PEER:
            run["to_send"] += n * (1 if tree["up"] == 1 else tree["near_parent"])
            run["to_receive"] += n
            queues[tree["parent"]]["expect"] += n
        run["to_send"] += n * tree["num_edges"]
        for e in range(tree["first_edge"], tree["first_edge"] + tree["num_edges"]):
            answers = n if tree["up"] == 1 else n * edges[e]["near"]
            run["to_receive"] += answers
            queues[edges[e]["peer"]]["expect"] += answers
    # Slice by slice, in each the trees in turn: links that different trees use are then busy from the start.
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
    # A parked header may be of this op: it is looked at again.
    for c in range(len(net.conns)):
        net.conns[c]["rx_ready"], net.conns[c]["parked"] = 1, 0
