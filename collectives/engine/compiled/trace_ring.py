"""The clock, and the entries of a trace."""

from __future__ import annotations

from collectives.engine.compiled import libc
from collectives.engine.compiled.connections import TRACE_FIELDS, Net
from collectives.engine.compiled.jit import jit


@jit
def now_ns(net: Net) -> int:
    libc.clock_gettime(libc.CLOCK_MONOTONIC, net.clock.ctypes.data)
    return net.clock[0] * 1_000_000_000 + net.clock[1]


@jit
def note(net: Net, when: int, kind: int, peer: int, what: int) -> None:
    """Add an entry to the trace ring."""
    at = net.trace_written[0] * TRACE_FIELDS % len(net.trace_ring)
    net.trace_ring[at], net.trace_ring[at + 1], net.trace_ring[at + 2], net.trace_ring[at + 3] = when, kind, peer, what
    net.trace_written[0] += 1
