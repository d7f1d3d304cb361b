"""An inventory as text for people."""

from __future__ import annotations

from collectives.units import rate
from launcher.inventory.accelerators import SHEETS
from launcher.inventory.inventory import Accelerator, Inventory, Machine, Speed, links
from launcher.units import memory, speed


def as_text(inventory: Inventory) -> str:
    """A block for each node: what it has, how fast that is, and where the numbers come from."""
    topology, source = links(inventory)
    lines = [f"{len(inventory.nodes)} node{'s' * (len(inventory.nodes) > 1)}: {inventory.source}"]
    rates = {host.name: (host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts}
    for node in inventory.nodes:
        lines += ["", f"{node.name} ({node.address}): {node.cpus} CPU cores, {memory(node.memory_bytes)}"]
        lines += [f"  {line}" for line in _parts(node)]
        if len(inventory.nodes) > 1:
            up, down = rates[node.name]
            lines.append(f"  link        up {rate(up)}, down {rate(down)}")
    return "\n".join(lines + (["", f"links {source}"] if len(inventory.nodes) > 1 else []))


def _parts(node: Machine) -> list[str]:
    lines = [f"{'CPU':11} {line}" for line in _speeds(node.speed, node.speed_cpus)]
    for found in node.accelerators:
        lines.append(f"{f'{found.count} x':11} {found.kind}, {memory(_memory_of(found))}")
        lines += [f"{'':11} {line}" for line in _speeds(_with_sheet(found), None)]
    for face in node.interfaces:
        lines.append(f"{face.name:11} {face.address}" + (f", {face.mbit:g} Mbit/s" if face.mbit else ""))
    return lines


def _memory_of(found: Accelerator) -> int:
    return found.memory_bytes or SHEETS[found.kind].memory_bytes


def _with_sheet(found: Accelerator) -> Speed:
    """Speeds of the accelerator, completed from its data sheet."""
    sheet = SHEETS.get(found.kind)
    if sheet is None:
        return found.speed
    from_sheet = {
        name: {"value": value, "source": f"data sheet: {sheet.source}"}
        for name in ("half_flops_per_s", "single_flops_per_s", "memory_bytes_per_s")
        if (value := getattr(sheet, name)) is not None
    }
    return Speed.model_validate({**from_sheet, **found.speed.model_dump(exclude_none=True)})


def _speeds(of: Speed, cpus: int | None) -> list[str]:
    named = {
        "fp16 or bf16 product": (of.half_flops_per_s, "FLOP/s"),
        "fp32 product": (of.single_flops_per_s, "FLOP/s"),
        "memory copy": (of.memory_bytes_per_s, "B/s"),
        "training": (of.samples_per_s, "samples/s"),
    }
    cores = "" if cpus is None else f" of {cpus} core{'s' * (cpus > 1)}"
    return [
        f"{name}{cores}: {speed(found.value, unit)} ({found.source})"
        for name, (found, unit) in named.items()
        if found is not None
    ]
