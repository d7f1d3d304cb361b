"""Inventories of a job's machines: from measurements made now, or cached from the last ones.

The cache is narrowgauge/inventory below $XDG_CACHE_HOME or ~/.cache, with a file for each cluster by its address.
`launcher submit` plans with the cache alone, since measuring takes seconds on every node.
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


def from_measurements(job: Job, texts: Sequence[str]) -> Inventory:
    """The inventory from what `launcher.inventory.measure` printed on each node."""
    nodes = _unique([Machine.model_validate_json(text) for text in texts])
    links = _links(job, nodes) if len(nodes) > 1 else None
    return Inventory(nodes=nodes, topology=links, source="measured")


def without_measuring(job: Job, nodes: Sequence[Node], cached: str | None = None) -> Inventory:
    """The inventory of these nodes from the cache. Nodes that are not in it have only what Ray reports.

    Args:
        nodes: as Ray reports them now; their addresses and CPUs replace the cached ones.
        cached: the submitter's cache (`cached_json`), if the job was submitted from another machine.
    """
    remembered = Inventory.model_validate_json(cached) if cached else _recall(job)
    before = {node.name: node for node in remembered.nodes} if remembered else {}
    machines = [
        before[node.name].model_copy(update={"address": node.address, "cpus": node.cpus})
        if node.name in before
        else Machine(name=node.name, address=node.address, cpus=node.cpus, memory_bytes=node.memory_bytes)
        for node in nodes
    ]
    # Measured links are of all cached nodes together; with another set of nodes they would be incomplete.
    topology = remembered.topology if remembered and {node.name for node in machines} == set(before) else None
    return Inventory(nodes=_unique(machines), topology=topology, source="as remembered" if before else "Ray")


def cached_json(job: Job) -> str | None:
    """The cached inventory of the job's cluster, as JSON."""
    found = _recall(job)
    return found.to_json() if found else None


def compressed(text: str | None) -> str | None:
    """The cached inventory, compressed: it reaches a driver on the cluster in an environment variable, which is limited
    to 128 KiB."""
    return base64.b64encode(zlib.compress(text.encode())).decode() if text else None


def decompressed(packed: str | None) -> str | None:
    """The reverse of `compressed`."""
    return zlib.decompress(base64.b64decode(packed)).decode() if packed else None


def _links(job: Job, nodes: Sequence[Machine]) -> Topology | None:
    """The job's topology file, else the links that were measured between these nodes before; None if neither fits."""
    path = job.collectives.topology
    if path is not None:
        topology = Topology.load(path)
        return topology if {host.name for host in topology.hosts} == {node.name for node in nodes} else None
    return recall_links([node.name for node in nodes], [node.machine or "" for node in nodes])


def _unique(nodes: list[Machine]) -> list[Machine]:
    """In order of address, which is stable between measurements. Later ones with the same hostname get a suffix."""
    names: dict[str, int] = {}
    found = []
    for node in by_address(nodes):
        names[node.name] = names.get(node.name, 0) + 1
        suffix = f"-{names[node.name]}" if names[node.name] > 1 else ""
        found.append(node.model_copy(update={"name": node.name + suffix}))
    return found


_Addressed = TypeVar("_Addressed", Machine, Node)


def by_address(nodes: Sequence[_Addressed]) -> list[_Addressed]:
    """In the order of an inventory: by the numbers of the address, so that 10.0.0.9 comes before 10.0.0.10."""
    return sorted(nodes, key=lambda node: [int(part) for part in re.findall(r"\d+", node.address)])


def _path(job: Job, make: bool = False) -> Path:
    return cache_folder("inventory", make) / f"{re.sub(r'[^A-Za-z0-9]+', '-', job.cluster.address or 'local')}.json"


def remember(job: Job, inventory: Inventory) -> None:
    """Write the cache. A cache that cannot be written is not an error."""
    try:
        path = _path(job, make=True)
    except OSError:  # no home folder, or none of this user's own
        return
    try:
        path.write_text(inventory.to_json(), encoding="utf-8")
    except OSError:  # half a file is worse than none
        path.unlink(missing_ok=True)


def _recall(job: Job) -> Inventory | None:
    try:
        return job_file.load_inventory(_path(job)) if _path(job).is_file() else None
    except (ConfigError, OSError):  # written by another version, or no folder of this user's own
        return None
