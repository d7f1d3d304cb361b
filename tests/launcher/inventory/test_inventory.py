"""Inventories, good and bad, and what data sheets say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.util.accelerators import accelerators as rays

from launcher.config import job_file
from launcher.errors import ConfigError
from launcher.inventory.accelerators import SHEETS, kind_of
from launcher.inventory.describe import as_text
from launcher.inventory.inventory import Inventory, links
from tests.launcher.farms import farm, node

GIB = 1024**3
GOOD: dict[str, Any] = {
    "nodes": [
        {
            "name": "box-1",
            "address": "10.0.0.1",
            "cpus": 8,
            "memory_bytes": 64 * GIB,
            "interfaces": [{"name": "eth0", "address": "10.0.0.1", "mbit": 1000}],
            "accelerators": [{"kind": "A100-80G", "count": 2}],
            "speed": {"single_flops_per_s": 1e11},
        },
        {"name": "box-2", "address": "10.0.0.2", "cpus": 4, "memory_bytes": 16 * GIB},
    ],
    "source": "by hand",
}
LINKS = {"hosts": [{"name": "box-1", "ranks": [0]}, {"name": "box-2", "ranks": [1]}]}


def changed(path: tuple[str | int, ...], value: Any) -> str:
    """GOOD with one value set, or removed where it is `...`, in JSON."""
    document = json.loads(json.dumps(GOOD))
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(document, indent=1)


ONE = ("nodes", 0)
CARD = (*ONE, "accelerators", 0)
BAD: dict[str, tuple[str, list[str]]] = {
    "unknown key": (changed((*ONE, "cpu"), 3), ["unknown key 'cpu' in 'nodes.0'", "nearest: cpus"]),
    "unknown key of a card": (changed((*CARD, "memory"), 3), ["unknown key 'memory'", "nearest: memory_bytes"]),
    "negative rate": (
        changed((*ONE, "speed", "single_flops_per_s"), -1.0),
        ["single_flops_per_s", "got:     -1.0", "greater than 0"],
    ),
    "rate in words": (changed((*ONE, "speed", "single_flops_per_s"), "fast"), ["single_flops_per_s", "'fast' (text)"]),
    "no cores": (changed((*ONE, "cpus"), 0), ["'nodes.0.cpus'", "greater than or equal to 1"]),
    "half a core": (changed((*ONE, "cpus"), 1.5), ["'nodes.0.cpus'", "1.5", "a whole number"]),
    "no memory": (changed((*ONE, "memory_bytes"), ...), ["'nodes.0.memory_bytes' is missing"]),
    "no name": (changed((*ONE, "name"), ""), ["'nodes.0.name'", "at least 1 character"]),
    "name twice": (changed((*ONE, "name"), "box-2"), ["duplicate name 'box-2'"]),
    "unknown accelerator": (changed((*CARD, "kind"), "A100-90G"), ["no data sheet", "nearest: A100-80G"]),
    "negative speed of an interface": (changed((*ONE, "interfaces", 0, "mbit"), -1), ["mbit", "greater than 0"]),
    "too many cards": (changed((*CARD, "count"), 0), ["count", "greater than or equal to 1"]),
    "no nodes": (changed(("nodes",), []), ["'nodes'", "at least 1 item"]),
    "nodes that are none": (changed(("nodes",), {}), ["'nodes'", "a list"]),
    "link of an unknown host": (
        changed(("topology",), {"hosts": [*LINKS["hosts"], {"name": "box-3", "ranks": [2]}]}),
        ["links of a host 'box-3' that is no node", "box-1, box-2"],
    ),
    "no link of a node": (changed(("topology",), {"hosts": LINKS["hosts"][:1]}), ["no links of the node 'box-2'"]),
    "negative link": (
        changed(("topology",), {"hosts": [{**LINKS["hosts"][0], "up_bytes_per_s": -1}, LINKS["hosts"][1]]}),
        ["hosts[0].up_bytes_per_s", "more than 0"],
    ),
    "unknown key of a link": (
        changed(("topology",), {"hosts": [{**LINKS["hosts"][0], "up": 1}, LINKS["hosts"][1]]}),
        ["hosts[0]", "'up' is unknown"],
    ),
    "cut off": (json.dumps(GOOD, indent=1)[:-9], ["not"]),
    "YAML, not JSON": ("nodes: []\n", ["not JSON"]),
    "a list": ("[]", ["not an inventory", "nodes, topology, source"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    path = tmp_path / "farm.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        job_file.load_inventory(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert caught.value.place.line is not None
    for word in words:
        assert word in message
    assert "pydantic" not in message


def test_the_line_is_that_of_the_mistake(tmp_path: Path) -> None:
    path = tmp_path / "farm.json"
    path.write_text(changed(("nodes", 1, "cpus"), -4))
    with pytest.raises(ConfigError) as caught:
        job_file.load_inventory(path)
    assert path.read_text().splitlines()[(caught.value.place.line or 0) - 1].strip() == '"cpus": -4,'


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "farm.json"
    path.write_text(changed(("topology",), LINKS))
    found = job_file.load_inventory(path)
    path.write_text(found.to_json())
    assert job_file.load_inventory(path) == found
    speed = found.nodes[0].speed.single_flops_per_s
    assert speed is not None
    assert (speed.value, speed.source) == (1e11, "inventory file")


def test_links_are_those_of_the_interfaces_unless_they_are_known() -> None:
    slow, unknown = node("slow", mbit=1000), node("unknown", mbit=None)
    topology, source = links(farm(slow, unknown))
    assert [host.up_bytes_per_s for host in topology.hosts] == [pytest.approx(119.6e6, rel=1e-3), 125e6]
    assert "1 Gbit/s for unknown" in source
    assert links(Inventory.model_validate({**GOOD, "topology": LINKS}))[1] == "as the inventory says"


def test_kinds_are_called_as_ray_calls_them() -> None:
    names = {value for name, value in vars(rays).items() if name.isupper()}
    assert {"A100-40G", "A100-80G", "P100", "H20", "Ascend910B", "Ascend910B4"} <= names & SHEETS.keys()
    assert {kind.partition("-")[0] for kind in SHEETS if kind.startswith(("V100", "A100"))} <= names


@pytest.mark.parametrize(
    ("device", "gib", "kind"),
    [
        ("NVIDIA GeForce RTX 4090", 24, "GeForce-RTX-4090"),
        ("NVIDIA GeForce RTX 4090 D", 24, "GeForce-RTX-4090-D"),
        ("NVIDIA A100-SXM4-80GB", 79, "A100-80G"),
        ("NVIDIA A100-PCIE-40GB", 39, "A100-40G"),
        ("A100", 80, "A100-80G"),
        ("NVIDIA A800 80GB PCIe", 79, "A800-80G"),
        ("Tesla V100-SXM2-16GB", 16, "V100-16G"),
        ("NVIDIA V100-SXM2-32GB", 32, "V100-32G"),
        ("Tesla P100-PCIE-16GB", 16, "P100"),
        ("NVIDIA L20", 48, "L20"),
        ("NVIDIA L2", 24, "L2"),
        ("NVIDIA H20", 96, "H20"),
        ("Ascend910B3", 64, "Ascend910B"),
        ("Ascend910B4", 32, "Ascend910B4"),
        ("NVIDIA H100 80GB HBM3", 79, "H100-80GB-HBM3"),
        ("NVIDIA L20X", 96, "L20X"),
    ],
)
def test_devices_have_kinds(device: str, gib: int, kind: str) -> None:
    assert kind_of(device, gib * GIB) == kind


def test_the_text_says_where_numbers_come_from() -> None:
    text = as_text(Inventory.model_validate(GOOD))
    for words in ("2 x", "A100-80G, 80 GiB", "312 TFLOP/s (data sheet: NVIDIA A100", "100 GFLOP/s (inventory file)"):
        assert words in text
