"""The clock, and the entries of a trace."""

from __future__ import annotations

from collectives.engine.compiled import libc
from collectives.engine.compiled.connections import JOURNAL_FIELDS, Net
from collectives.engine.compiled.jit import jit


@jit
def now_ns(net: Net) -> int:
    libc.clock_gettime(libc.CLOCK_MONOTONIC, net.clock.ctypes.data)
    return net.clock[0] * 1_000_000_000 + net.clock[1]


@jit
def note(net: Net, when: int, kind: int, peer: int, what: int) -> None:
    """Add an entry to the journal."""
    at = net.journal_head[0] * JOURNAL_FIELDS % len(net.journal)
    net.journal[at], net.journal[at + 1], net.journal[at + 2], net.journal[at + 3] = when, kind, peer, what
    net.journal_head[0] += 1
