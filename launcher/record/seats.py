"""Nodes, and the placement of ranks on them; plan.json keeps these as its `seats`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A node of the Ray cluster: the CPUs and bytes of memory that Ray may assign, and Ray's name for its kind of
    accelerator: GPU, NPU, or None."""

    id: str
    name: str
    address: str
    cpus: int
    memory_bytes: int = 1
    accelerator: str | None = None


@dataclass(frozen=True)
class RankPlacement:
    """The place of one rank. `host_index` counts hosts; an emulated host is one of several on the same node.

    Attributes:
        device: "cpu" or the kind of accelerator.
        share: samples of each global batch; None if the launcher does not decide that.
    """

    rank: int
    local_rank: int
    local_world_size: int
    host_index: int
    host_count: int
    host: str
    emulated: bool
    node: Node
    device: str = "cpu"
    share: float | None = None
