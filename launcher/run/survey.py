"""Measures the machines that are available: this one, or all nodes of a job's cluster."""

from __future__ import annotations

from datetime import datetime

from launcher.config.job import Job
from launcher.errors import ClusterError
from launcher.inventory.inventory import Inventory
from launcher.inventory.measure import run_as_process
from launcher.planning.known_machines import from_measurements, remember


def gather(job: Job, *, measure: bool = True) -> Inventory:
    """The inventory of this machine, or of all nodes of the job's cluster. A measured one is remembered for the next
    submit.

    Args:
        measure: also measure speeds, which takes some seconds; else only what the system reports.

    Raises:
        ClusterError: Ray cannot be reached, or a node could not be examined.
    """
    if job.cluster.address is None:
        try:
            texts = [run_as_process("127.0.0.1", 0, job.workers.cpus, measure)]
        except RuntimeError as error:
            raise ClusterError(str(error)) from None
        where = "this machine"
    else:
        from launcher.run.cluster import Cluster  # importing Ray takes a second

        with Cluster(job) as cluster:
            texts = cluster.look(job.workers.cpus, measure)
        where = f"the Ray cluster at {job.cluster.address}"
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    found = from_measurements(job, texts).model_copy(update={"source": f"{where}, {when}"})
    if measure:
        remember(job, found)
    return found
