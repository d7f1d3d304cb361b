"""Placement of a job that leaves nothing to choose: (nodes, workers) -> seats. Pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from launcher.config.job import Workers
from launcher.errors import ClusterError
from launcher.record.seats import Node, RankPlacement


def place(nodes: Sequence[Node], workers: Workers, *, emulate_hosts: bool) -> list[RankPlacement]:
    """Place the ranks in even blocks, one per host: with 4 workers on 2 hosts, ranks 0 and 1 are on the first.

    Args:
        nodes: of the cluster.
        workers: their number, hosts, and CPUs each.
        emulate_hosts: all hosts are emulated on the largest node, if the job names a number of hosts.

    Raises:
        ClusterError: the nodes have no room for the workers.
    """
    if emulate_hosts and workers.hosts is not None:
        chosen = [max(nodes, key=lambda node: node.cpus)] * workers.hosts
        names = [f"host-{index}" for index in range(workers.hosts)]
    else:
        chosen = _choose(nodes, workers)
        names = [node.name for node in chosen]
    seats: list[RankPlacement] = []
    for index, (node, size) in enumerate(zip(chosen, _blocks(workers.count, len(chosen)), strict=True)):
        for local_rank in range(size):
            emulated = emulate_hosts and workers.hosts is not None
            seats.append(RankPlacement(len(seats), local_rank, size, index, len(chosen), names[index], emulated, node))
    return seats


def _choose(nodes: Sequence[Node], workers: Workers) -> list[Node]:
    """The largest nodes: `workers.hosts` of them, or as few as have room."""
    by_size = sorted(nodes, key=lambda node: (-node.cpus, node.address))
    for count in [workers.hosts] if workers.hosts else range(1, len(by_size) + 1):
        largest = by_size[:count]
        blocks = _blocks(workers.count, count)
        if len(largest) == count and all(
            node.cpus >= size * workers.cpus for node, size in zip(largest, blocks, strict=True)
        ):
            return largest
    raise ClusterError(
        f"no room for {workers.count} workers of {workers.cpus} CPU(s) each"
        + (f" on {workers.hosts} hosts in even blocks" if workers.hosts else "")
        + "; the cluster has "
        + (", ".join(f"{node.name} ({node.address}) with {node.cpus} CPUs" for node in by_size) or "no node")
    )


def _blocks(count: int, hosts: int) -> list[int]:
    """Sizes of `hosts` blocks that differ by at most one, larger ones first."""
    return [count // hosts + (index < count % hosts) for index in range(hosts)]


def refuse_loopback(seats: Sequence[RankPlacement]) -> None:
    """Check that ranks on several nodes can reach each other.

    Raises:
        ClusterError: Ray knows a node by a loopback address, which leads every other node to itself.
    """
    nodes = {seat.node.id: seat.node for seat in seats}
    looped = [node for node in nodes.values() if ipaddress.ip_address(node.address).is_loopback]
    if len(nodes) > 1 and looped:
        raise ClusterError(
            f"Ray knows the node {looped[0].name} by {looped[0].address}, which no other node can reach; all "
            f"{len(nodes)} nodes need an address on the network between them: start Ray there with "
            "`--node-ip-address=ADDRESS`"
        )
