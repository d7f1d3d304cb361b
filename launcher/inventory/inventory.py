"""What machines there are, what each has and how fast it is: plain values, JSON in and out, no I/O.

A file may stand in for machines that are not here. Each rate says where it comes from: "measured", "data sheet", "run
NAME". `config.load_inventory` reads one and tells mistakes with their line.
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
    """A number per second and where it comes from. A bare number is short for one that the file itself gives."""

    value: float = Field(gt=0, allow_inf_nan=False, description="The number, per second.")
    source: str = Field(
        default="inventory file", min_length=1, description='Where it comes from: "measured", "data sheet", "run X".'
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Speed(Section):
    """How fast one worker's device is; what is not known is left out."""

    half_flops_per_s: Rate | None = Field(default=None, description="Matrix multiplication in fp16 or bf16, dense.")
    single_flops_per_s: Rate | None = Field(default=None, description="Matrix multiplication in fp32.")
    memory_bytes_per_s: Rate | None = Field(default=None, description="Bytes read and written by a large copy.")
    samples_per_s: Rate | None = Field(default=None, description="Samples of forward and backward, of real training.")


class Interface(Section):
    """A network interface."""

    name: str = Field(min_length=1, description="Its name, such as eth0.")
    address: str = Field(min_length=1, description="Its address.")
    mbit: float | None = Field(default=None, gt=0, description="What it was negotiated to, in Mbit/s, if known.")


class Accelerator(Section):
    """Devices of one kind in a node."""

    kind: str = Field(min_length=1, description="As Ray calls it, such as GeForce-RTX-4090 or A100-80G.")
    count: int = Field(default=1, ge=1, le=64, description="How many of them.")
    memory_bytes: int | None = Field(default=None, ge=1, description="Memory of each. null: by the data sheet.")
    speed: Speed = Field(default=Speed(), description="Of each. What is left out comes from the data sheet.")


class Machine(Section):
    """A node: a machine that can carry workers."""

    name: str = Field(min_length=1, description="Its hostname, unlike that of any other node.")
    address: str = Field(min_length=1, description="Where other nodes reach it.")
    cpus: int = Field(ge=1, description="CPU cores that workers may use.")
    memory_bytes: int = Field(ge=1, description="Main memory.")
    interfaces: list[Interface] = Field(default=[], description="Its network interfaces.")
    accelerators: list[Accelerator] = Field(default=[], description="Its accelerators, by kind.")
    speed: Speed = Field(default=Speed(), description="Of `speed_cpus` CPU cores.")
    speed_cpus: int = Field(default=1, ge=1, description="The CPU cores that `speed` is about.")
    machine: str | None = Field(default=None, description="Identity of its kernel and network, for measured links.")


class Inventory(Section):
    """The machines of a farm and the links between them."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # Topology checks itself

    nodes: list[Machine] = Field(min_length=1, description="The machines.")
    topology: Topology | None = Field(
        default=None, description="The links, as `launcher probe --save` writes them. null: by the interfaces' rates."
    )
    source: str = Field(default="inventory file", min_length=1, description="Where all of this comes from, and when.")

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
        return next(node for node in self.nodes if node.name == name)

    def to_json(self) -> str:
        """The form that `config.load_inventory` reads."""
        return json.dumps(self.model_dump(exclude_none=True, exclude_defaults=True), indent=1) + "\n"


def contradictions(inventory: Inventory) -> Iterator[Contradiction]:
    """What the fields say together but can't mean: names that stand twice, links of hosts that aren't there, kinds of
    accelerator of which nothing is known."""
    seen: set[str] = set()
    for index, node in enumerate(inventory.nodes):
        if node.name in seen:
            yield Contradiction(
                ("nodes", index, "name"), f"the name {node.name!r} stands twice", node.name, "a name for each node"
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
    """The links, with one rank on each node, and in words where they come from."""
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
    told = "by the rates of the interfaces, not measured"
    if unknown:
        told += f"; taken as 1 Gbit/s for {', '.join(unknown[:4])}" + (" and others" if len(unknown) > 4 else "")
    return Topology(tuple(hosts)), told
