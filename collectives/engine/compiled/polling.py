"""When nothing moves: sleep in poll, and attribute the time to peers.

A sleep ends when a connection that matters is ready, when a control connection or the waker is readable, or after
MAX_POLL_MS: Python then gets a chance to run signal handlers, since a signal that arrives just before poll interrupts
nothing. Connections that this op needs nothing from are not polled, so a peer that is ahead causes no wake-ups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from collectives.engine.compiled import libc
from collectives.engine.compiled.connections import WAIT, Net
from collectives.engine.compiled.jit import jit
from collectives.engine.compiled.status import CONTROL, IDLE, INTERRUPTED, SOCKET_ERROR, TIMEOUT
from collectives.engine.compiled.table import NO_PEER, Table
from collectives.engine.compiled.trace_ring import note, now_ns

MAX_POLL_MS = 1000
WAKE_BYTES = 16 * 1024


@jit
def wait(net: Net, table: Table) -> int:
    """Block until a socket that matters is ready, the timeout is over, or Python is needed (a status)."""
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

    # The timeout counts from the last byte that moved, not from the op's start: a slow op is no failure. Bytes are
    # compared here, once a sleep, rather than the clock read at each move.
    now = now_ns(net)
    moved_bytes = run["bytes_sent"] + run["bytes_received"]
    if moved_bytes != run["last_move_bytes"]:
        run["last_move_bytes"], run["last_move_ns"] = moved_bytes, now
    left_ms = (run["last_move_ns"] + run["timeout_ns"] - now) // 1_000_000
    if left_ms < 0:
        return TIMEOUT
    ready = libc.poll(polls.ctypes.data, last + 1, min(left_ms + 1, MAX_POLL_MS))
    slept = now_ns(net) - now
    run["poll_ns"] += slept
    _attribute(net, table, now, slept)
    if ready < 0:
        error = libc.errno()
        if error == libc.EINTR:
            return INTERRUPTED
        run["culprit"], run["errno"] = NO_PEER, error
        return SOCKET_ERROR
    if polls[last]["revents"] != 0:
        return INTERRUPTED
    if ready == 0:
        return INTERRUPTED
    # Before any data: an abort says more about what is wrong than the streams' end that follows it.
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
    return IDLE


@jit
def _attribute(net: Net, table: Table, since: int, slept: int) -> None:
    """Attribute poll time to peers with outstanding slices, in equal parts; if there are none, to those that accept
    nothing. Which of several held the op up is not known here: what depends on what is the other ranks' business."""
    num_peers, last, queues = 0, -1, table.queues
    outstanding = False
    for p in range(len(queues)):
        outstanding |= queues[p]["expect"] > 0
    for p in range(len(queues)):
        if (queues[p]["expect"] > 0) if outstanding else (queues[p]["head"] < queues[p]["tail"]):
            num_peers, last = num_peers + 1, p
    for p in range(len(queues)):
        if (queues[p]["expect"] > 0) if outstanding else (queues[p]["head"] < queues[p]["tail"]):
            net.waited_ns[p] += slept // num_peers
    if len(net.trace_ring) > 0:
        note(net, since, WAIT, last if num_peers == 1 else -1, slept)


@jit
def try_again(net: Net, table: Table) -> None:
    """Read from every connection with outstanding slices, as if poll had reported it."""
    for c in range(len(net.conns)):
        if table.queues[net.conns[c]["peer"]]["expect"] > 0:
            net.conns[c]["rx_ready"] = 1


@jit
def _wake_at(net: Net, conn: Any) -> None:
    """Have poll report a payload only when a good part of it is here: on slow links it comes packet by packet."""
    wanted = np.int64(1)
    if conn["accepted"] == 1:
        wanted = max(wanted, min(WAKE_BYTES, conn["payload_length"] - conn["payload_got"]))
    if wanted != conn["wakes_at"]:
        net.iov[0] = wanted
        libc.setsockopt(conn["fd"], libc.SOL_SOCKET, libc.SO_RCVLOWAT, net.iov.ctypes.data, 4)
        conn["wakes_at"] = wanted
