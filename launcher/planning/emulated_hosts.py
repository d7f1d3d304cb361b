"""One machine as the emulated hosts of a job: (job, inventory of the machine) -> inventory of the hosts."""

from __future__ import annotations

from collectives.topology import Host, Topology
from launcher.config.job import Job
from launcher.inventory.inventory import Inventory, Rate
from launcher.record.past_speeds import Earlier
from launcher.units import payload_bytes_per_s

LOOPBACK_BYTES_PER_S = 2.5e9
"""Between emulated hosts without `emulate`: about what TCP reaches over loopback."""


def emulated(job: Job, inventory: Inventory, earlier: Earlier) -> tuple[Inventory, str]:
    """The inventory of the hosts, and in words where their links come from.

    The workers of all hosts run on the same cores. If there are more workers than cores, each gets a fraction of its
    measured speed. Speeds of earlier runs are taken as they are: they are assumed to be of as many workers.
    """
    machine, workers = inventory.nodes[0], job.workers
    count = workers.hosts or 1
    names = [f"host-{index}" for index in range(count)] if workers.hosts else [machine.name]
    crowd = max(1.0, workers.count * workers.cpus / machine.cpus)
    measured = earlier.rates.get(f"{machine.name}/cpu")
    speed = machine.speed.model_copy(
        update={
            "samples_per_s": measured or machine.speed.samples_per_s,
            "single_flops_per_s": _slower(machine.speed.single_flops_per_s, crowd),
            "half_flops_per_s": _slower(machine.speed.half_flops_per_s, crowd),
        }
    )
    cpus = -(-workers.count // count) * workers.cpus  # room for the larger of the even blocks
    nodes = [
        machine.model_copy(
            update={"name": name, "cpus": cpus, "speed": speed, "memory_bytes": machine.memory_bytes // count}
        )
        for name in names
    ]
    rates = [payload_bytes_per_s(mbit) for mbit in job.emulate] if job.emulate else [LOOPBACK_BYTES_PER_S] * count
    hosts = tuple(Host(name, (i,), rates[i], rates[i]) for i, name in enumerate(names))
    source = "as the job emulates them" if job.emulate else "within this machine, taken as 20 Gbit/s"
    return inventory.model_copy(update={"nodes": nodes, "topology": Topology(hosts)}), source


def _slower(rate: Rate | None, crowd: float) -> Rate | None:
    if rate is None or crowd == 1:
        return rate
    return rate.model_copy(
        update={"value": rate.value / crowd, "source": f"{rate.source}, {crowd:g} workers to a core"}
    )
