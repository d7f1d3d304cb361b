"""Machines, their devices and their speeds: plain values, JSON in and out, no I/O.

A file can stand in for machines that are elsewhere. Each rate has its source: "measured", "data sheet", "run NAME".
`job_file.load_inventory` reads a file and reports errors with their line.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field, field_serializer, field_validator, model_validator

from collectives.errors import PlanError
from collectives.topology import DEFAULT_BYTES_PER_S, Host, Topology
from launcher.errors import Contradiction
from launcher.inventory.accelerators import SHEETS
from launcher.schema import Section
from launcher.units import payload_bytes_per_s


class Rate(Section):
    """A number per second and its source. A bare number is short for one whose source is the file itself."""

    value: float = Field(gt=0, allow_inf_nan=False, description="The rate, per second.")
    source: str = Field(
        default="inventory file",
        min_length=1,
        description='Source of the rate: "measured", "data sheet" or "run NAME".',
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Speed(Section):
    """Speed of the device of one worker. Unknown rates are left out."""

    half_flops_per_s: Rate | None = Field(default=None, description="FLOP/s of a dense matrix product in fp16 or bf16.")
    single_flops_per_s: Rate | None = Field(default=None, description="FLOP/s of a matrix product in fp32.")
    memory_bytes_per_s: Rate | None = Field(
        default=None, description="Bytes per second, read plus written, of a large copy."
    )
    samples_per_s: Rate | None = Field(
        default=None, description="Samples per second of forward and backward pass in real training."
    )


class Interface(Section):
    """A network interface."""

    name: str = Field(min_length=1, description="Name, such as eth0.")
    address: str = Field(min_length=1, description="IPv4 address.")
    mbit: float | None = Field(default=None, gt=0, description="Negotiated rate in Mbit/s. null: unknown.")


class Accelerator(Section):
    """Devices of one kind in a node."""

    kind: str = Field(min_length=1, description="Kind, by Ray's name for it, such as GeForce-RTX-4090 or A100-80G.")
    count: int = Field(default=1, ge=1, le=64, description="How many of them.")
    memory_bytes: int | None = Field(default=None, ge=1, description="Memory of each. null: by the data sheet.")
    speed: Speed = Field(default=Speed(), description="Of each. What is left out comes from the data sheet.")


class Machine(Section):
    """A node: a machine that can carry workers."""

    name: str = Field(min_length=1, description="Hostname, different from those of all other nodes.")
    address: str = Field(min_length=1, description="Address at which other nodes reach it.")
    cpus: int = Field(ge=1, description="CPU cores that workers may use.")
    memory_bytes: int = Field(ge=1, description="Bytes of main memory.")
    interfaces: list[Interface] = Field(default=[], description="Network interfaces.")
    accelerators: list[Accelerator] = Field(default=[], description="Accelerators, one entry per kind.")
    speed: Speed = Field(default=Speed(), description="Speeds of `speed_cpus` CPU cores together.")
    speed_cpus: int = Field(default=1, ge=1, description="Number of CPU cores that `speed` was measured with.")
    machine: str | None = Field(
        default=None, description="Identity of its kernel and network; the key of measured links."
    )


class Inventory(Section):
    """The machines of a farm and the links between them."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # Topology checks itself

    nodes: list[Machine] = Field(min_length=1, description="Machines of the farm.")
    topology: Topology | None = Field(
        default=None, description="Links, as `launcher probe --save` writes them. null: by the rates of the interfaces."
    )
    source: str = Field(default="inventory file", min_length=1, description="Where the inventory comes from, and when.")

    @field_validator("topology", mode="before")
    @classmethod
    def _links(cls, value: Any) -> Any:
        if value is None or isinstance(value, Topology):
            return value
        try:
            return Topology.from_json(json.dumps(value))
        except PlanError as error:
            raise ValueError(str(error).removeprefix("topology: ").replace("; wanted", ", wanted")) from None

    @field_serializer("topology")
    def _plain_links(self, value: Topology | None) -> Any:
        return None if value is None else json.loads(value.to_json())

    def node(self, name: str) -> Machine:
        """The node of that name, which must exist."""
        return next(node for node in self.nodes if node.name == name)

    def to_json(self) -> str:
        """The form that `config.load_inventory` reads."""
        return json.dumps(self.model_dump(exclude_none=True, exclude_defaults=True), indent=1) + "\n"


def contradictions(inventory: Inventory) -> Iterator[Contradiction]:
    """What a schema cannot express: duplicate names, links of unknown hosts, accelerators without speeds."""
    seen: set[str] = set()
    for index, node in enumerate(inventory.nodes):
        if node.name in seen:
            yield Contradiction(
                ("nodes", index, "name"), f"duplicate name {node.name!r}", node.name, "a different name for each node"
            )
        seen.add(node.name)
        for position, found in enumerate(node.accelerators):
            if found.kind not in SHEETS and (found.memory_bytes is None or found.speed == Speed()):
                near = difflib.get_close_matches(found.kind, SHEETS, 1, cutoff=0.4)
                yield Contradiction(
                    ("nodes", index, "accelerators", position, "kind"),
                    f"no data sheet of an accelerator {found.kind!r}",
                    found.kind,
                    "one of " + ", ".join(SHEETS) + "; or its memory_bytes and speed beside it",
                    near[0] if near else None,
                )
    if inventory.topology is not None:
        yield from _of_links(inventory.topology, [node.name for node in inventory.nodes])


def _of_links(topology: Topology, names: list[str]) -> Iterator[Contradiction]:
    hosts = [host.name for host in topology.hosts]
    for host in hosts:
        if host not in names:
            near = difflib.get_close_matches(host, names, 1)
            yield Contradiction(
                ("topology",),
                f"links of a host {host!r} that is no node",
                host,
                "hosts among the nodes: " + ", ".join(names),
                near[0] if near else None,
            )
    for name in names:
        if name not in hosts:
            yield Contradiction(
                ("topology",),
                f"no links of the node {name!r}",
                ", ".join(hosts),
                "a host for each node, or no topology",
            )


def links(inventory: Inventory) -> tuple[Topology, str]:
    """The topology with one rank on each node, and in words where its rates come from: as given, else by the
    negotiated rates of the interfaces."""
    if inventory.topology is not None:
        return inventory.topology.seated([node.name for node in inventory.nodes]), "as the inventory says"
    hosts = []
    unknown = []
    for index, node in enumerate(inventory.nodes):
        mbit = next((face.mbit for face in node.interfaces if face.address == node.address), None)
        if mbit is None:
            unknown.append(node.name)
        bytes_per_s = DEFAULT_BYTES_PER_S if mbit is None else payload_bytes_per_s(mbit)
        hosts.append(Host(node.name, (index,), bytes_per_s, bytes_per_s))
    source = "by the rates of the interfaces, not measured"
    if unknown:
        source += f"; taken as 1 Gbit/s for {', '.join(unknown[:4])}" + (" and others" if len(unknown) > 4 else "")
    return Topology(tuple(hosts)), source
