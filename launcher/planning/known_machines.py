"""The inventory of the machines that are here: looked at now, or as it was remembered when they were last looked at.

What was measured is kept in narrowgauge/inventory below $XDG_CACHE_HOME or ~/.cache, by the cluster's address.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from collectives.caches import cache_folder
from collectives.probe.cache import recall as recall_links
from collectives.topology import Topology
from launcher.config import job_file
from launcher.config.job import Job
from launcher.errors import ConfigError
from launcher.inventory.inventory import Inventory, Machine
from launcher.record.seats import Node


def told_by(job: Job, texts: Sequence[str]) -> Inventory:
    """The inventory of nodes out of what `launcher.inventory.measure` printed on each."""
    nodes = _unique([Machine.model_validate_json(text) for text in texts])
    links = _links(job, nodes) if len(nodes) > 1 else None
    return Inventory(nodes=nodes, topology=links, source="looked at")


def known(job: Job, nodes: Sequence[Node], told: str | None = None) -> Inventory:
    """What is known of these nodes without looking: as remembered, else no more than Ray tells.

    Args:
        told: what the submitter remembers (`remembered`), if the job was handed over from another machine.
    """
    remembered = Inventory.model_validate_json(told) if told else _recalled(job)
    before = {node.name: node for node in remembered.nodes} if remembered else {}
    machines = [
        before[node.name].model_copy(update={"address": node.address, "cpus": node.cpus})
        if node.name in before
        else Machine(name=node.name, address=node.address, cpus=node.cpus, memory_bytes=node.memory_bytes)
        for node in nodes
    ]
    topology = remembered.topology if remembered and {node.name for node in machines} == set(before) else None
    return Inventory(nodes=_unique(machines), topology=topology, source="as remembered" if before else "Ray")


def remembered(job: Job) -> str | None:
    """What this machine remembers of the job's cluster, as JSON."""
    found = _recalled(job)
    return found.to_json() if found else None


def packed(told: str | None) -> str | None:
    """What `remembered` gave, small enough for an environment variable, through which Ray tells it to a driver."""
    return base64.b64encode(zlib.compress(told.encode())).decode() if told else None


def unpacked(small: str | None) -> str | None:
    """What `packed` was given."""
    return zlib.decompress(base64.b64decode(small)).decode() if small else None


def _links(job: Job, nodes: Sequence[Machine]) -> Topology | None:
    """The job's own topology file, else what was measured between these nodes before."""
    path = job.collectives.topology
    if path is not None:
        topology = Topology.load(path)
        return topology if {host.name for host in topology.hosts} == {node.name for node in nodes} else None
    return recall_links([node.name for node in nodes], [node.machine or "" for node in nodes])


def _unique(nodes: list[Machine]) -> list[Machine]:
    """In order of address; two that have the same hostname get a number."""
    names: dict[str, int] = {}
    found = []
    for node in by_address(nodes):
        names[node.name] = names.get(node.name, 0) + 1
        suffix = f"-{names[node.name]}" if names[node.name] > 1 else ""
        found.append(node.model_copy(update={"name": node.name + suffix}))
    return found


_Addressed = TypeVar("_Addressed", Machine, Node)


def by_address(nodes: Sequence[_Addressed]) -> list[_Addressed]:
    """In the order that inventories have."""
    return sorted(nodes, key=lambda node: [int(part) for part in re.findall(r"\d+", node.address)])


def _path(job: Job) -> Path:
    return cache_folder("inventory") / f"{re.sub(r'[^A-Za-z0-9]+', '-', job.cluster.address or 'local')}.json"


def remember(job: Job, inventory: Inventory) -> None:
    try:
        path = _path(job)
    except OSError:  # no home
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(inventory.to_json(), encoding="utf-8")
    except OSError:  # it is measured again next time
        path.unlink(missing_ok=True)


def _recalled(job: Job) -> Inventory | None:
    try:
        return job_file.load_inventory(_path(job)) if _path(job).is_file() else None
    except (ConfigError, OSError):  # written by another version; no home
        return None
