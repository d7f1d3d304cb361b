"""Where workers can run: (inventory, job, speeds of earlier runs) -> pools of equal devices. Pure functions.

A pool is all devices of one kind in one node, or the node's CPU cores. The search needs only a count for each pool,
since workers on equal devices of one node are interchangeable.

Samples per second of a device come from the best source that there is, in this order:

    1. earlier runs of the same job on that node and device
    2. samples_per_s of the inventory
    3. flops_per_s x efficiency / flops_per_sample, with flops_per_s measured or from the data sheet

If they are unknown for any device of the job, no device gets them: speeds from measured samples and speeds from FLOP/s
cannot be compared. Then all are compared by FLOP/s (`_comparable`), and the forecast has no seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.config.job import Job
from launcher.inventory.accelerators import SHEETS, DataSheet
from launcher.inventory.inventory import Accelerator, Inventory, Machine, Rate, Speed
from launcher.planning.forecast import Demand, RankPace
from launcher.record.past_speeds import Earlier

USABLE = 0.92
"""Fraction of a device's memory that a job can use. The rest goes to the driver, libraries and fragmentation."""


@dataclass(frozen=True)
class Pool:
    """Equal devices of one node.

    Attributes:
        device: "cpu", or the kind of accelerator.
        capacity: how many workers there is room for.
        pace: of each worker. If samples per second are unknown, a number to compare pools by.
        source: where the speed comes from.
    """

    node: str
    device: str
    capacity: int
    pace: RankPace
    source: str


@dataclass(frozen=True)
class Excluded:
    """Devices of a node that cannot carry workers, and why."""

    node: str
    device: str
    why: str


def demand_of(job: Job, inventory: Inventory, earlier: Earlier) -> Demand:
    """What a step needs. In seconds if the batch and the samples per second of every device are known."""
    work = job.workload
    stated = work.gradient_bytes or (None if work.parameters is None else 4 * work.parameters)
    gradient_bytes = stated or earlier.step_bytes
    timed = (job.global_batch or earlier.rank_samples) is not None and all(
        _samples_per_s(job, node, device, earlier.rates) is not None
        for node in inventory.nodes
        for device in _devices(job, node)
    )
    each = earlier.rank_samples or 1.0
    return Demand(job.global_batch, gradient_bytes, job.collectives.codec, timed, earlier.other_s, each)


def pools_of(job: Job, inventory: Inventory, earlier: Earlier) -> tuple[list[Pool], list[Excluded]]:
    """All pools, fastest first, and the devices that are excluded."""
    timed = demand_of(job, inventory, earlier).in_seconds
    found: list[Pool] = []
    excluded: list[Excluded] = []
    for node in inventory.nodes:
        devices = _devices(job, node)
        if not devices:
            excluded.append(Excluded(node.name, "cpu", "it has no accelerator"))
        for device in devices:
            kind, capacity = _kind(device), _capacity(job, node, device)
            rate = _samples_per_s(job, node, device, earlier.rates) if timed else _comparable(job, node, device)
            most = _most_samples(job, node, device)
            why = _why_not(job, kind, capacity, rate, most)
            if why is not None or rate is None:
                excluded.append(Excluded(node.name, kind, why or "its speed is not known"))
                continue
            found.append(Pool(node.name, kind, capacity, RankPace(rate.value, most), rate.source))
    return sorted(found, key=lambda pool: (-pool.pace.samples_per_s, pool.node, pool.device)), excluded


_Device = Accelerator | None
"""None stands for the CPU cores of a node."""


def _kind(device: _Device) -> str:
    return "cpu" if device is None else device.kind


def _devices(job: Job, node: Machine) -> list[_Device]:
    return [None] if job.workers.per == "cpu" else [*node.accelerators]


def _capacity(job: Job, node: Machine, device: _Device) -> int:
    by_cores = node.cpus // job.workers.cpus
    return by_cores if device is None else min(device.count, by_cores)


def _why_not(job: Job, kind: str, capacity: int, rate: Rate | None, most: int | None) -> str | None:
    """Why no worker can run there; None if one can."""
    only, exclude = job.accelerators.only, job.accelerators.exclude
    if kind in exclude:
        return "accelerators.exclude names it"
    if only is not None and kind not in only:
        return "accelerators.only does not name it"
    if capacity == 0:
        return f"it has fewer than {job.workers.cpus} CPU cores"
    if most == 0:
        return "its memory does not hold the model and one sample"
    return "its speed is not known" if rate is None else None


def _sheet(device: _Device) -> DataSheet | None:
    return None if device is None else SHEETS.get(device.kind)


def _most_samples(job: Job, node: Machine, device: _Device) -> int | None:
    """Samples of a batch that one worker's memory holds: (usable memory - bytes_per_worker) / bytes_per_sample.

    0 if it does not even hold the model and one sample; None if nothing limits it.
    """
    work, sheet = job.workload, _sheet(device)
    # 16 bytes a parameter: weight, gradient and Adam's two moments, in fp32.
    fixed = work.bytes_per_worker if work.bytes_per_worker is not None else 16 * (work.parameters or 0)
    if device is None:  # the workers of a node share its main memory
        memory = node.memory_bytes / max(1, _capacity(job, node, device))
    else:
        memory = device.memory_bytes or (sheet.memory_bytes if sheet else math.inf)
    room = USABLE * memory - fixed
    if room < work.bytes_per_sample or room < 0:
        return 0
    return int(room // work.bytes_per_sample) if work.bytes_per_sample and room < math.inf else None


def _samples_per_s(job: Job, node: Machine, device: _Device, earlier: Mapping[str, Rate]) -> Rate | None:
    """From earlier runs, else from the inventory, else from FLOP/s; None if all of them are unknown."""
    speed = node.speed if device is None else device.speed
    measured = earlier.get(f"{node.name}/{_kind(device)}") or speed.samples_per_s
    if measured is not None:
        return measured
    work, peak = job.workload, _flops_per_s(job, node, device)
    # 2 operations a parameter and token in the forward pass, twice that in the backward pass.
    flops = work.flops_per_sample or (6 * work.parameters * (work.tokens_per_sample or 1) if work.parameters else None)
    if flops is None or peak is None:
        return None
    return Rate(
        value=peak.value * work.efficiency / flops, source=f"{peak.source}, at {work.efficiency:.0%} of the peak"
    )


def _comparable(job: Job, node: Machine, device: _Device) -> Rate | None:
    """A number to compare devices by where samples per second are unknown: FLOP/s. CPU nodes that were never measured
    count their cores: on most farms they are of similar speed, and refusing to plan would help nobody."""
    peak = _flops_per_s(job, node, device)
    if peak is None and device is None:
        return Rate(value=float(job.workers.cpus), source="not measured: all cores are taken as equal")
    return peak


def _flops_per_s(job: Job, node: Machine, device: _Device) -> Rate | None:
    """Peak FLOP/s of one worker, in the job's precision."""
    half = (job.workload.precision or ("single" if device is None else "half")) == "half"
    if device is None:
        rate = _peak(node.speed, half)
        # Measured with speed_cpus threads; a worker of this job may use another number of cores.
        scale = job.workers.cpus / node.speed_cpus
        return rate and Rate(value=rate.value * scale, source=rate.source)
    sheet, given = _sheet(device), _peak(device.speed, half)
    if given is not None or sheet is None:
        return given
    value = sheet.half_flops_per_s if half else sheet.single_flops_per_s
    return None if value is None else Rate(value=value, source="data sheet")


def _peak(speed: Speed, half: bool) -> Rate | None:
    return speed.half_flops_per_s if half else speed.single_flops_per_s
