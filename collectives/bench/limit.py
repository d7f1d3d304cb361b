"""The limit that a collective's time is compared with: the least that any algorithm could take.

Between hosts it is the bound over the links (`planner.plan(...).bound_s`). Their rates come from the first of

    --limit FILE                       a topology file with the true rates
    NARROWGAUGE_LAB_TOPOLOGY           the lab's file of the links that it shapes
    the topology that the group uses   if it was given or measured; assumed rates give no limit

On one host it is one memcpy, on all cores, of every byte that must get from one rank to another. memcpy is measured
here with buffers of the message's size, since what fits into a cache is copied faster.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collectives.errors import UsageError
from collectives.planning.planner import plan
from collectives.schedule.op import Collective
from collectives.schedule.specification import SPECIFICATIONS
from collectives.topology import Topology

LAB_TOPOLOGY = "NARROWGAUGE_LAB_TOPOLOGY"
MIN_COPY_BYTES, MAX_COPY_BYTES = 64 * 1024, 32 * 1024 * 1024
MIN_COPIES, COPYING_S = 5, 0.05


@dataclass(frozen=True)
class Limit:
    """A limit.

    Attributes:
        text: a description for people; None if no limit is known.
        topology: whose links set the limit; None if memory does.
    """

    text: str | None
    topology: Topology | None

    def seconds(self, collective: Collective, num_bytes: int, size: int, codec: str = "none") -> float | None:
        """The least seconds of a call with a message of `num_bytes` bytes over `size` ranks; None if none is known."""
        if self.text is None:
            return None
        if self.topology is None:
            return bytes_that_change_ranks(collective, num_bytes, size) / memory_bytes_per_s(num_bytes)
        root = SPECIFICATIONS[collective].default_root
        return plan(self.topology, collective, num_bytes, root, codec).bound_s


def given(file: str | None, environment: Mapping[str, str], size: int) -> Limit | None:
    """The limit from a topology file, named by --limit or else by the lab; None if neither names one.

    Raises:
        UsageError: the file's topology has another number of ranks than `size`.
        PlanError, OSError: it is not a topology, or cannot be read.
    """
    path, whose = (file, "--limit") if file else (environment.get(LAB_TOPOLOGY), LAB_TOPOLOGY)
    if not path:
        return None
    topology = Topology.load(path)
    if topology.size != size:
        raise UsageError(f"{whose} {path}: got a topology of {topology.size} ranks; wanted one of this group's {size}")
    return _over(topology, f"the links of {Path(path).name}" if file else f"the lab's links, {Path(path).name}")


def in_force(topology: Topology, is_known: bool, was_given: bool) -> Limit:
    """The limit that follows from the topology that the group uses.

    Args:
        is_known: whether its rates between hosts were measured or given, not assumed.
        was_given: whether they are from a file.
    """
    if len(topology.hosts) > 1 and not is_known:
        return Limit(None, None)
    return _over(topology, "the links as they were " + ("given" if was_given else "measured when the group was formed"))


def _over(topology: Topology, whose: str) -> Limit:
    if len(topology.hosts) == 1:
        cores = len(os.sched_getaffinity(0))
        return Limit(f"memcpy of every byte that changes ranks, once, on {cores} cores", None)
    return Limit(f"the bound over {whose}", topology)


def bytes_that_change_ranks(collective: Collective, num_bytes: int, size: int) -> int:
    """The least bytes that all ranks together send: n - 1 times the message for each direction of the trees."""
    return SPECIFICATIONS[collective].directions * (size - 1) * num_bytes


def memory_bytes_per_s(num_bytes: int) -> float:
    """Bytes per second that all cores together copy, with buffers of the message's size or the next power of two."""
    size = min(max(num_bytes, MIN_COPY_BYTES), MAX_COPY_BYTES)
    return _copy_bytes_per_s(1 << (size - 1).bit_length()) * len(os.sched_getaffinity(0))


@functools.cache
def _copy_bytes_per_s(size: int) -> float:
    """Bytes per second of memcpy on one core, the best of several."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    seconds: list[float] = []
    while len(seconds) < MIN_COPIES or sum(seconds) < COPYING_S:
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return size / min(seconds)
