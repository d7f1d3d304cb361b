"""Where a job runs, how fast, and what would make it faster: (inventory, job, earlier runs) -> `JobPlan`. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collectives.topology import Topology
from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.inventory.inventory import Inventory, links
from launcher.planning.alternatives import Effect, Other, effects, others, what_if
from launcher.planning.emulated_hosts import emulated
from launcher.planning.forecast import Demand, Forecast
from launcher.planning.placement import place
from launcher.planning.pools import Excluded, Pool, demand_of, pools_of
from launcher.planning.search import Assignment, SearchSpace, choose
from launcher.record.past_speeds import Earlier
from launcher.record.seats import Node


@dataclass(frozen=True)
class PlannedRank:
    """Where one rank runs.

    Attributes:
        index: of the device among those of its kind in the node; None for CPU cores.
        share: samples of the global batch per step; without one, the samples that the script takes.
    """

    rank: int
    node: str
    address: str
    device: str
    index: int | None
    share: float


@dataclass(frozen=True)
class JobPlan:
    """Everything that `launcher plan` shows.

    Attributes:
        topology: of the ranks.
        links: where the rates of the links come from, in words.
        sources: where the speeds come from, in words, by "node/device" of those that are used.
        excluded: devices that cannot carry workers.
        effects: of each node that could carry workers: the throughput without it, or with it.
        others: comparisons: all nodes with equal batches, and the fastest kind of device alone.
        what_if: the same ranks with the bottleneck twice as fast, and with other codecs.
        planning_s: seconds that planning took.
    """

    name: str
    demand: Demand
    ranks: tuple[PlannedRank, ...]
    topology: Topology
    forecast: Forecast
    links: str
    sources: Mapping[str, str]
    excluded: tuple[Excluded, ...]
    effects: tuple[Effect, ...]
    others: tuple[Other, ...]
    what_if: tuple[Other, ...]
    planning_s: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`. Throughput is in samples per second; without a unit if `in_seconds` is false."""
        return {
            "name": self.name,
            "in_seconds": self.demand.in_seconds,
            "global_batch": self.demand.global_batch,
            "ranks": [vars(rank) for rank in self.ranks],
            "nodes": sorted({rank.node for rank in self.ranks}),
            "forecast": _figures(self.forecast, self.demand),
            "collectives": self.forecast.plan.summary() if self.forecast.plan else None,
            "links": self.links,
            "speeds": dict(self.sources),
            "left_out": [vars(one) for one in self.excluded],
            "effects": [
                {
                    "node": one.node,
                    "used": one.used,
                    "throughput_without" if one.used else "throughput_with": one.throughput,
                }
                for one in self.effects
            ],
            "others": [_other(one, self.demand) for one in self.others],
            "what_if": [_other(one, self.demand) for one in self.what_if],
            "planning_s": self.planning_s,
        }


def _other(one: Other, demand: Demand) -> dict[str, Any]:
    return {"what": one.what, "ranks": one.ranks, "forecast": one.forecast and _figures(one.forecast, demand)}


def _figures(found: Forecast, demand: Demand) -> dict[str, Any]:
    timed = demand.in_seconds
    return {
        "step_s": found.step_s if timed else None,
        "compute_s": found.compute_s if timed else None,
        "communication_s": found.communication_s,
        "exposed_s": found.exposed_s if timed and found.communication_s is not None else None,
        "other_s": found.other_s if timed else None,
        "communication_bound_s": found.bound_s,
        "step_at_bound_s": found.best_step_s if timed else None,
        "throughput": found.throughput,
        "codec": found.codec,
        "bottleneck": found.bottleneck,
    }


