"""What `submit` predicts of a job before it runs, without measuring: (job, cluster) -> plan -> placement.

`launcher plan` measures the machines and takes its time; a submit uses what earlier measurements and runs have left, so
that the start of a run is not delayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.planning.describe import summary_lines
from launcher.planning.known_machines import by_address, from_measurements, without_measuring
from launcher.planning.plan import JobPlan, make, searched
from launcher.record.past_speeds import Earlier
from launcher.record.seats import Node, RankPlacement
from launcher.run.cluster import Cluster


@dataclass(frozen=True)
class Prediction:
    """The plan, and if the launcher `chooses` the placement, its ranks in `seats`."""

    plan: JobPlan
    seats: list[RankPlacement]
    chooses: bool


def predict(job: Job, cluster: Cluster, before: Earlier, remembered: str | None = None) -> Prediction | None:
    """The plan by remembered measurements of the cluster's nodes and by the last run; None without either.

    Args:
        before: speeds from the last run.
        remembered: what the submitting machine remembers of the cluster, from `known_machines.cached_json`.

    Raises:
        ClusterError: the launcher is to choose the placement, and the nodes have no room for the workers or no memory
            for the batch.
    """
    nodes = by_address(cluster.nodes())
    inventory = without_measuring(job, nodes, remembered)
    if job.workers.per == "gpu" and not any(machine.accelerators for machine in inventory.nodes):
        inventory = from_measurements(job, cluster.look(job.workers.cpus, measure=False))
    # Emulated hosts of the local cluster share one machine; there is nothing to choose between.
    chooses = searched(job) and not cluster.own
    if not chooses and not before.rates:
        return None
    try:
        made = make(job, inventory, before, own=cluster.own, thorough=False)
    except ClusterError:
        if chooses:
            raise
        return None  # a job that places its workers itself can run without a prediction
    names = [machine.name for machine in inventory.nodes]
    seats = _seats(made, dict(zip(names, nodes, strict=True))) if chooses else []
    return Prediction(made, seats, chooses)


def format_prediction(found: Prediction | None) -> list[str]:
    """A few lines to show at the start of a run."""
    return [] if found is None else summary_lines(found.plan)


def _seats(plan: JobPlan, nodes: Mapping[str, Node]) -> list[RankPlacement]:
    """The placement of the plan's ranks; ranks of a node are consecutive."""
    blocks = [list(block) for _, block in groupby(plan.ranks, lambda place: place.node)]
    return [
        RankPlacement(
            rank=place.rank,
            local_rank=local_rank,
            local_world_size=len(block),
            host_index=index,
            host_count=len(blocks),
            host=place.node,
            emulated=False,
            node=nodes[place.node],
            device=place.device,
            share=place.share if plan.demand.global_batch is not None else None,
        )
        for index, block in enumerate(blocks)
        for local_rank, place in enumerate(block)
    ]
