"""Where workers could sit: (inventory, job, speeds of earlier runs) -> pools of equal places. A pure function.

A pool is all devices of one kind in one node, or the node's CPU cores.
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
"""Of an accelerator's memory: the rest is for the driver's context, libraries and fragments."""


@dataclass(frozen=True)
class Pool:
    """Equal places for workers in one node.

    Attributes:
        device: "cpu", or the kind of accelerator.
        places: how many workers there is room for.
        pace: of each; without seconds a speed to compare by.
        source: where the speed comes from.
    """

    node: str
    device: str
    places: int
    pace: RankPace
    source: str


@dataclass(frozen=True)
class Excluded:
    """Places that can't carry workers, and why."""

    node: str
    device: str
    why: str


def demand_of(job: Job, inventory: Inventory, earlier: Earlier) -> Demand:
    """What a step asks for. It is in seconds if every place's samples per second are known, and the batch is."""
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
    """All places, fastest first, and those that are barred."""
    timed = demand_of(job, inventory, earlier).in_seconds
    found: list[Pool] = []
    barred: list[Excluded] = []
    for node in inventory.nodes:
        devices = _devices(job, node)
        if not devices:
            barred.append(Excluded(node.name, "cpu", "it has no accelerator"))
        for device in devices:
            kind, places = _kind(device), _places(job, node, device)
            rate = _samples_per_s(job, node, device, earlier.rates) if timed else _comparable(job, node, device)
            most = _most_samples(job, node, device)
            why = _why_not(job, kind, places, rate, most)
            if why is not None or rate is None:
                barred.append(Excluded(node.name, kind, why or "its speed is not known"))
                continue
            found.append(Pool(node.name, kind, places, RankPace(rate.value, most), rate.source))
    return sorted(found, key=lambda pool: (-pool.pace.samples_per_s, pool.node, pool.device)), barred


_Device = Accelerator | None


def _kind(device: _Device) -> str:
    return "cpu" if device is None else device.kind


def _devices(job: Job, node: Machine) -> list[_Device]:
    return [None] if job.workers.per == "cpu" else [*node.accelerators]


def _places(job: Job, node: Machine, device: _Device) -> int:
    by_cores = node.cpus // job.workers.cpus
    return by_cores if device is None else min(device.count, by_cores)


def _why_not(job: Job, kind: str, places: int, rate: Rate | None, most: int | None) -> str | None:
    only, exclude = job.accelerators.only, job.accelerators.exclude
    if kind in exclude:
        return "accelerators.exclude names it"
    if only is not None and kind not in only:
        return "accelerators.only does not name it"
    if places == 0:
        return f"it has fewer than {job.workers.cpus} CPU cores"
    if most == 0:
        return "its memory does not hold the model and one sample"
    return "its speed is not known" if rate is None else None


def _sheet(device: _Device) -> DataSheet | None:
    return None if device is None else SHEETS.get(device.kind)


def _most_samples(job: Job, node: Machine, device: _Device) -> int | None:
    work, sheet = job.workload, _sheet(device)
    fixed = work.bytes_per_worker if work.bytes_per_worker is not None else 16 * (work.parameters or 0)
    if device is None:
        memory = node.memory_bytes / max(1, _places(job, node, device))
    else:
        memory = device.memory_bytes or (sheet.memory_bytes if sheet else math.inf)
    room = USABLE * memory - fixed
    if room < work.bytes_per_sample or room < 0:
        return 0
    return int(room // work.bytes_per_sample) if work.bytes_per_sample and room < math.inf else None


def _samples_per_s(job: Job, node: Machine, device: _Device, earlier: Mapping[str, Rate]) -> Rate | None:
    """From earlier runs, else as the inventory says, else by operations."""
    speed = node.speed if device is None else device.speed
    known = earlier.get(f"{node.name}/{_kind(device)}") or speed.samples_per_s
    if known is not None:
        return known
    work, peak = job.workload, _flops_per_s(job, node, device)
    flops = work.flops_per_sample or (6 * work.parameters * (work.tokens_per_sample or 1) if work.parameters else None)
    if flops is None or peak is None:
        return None
    return Rate(
        value=peak.value * work.efficiency / flops, source=f"{peak.source}, at {work.efficiency:.0%} of the peak"
    )


def _comparable(job: Job, node: Machine, device: _Device) -> Rate | None:
    """A number to compare places by where samples per second are not known of all: operations per second; of nodes that
    were never measured, the same for each core."""
    peak = _flops_per_s(job, node, device)
    if peak is None and device is None:
        return Rate(value=float(job.workers.cpus), source="not measured: all cores are taken as equal")
    return peak


def _flops_per_s(job: Job, node: Machine, device: _Device) -> Rate | None:
    half = (job.workload.precision or ("single" if device is None else "half")) == "half"
    if device is None:
        rate = _of(node.speed, half)
        scale = job.workers.cpus / node.speed_cpus
        return rate and Rate(value=rate.value * scale, source=rate.source)
    sheet, said = _sheet(device), _of(device.speed, half)
    if said is not None or sheet is None:
        return said
    value = sheet.half_flops_per_s if half else sheet.single_flops_per_s
    return None if value is None else Rate(value=value, source="data sheet")


def _of(speed: Speed, half: bool) -> Rate | None:
    return speed.half_flops_per_s if half else speed.single_flops_per_s
