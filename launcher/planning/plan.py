"""What would run where, how fast, and what would make it faster: (inventory, job, earlier runs) -> plan. No I/O."""

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
    """Where one rank runs and what it gets. `index` counts the devices of a kind in a node; None for CPU cores."""

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
        links: where the rates of the links come from.
        sources: where the speeds come from, of each node and device that is used.
        effects: of each node that could carry workers.
        others: to compare with: all nodes with equal batches, and the fastest kind alone.
        what_if: a link twice as fast, other codecs.
        planning_s: seconds that this took.
    """

    name: str
    demand: Demand
    places: tuple[PlannedRank, ...]
    topology: Topology
    forecast: Forecast
    links: str
    sources: Mapping[str, str]
    barred: tuple[Excluded, ...]
    effects: tuple[Effect, ...]
    others: tuple[Other, ...]
    what_if: tuple[Other, ...]
    planning_s: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`; throughput is in samples per second, or without a unit if `in_seconds` is false."""
        return {
            "name": self.name,
            "in_seconds": self.demand.in_seconds,
            "global_batch": self.demand.global_batch,
            "ranks": [vars(place) for place in self.places],
            "nodes": sorted({place.node for place in self.places}),
            "forecast": _figures(self.forecast, self.demand),
            "collectives": self.forecast.plan.summary() if self.forecast.plan else None,
            "links": self.links,
            "speeds": dict(self.sources),
            "left_out": [vars(one) for one in self.barred],
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
    """The plan.

    Args:
        own: the job runs on a Ray of its own on the inventory's one machine, where hosts are emulated.
        thorough: also what each node does, what to compare with, and what would make it faster.

    Raises:
        ClusterError: there is no room for the workers, or no memory for the batch.
    """
    began = time.perf_counter()
    farm, told = emulated(job, inventory, earlier) if own else (inventory, None)
    demand = demand_of(job, farm, earlier)
    pools, barred = pools_of(job, farm, earlier)
    topology, links_told = links(farm)
    if not pools:
        raise ClusterError(_no_room(job, pools, barred))
    limits = job.workers.least, job.workers.max or job.workers.count
    if demand.global_batch is not None:  # a rank has at least one sample
        limits = limits[0], min(limits[1], demand.global_batch)
    field = SearchSpace(pools, demand, topology, *limits)
    chosen = _fixed(job, farm, field) if own or not searched(job) else choose(field)
    if chosen is None:
        raise ClusterError(_no_room(job, pools, barred))
    seating = field.seating(chosen.counts)
    return JobPlan(
        name=job.name,
        demand=demand,
        places=_places(field, seating, chosen.forecast, farm),
        topology=field.topology(chosen.counts),
        forecast=chosen.forecast,
        links=told or links_told,
        sources={f"{pools[i].node}/{pools[i].device}": pools[i].source for i in dict.fromkeys(seating)},
        barred=tuple(barred),
        effects=effects(field, chosen) if thorough and searched(job) and not own else (),
        others=others(field) if thorough and len(pools) > 1 else (),
        what_if=what_if(field, chosen) if thorough else (),
        planning_s=time.perf_counter() - began,
    )


def searched(job: Job) -> bool:
    """Whether the launcher chooses the placement by speed. A plain `workers: {count, hosts}` is placed as it says."""
    workers = job.workers
    asks = workers.max is not None or workers.per == "gpu" or job.global_batch is not None
    return workers.hosts is None and (asks or job.accelerators.only is not None or bool(job.accelerators.exclude))


def _no_room(job: Job, pools: Sequence[Pool], barred: Sequence[Excluded]) -> str:
    room = ", ".join(f"{pool.node} for {pool.places} on {pool.device}" for pool in pools) or "none"
    lines = [
        f"no placement for {job.workers.least} or more workers of {job.workers.cpus} CPU(s) each, per {job.workers.per}"
    ]
    lines += [f"  room:     {room}"]
    if job.global_batch is not None:
        holds = [pool.pace.most_samples for pool in pools]
        total = sum(pool.places * (most or 0) for pool, most in zip(pools, holds, strict=True))
        memory = f"memory for {total} samples in all" if holds and None not in holds else "no limit by memory known"
        lines += [f"  batch:    {job.global_batch} samples, at least one for each worker; {memory}"]
    lines += [f"  not used: {one.node}, {one.device}: {one.why}" for one in barred[:8]]
    return "\n".join(lines)


def _fixed(job: Job, farm: Inventory, field: SearchSpace) -> Assignment | None:
    """The placement of a plain job: even blocks on the largest nodes, as `place` says."""
    nodes = [
        Node(node.name, node.name, node.address, _offered(field, node.name) * job.workers.cpus) for node in farm.nodes
    ]
    seats = place(nodes, job.workers, emulate_hosts=False)
    counts = [0] * len(field.pools)
    for seat in seats:
        pool = next(i for i, pool in enumerate(field.pools) if pool.node == seat.node.name and counts[i] < pool.places)
        counts[pool] += 1
    found = field.exact(tuple(counts))
    return Assignment(tuple(counts), found) if found else None


def _offered(field: SearchSpace, node: str) -> int:
    return sum(pool.places for pool in field.pools if pool.node == node)


def _places(field: SearchSpace, seating: Sequence[int], found: Forecast, farm: Inventory) -> tuple[PlannedRank, ...]:
    places, used = [], dict.fromkeys(seating, 0)
    for rank, (index, share) in enumerate(zip(seating, found.shares, strict=True)):
        pool = field.pools[index]
        number = None if pool.device == "cpu" else used[index]
        used[index] += 1
        places.append(PlannedRank(rank, pool.node, farm.node(pool.node).address, pool.device, number, share))
    return tuple(places)
