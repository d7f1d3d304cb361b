"""Inventories for tests."""

from __future__ import annotations

from launcher.inventory.inventory import Accelerator, Interface, Inventory, Machine, Speed

GIB = 1024**3


def node(
    name: str,
    *cards: tuple[str, int],
    mbit: float | None = 10_000,
    cpus: int = 32,
    speed: Speed = Speed(),  # noqa: B008 - it can't be changed
) -> Machine:
    address = f"10.0.0.{sum(map(ord, name)) % 250}"
    return Machine(
        name=name,
        address=address,
        cpus=cpus,
        memory_bytes=64 * GIB,
        interfaces=[Interface(name="eth0", address=address, mbit=mbit)],
        accelerators=[Accelerator(kind=kind, count=count) for kind, count in cards],
        speed=speed,
    )


def farm(*nodes: Machine) -> Inventory:
    return Inventory(nodes=list(nodes), source="a test")
