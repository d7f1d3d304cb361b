"""How much of a message may be in flight: the engine's limits, which the event clock models, too."""

from __future__ import annotations

import math

from collectives.schedule.codec import Codec
from collectives.topology import Topology

MIN_WINDOW_BYTES, MAX_WINDOW_BYTES = 4 * 1024 * 1024, 128 * 1024 * 1024
MIN_SLOTS = 2
"""Of a tree: one slice in work while the next is in flight."""
MIN_CODED_SLICES = 16
"""Of a tree, before its slices become longer because they are encoded."""


def default_window_bytes(topology: Topology) -> int:
    """Enough to keep every link busy for two round trips, 4 to 128 MiB."""
    fastest = max(min(host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts)
    in_flight = int(4 * topology.longest_latency_s * fastest * len(topology.hosts))
    return min(max(MIN_WINDOW_BYTES, in_flight), MAX_WINDOW_BYTES)


def tree_slots(share: float, slice_bytes: int, window_bytes: int) -> int:
    """How many slices of a tree may be in flight: its share (0 to 1) of the window, but at least MIN_SLOTS."""
    return max(MIN_SLOTS, math.ceil(share * window_bytes / slice_bytes))


def longest_slice(slice_bytes: int, codec: Codec) -> int:
    """Bytes of float32 of the longest slice. Encoded it is half as long as one that is not, where the codec can do it:
    a frame costs the same system calls and bookkeeping however short it is."""
    return slice_bytes * max(1, round(codec.ratio / 2))


def slice_elems(count: int, slice_elems: int, codec: Codec) -> int:
    """Elements of a slice of a tree that carries `count`, where those that are not encoded have `slice_elems`.

    A tree of few slices keeps them short, so that slices come down while others still go up.
    """
    enough = -(-count // (MIN_CODED_SLICES * codec.block_elems)) * codec.block_elems
    return min(longest_slice(slice_elems, codec), max(slice_elems, enough))