def make(job: Job, inventory: Inventory, earlier: Earlier, *, own: bool, thorough: bool = True) -> JobPlan:
    """Plan where the workers of a job run, and predict the time of a step.

    Args:
        own: the job runs on a private Ray on the inventory's one machine, which emulates the job's hosts.
        thorough: also the effect of each node, the comparisons, and what would make it faster. These take many more
            forecasts.

    Raises:
        ClusterError: there is no room for the workers, or no memory for the batch.
    """
    began = time.perf_counter()
    farm, emulated_from = emulated(job, inventory, earlier) if own else (inventory, None)
    topology, measured_from = links(farm)
    pools, excluded = pools_of(job, farm, earlier)
    space = _space(job, pools, demand_of(job, farm, earlier), topology) if pools else None
    chosen = _assignment(job, farm, space, own) if space else None
    if space is None or chosen is None:
        raise ClusterError(_no_room(job, pools, excluded))
    seating = space.seating(chosen.counts)
    return JobPlan(
        name=job.name,
        demand=space.demand,
        ranks=_ranks(space, seating, chosen.forecast, farm),
        topology=space.topology(chosen.counts),
        forecast=chosen.forecast,
        links=emulated_from or measured_from,
        sources={f"{pools[i].node}/{pools[i].device}": pools[i].source for i in dict.fromkeys(seating)},
        excluded=tuple(excluded),
        effects=effects(space, chosen) if thorough and searched(job) and not own else (),
        others=others(space) if thorough and len(pools) > 1 else (),
        what_if=what_if(space, chosen) if thorough else (),
        planning_s=time.perf_counter() - began,
    )


def _space(job: Job, pools: Sequence[Pool], demand: Demand, topology: Topology) -> SearchSpace:
    most = job.workers.max or job.workers.count
    if demand.global_batch is not None:  # a rank has at least one sample
        most = min(most, demand.global_batch)
    return SearchSpace(pools, demand, topology, job.workers.least, most)


def _assignment(job: Job, farm: Inventory, space: SearchSpace, own: bool) -> Assignment | None:
    """A private Ray has one machine, so there is nothing to choose there."""
    return _fixed(job, farm, space) if own or not searched(job) else choose(space)


def searched(job: Job) -> bool:
    """Whether the launcher chooses the placement by predicted speed.

    It does if the job leaves something to choose or names accelerators, and never against an explicit `workers.hosts`.
    """
    workers = job.workers
    chooses = workers.max is not None or workers.per == "gpu" or job.global_batch is not None
    return workers.hosts is None and (chooses or job.accelerators.only is not None or bool(job.accelerators.exclude))


def _no_room(job: Job, pools: Sequence[Pool], excluded: Sequence[Excluded]) -> str:
    room = ", ".join(f"{pool.node} for {pool.capacity} on {pool.device}" for pool in pools) or "none"
    lines = [
        f"no placement for {job.workers.least} or more workers of {job.workers.cpus} CPU(s) each, per {job.workers.per}"
    ]
    lines += [f"  room:     {room}"]
    if job.global_batch is not None:
        holds = [pool.pace.most_samples for pool in pools]
        total = sum(pool.capacity * (most or 0) for pool, most in zip(pools, holds, strict=True))
        memory = f"memory for {total} samples in all" if holds and None not in holds else "no limit by memory known"
        lines += [f"  batch:    {job.global_batch} samples, at least one for each worker; {memory}"]
    lines += [f"  not used: {one.node}, {one.device}: {one.why}" for one in excluded[:8]]
    return "\n".join(lines)


def _fixed(job: Job, farm: Inventory, space: SearchSpace) -> Assignment | None:
    """The placement of a job that says where its workers go: even blocks on the largest nodes, as `place` does."""
    nodes = [
        Node(node.name, node.name, node.address, _offered(space, node.name) * job.workers.cpus) for node in farm.nodes
    ]
    seats = place(nodes, job.workers, emulate_hosts=False)
    counts = [0] * len(space.pools)
    for seat in seats:
        pool = next(
            i for i, pool in enumerate(space.pools) if pool.node == seat.node.name and counts[i] < pool.capacity
        )
        counts[pool] += 1
    found = space.exact(tuple(counts))
    return Assignment(tuple(counts), found) if found else None


def _offered(space: SearchSpace, node: str) -> int:
    """Workers that a node has room for."""
    return sum(pool.capacity for pool in space.pools if pool.node == node)


def _ranks(space: SearchSpace, seating: Sequence[int], found: Forecast, farm: Inventory) -> tuple[PlannedRank, ...]:
    ranks, used = [], dict.fromkeys(seating, 0)
    for rank, (index, share) in enumerate(zip(seating, found.shares, strict=True)):
        pool = space.pools[index]
        number = None if pool.device == "cpu" else used[index]
        used[index] += 1
        ranks.append(PlannedRank(rank, pool.node, farm.node(pool.node).address, pool.device, number, share))
    return tuple(ranks)
