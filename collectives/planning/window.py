"""How much of a message may be in flight: the engine's limits, which the event clock models, too."""

from __future__ import annotations

import math

from collectives.schedule.codec import Codec
from collectives.topology import Topology

MIN_WINDOW_BYTES, MAX_WINDOW_BYTES = 4 * 1024 * 1024, 128 * 1024 * 1024
MIN_SLOTS = 2
"""Of a tree: one slice in work while the next is in flight."""
MIN_CODED_SLICES, CODED_SLOTS = 16, 4
"""Of a tree, and of those in flight, before slices become longer because they are encoded."""


def default_window_bytes(topology: Topology) -> int:
    """Enough to keep every link busy for two round trips, 4 to 128 MiB."""
    fastest = max(min(host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts)
    in_flight = int(4 * topology.longest_latency_s * fastest * len(topology.hosts))
    return min(max(MIN_WINDOW_BYTES, in_flight), MAX_WINDOW_BYTES)


def tree_slots(share: float, slice_bytes: int, window_bytes: int) -> int:
    """How many slices of a tree may be in flight: its share (0 to 1) of the window, but at least MIN_SLOTS."""
    return max(MIN_SLOTS, math.ceil(share * window_bytes / slice_bytes))


def longest_slice(share: float, slice_bytes: int, window_bytes: int, codec: Codec) -> float:
    """Bytes, as float32, of a slice of a long message in a tree that has edges with this codec.

    Its code is half as long as a slice that is not encoded, where the codec can do it: a frame costs the same system
    calls and bookkeeping however short it is. But CODED_SLOTS of them fit into the tree's share of the window.
    """
    longest = min(slice_bytes * round(codec.ratio / 2), share * window_bytes / CODED_SLOTS)
    return max(float(slice_bytes), longest)


def coded_slice_elems(count: int, share: float, slice_bytes: int, window_bytes: int, codec: Codec) -> int:
    """Elements of a slice of a tree that carries `count` float32, `share` of the message, and has such edges.

    A tree of few slices keeps them short, so that slices come down while others still go up.
    """
    longest = min(longest_slice(share, slice_bytes, window_bytes, codec) / 4, count / MIN_CODED_SLICES)
    return max(slice_bytes // 4, int(longest) // codec.block_elems * codec.block_elems)
