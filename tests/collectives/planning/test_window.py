"""How much of a message may be in flight, by hand-computed rows."""

from __future__ import annotations

import pytest

from collectives.engine.table_builder import build
from collectives.planning.window import (
    MAX_WINDOW_BYTES,
    MIN_SLOTS,
    MIN_WINDOW_BYTES,
    coded_slice_elems,
    default_window_bytes,
    tree_slots,
)
from collectives.schedule.codec import codec_of
from collectives.schedule.forest import Forest
from collectives.schedule.op import OpSpec
from collectives.schedule.tree import Tree
from collectives.topology import Host, Site, Topology

MIB = 1024**2


def hosts(latency_s: float, bytes_per_s: float = 1e8) -> tuple[Host, ...]:
    """Four of them. The first has half the others' rate up, so the fastest both ways are the others."""
    halved = Host("a", (0,), bytes_per_s / 2, bytes_per_s, latency_s=latency_s)
    rest = (Host(name, (rank,), bytes_per_s, bytes_per_s, latency_s=latency_s) for rank, name in enumerate("bcd", 1))
    return (halved, *rest)


# Two round trips are four times the longest latency; times the fastest host's rate, times the number of hosts.
WINDOWS = {
    "a switch: the floor": (Topology(hosts(100e-6)), MIN_WINDOW_BYTES),
    "one host has no latency between hosts": (Topology((Host("a", (0, 1), latency_s=1.0),)), MIN_WINDOW_BYTES),
    "hosts far apart": (Topology(hosts(5e-3)), 8_000_000),  # 4 x 5 ms x 1e8 x 4
    "the uplinks of two sites come on top": (
        Topology(hosts(5e-3), (Site("x", ("a", "b"), 1e8, 1e8, 3e-3), Site("y", ("c", "d"), 1e8, 1e8, 2e-3))),
        16_000_000,  # 4 x (5 + 3 + 2) ms x 1e8 x 4
    ),
    "the slower direction of a host counts": (
        Topology((Host("a", (0,), 1e8, 4e8, latency_s=10e-3), Host("b", (1,), 4e8, 1e8, latency_s=10e-3))),
        8_000_000,  # 4 x 10 ms x 1e8 x 2
    ),
    "another continent: the cap": (Topology(hosts(100e-3, 1e10)), MAX_WINDOW_BYTES),
}


@pytest.mark.parametrize(("topology", "num_bytes"), WINDOWS.values(), ids=WINDOWS)
def test_the_window_holds_two_round_trips_within_limits(topology: Topology, num_bytes: int) -> None:
    assert default_window_bytes(topology) == pytest.approx(num_bytes, abs=1)


def test_the_limits_of_the_window_are_as_documented() -> None:
    assert (MIN_WINDOW_BYTES, MAX_WINDOW_BYTES) == (4 * MIB, 128 * MIB)


@pytest.mark.parametrize(
    ("share", "slice_bytes", "window_bytes", "slots"),
    [
        (1.0, MIB, 8 * MIB, 8),
        (0.25, MIB, 8 * MIB, 2),
        (0.3, MIB, 8 * MIB, 3),  # rounded up
        (0.0, MIB, 8 * MIB, MIN_SLOTS),
        (1.0, 8 * MIB, 4 * MIB, MIN_SLOTS),  # a slice larger than the window
    ],
)
def test_a_trees_slots_are_its_share_of_the_window(
    share: float, slice_bytes: int, window_bytes: int, slots: int
) -> None:
    assert tree_slots(share, slice_bytes, window_bytes) == slots


@pytest.mark.parametrize(
    ("codec", "count", "share", "elems"),
    [
        ("bf16", 10**9, 1.0, 1024),
        ("int8", 10**9, 1.0, 2048),
        ("int4", 10**9, 1.0, 4096),
        ("int4", 16 * 1024, 1.0, 1024),
        ("int4", 16 * 2000, 1.0, 1984),  # whole blocks
        ("int4", 5, 1.0, 1024),
        ("int4", 10**9, 1 / 2, 2048),  # four in the window
        ("int4", 10**9, 1 / 100, 1024),
    ],
)
def test_encoded_slices_grow_with_the_message_and_the_window(codec: str, count: int, share: float, elems: int) -> None:
    assert coded_slice_elems(count, share, 4096, 4 * 4 * 4096, codec_of(codec)) == elems


@pytest.mark.parametrize(("num_slices", "slots"), [(1, 1), (3, 3), (5, 4)])
def test_a_message_of_few_slices_has_no_more_slots_than_slices(num_slices: int, slots: int) -> None:
    count = num_slices * MIB // 4 - 3  # the last slice is not full
    path = Forest("broadcast", 2, 0, (Tree.path(range(2)),), (1.0,))
    spec = OpSpec("broadcast", "float32", None, 0, (count,))
    layout = build(path, spec, 0, [(0, 0), (0, 1)], slice_bytes=MIB, window_bytes=4 * MIB)
    (tree,) = layout.table.trees
    assert (int(tree["num_slices"]), int(tree["slots"])) == (num_slices, slots)
