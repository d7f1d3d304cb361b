"""Which rank sits where."""

from __future__ import annotations

import pytest

from launcher.config.job import Workers
from launcher.errors import ClusterError
from launcher.planning.placement import place, refuse_loopback
from launcher.record.seats import Node

HERE = [Node("a", "box", "127.0.0.1", 8)]
FARM = [Node("a", "small", "10.0.0.1", 2), Node("b", "large", "10.0.0.2", 8), Node("c", "middle", "10.0.0.3", 4)]


@pytest.mark.parametrize(
    ("workers", "hosts"),
    [
        (Workers(count=4, hosts=2), ["host-0", "host-0", "host-1", "host-1"]),
        (Workers(count=3, hosts=2), ["host-0", "host-0", "host-1"]),
        (Workers(count=1, hosts=1), ["host-0"]),
        (Workers(count=3), ["box", "box", "box"]),
    ],
)
def test_emulated_hosts_share_the_one_node(workers: Workers, hosts: list[str]) -> None:
    seats = place(HERE, workers, emulate_hosts=True)
    assert [seat.host for seat in seats] == hosts
    assert {seat.node.id for seat in seats} == {"a"}
    assert {seat.emulated for seat in seats} == {workers.hosts is not None}


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        (Workers(count=4), ["large"] * 4),
        (Workers(count=8, cpus=1), ["large"] * 8),
        (Workers(count=6, cpus=2, hosts=None), None),
        (Workers(count=3, cpus=2, hosts=3), ["large", "middle", "small"]),
        (Workers(count=4, hosts=2), ["large", "large", "middle", "middle"]),
        (Workers(count=4, hosts=4), None),
    ],
)
def test_real_hosts_are_the_largest_nodes(workers: Workers, nodes: list[str] | None) -> None:
    if nodes is None:
        with pytest.raises(ClusterError, match=r"no room for \d workers.*small \(10\.0\.0\.1\) with 2 CPUs"):
            place(FARM, workers, emulate_hosts=False)
    else:
        assert [seat.host for seat in place(FARM, workers, emulate_hosts=False)] == nodes


def test_ranks_are_numbered_as_torchrun_does() -> None:
    seats = place(FARM, Workers(count=5, hosts=2), emulate_hosts=False)
    assert [(seat.rank, seat.local_rank, seat.local_world_size, seat.host_index) for seat in seats] == [
        (0, 0, 3, 0),
        (1, 1, 3, 0),
        (2, 2, 3, 0),
        (3, 0, 2, 1),
        (4, 1, 2, 1),
    ]


def test_nodes_that_ray_knows_by_loopback_are_refused_if_there_are_several() -> None:
    near, far = Node("1", "box-1", "127.0.0.1", 2), Node("2", "box-2", "10.0.0.2", 2)
    refuse_loopback(place([near], Workers(count=2), emulate_hosts=False))
    refuse_loopback(place([near], Workers(count=2, hosts=2), emulate_hosts=True))
    with pytest.raises(ClusterError, match=r"the node box-1 by 127\.0\.0\.1.*all 2 nodes.*--node-ip-address=ADDRESS"):
        refuse_loopback(place([near, far], Workers(count=2, hosts=2), emulate_hosts=False))
