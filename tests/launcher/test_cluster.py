"""A job on a Ray cluster that was there before, with two nodes, which stays when the job is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import os
from launcher import progress
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NARROWGAUGE_HOST")
print({name: os.environ.get(name) for name in names})
progress.note(**{f"node{os.environ['RANK']}": os.environ["PLACE"]})
"""
SUM = """
import torch, torch.distributed as dist
from launcher import progress
dist.init_process_group("gloo")
values = torch.full((10007,), float(dist.get_rank() + 1))
dist.all_reduce(values)
progress.note(**{f"sum{dist.get_rank()}": values.unique().tolist()})
dist.destroy_process_group()
"""


@pytest.fixture
def address() -> Iterator[str]:
    """Two nodes of two CPUs each, started by Ray's own test helper in a process of its own."""
    program = (
        "import sys\nfrom ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})\n"
        "cluster.add_node(num_cpus=2)\nprint(cluster.address, flush=True)\nsys.stdin.read()\ncluster.shutdown()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PLACE": "the cluster"},
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate(timeout=60)


def submit(
    folder: Path, address: str, workers: dict[str, int], script: str = SCRIPT, backend: str = "gloo"
) -> subprocess.CompletedProcess[str]:
    (folder / "show.py").write_text(script)
    job = {
        "name": "by-address",
        "entrypoint": "show.py",
        "workers": workers,
        "cluster": {"address": address},
        "collectives": {"backend": backend},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli", "submit", "job.yaml", "--json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
    )


def test_two_nodes_by_address(tmp_path: Path, address: str) -> None:
    done = submit(tmp_path, address, {"count": 4, "hosts": 2})
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["notes"] == {f"node{rank}": "the cluster" for rank in range(4)}
    plan = json.loads((Path(summary["folder"]) / "plan.json").read_text())
    nodes = [seat["node"]["id"] for seat in plan["seats"]]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    variables = (Path(summary["folder"]) / "logs" / "rank-2.log").read_text()
    assert "'RANK': '2', 'WORLD_SIZE': '4', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '2', 'GROUP_RANK': '1'" in variables
    assert "'NARROWGAUGE_HOST': None" in variables

    refused = submit(tmp_path, address, {"count": 5})
    assert refused.returncode == 1
    assert "no room for 5 workers" in refused.stderr
    assert "Traceback" not in refused.stderr

    again = submit(tmp_path, address, {"count": 2, "cpus": 2})
    assert again.returncode == 0, again.stderr

    for hosts in (1, 2):
        over_the_engine = submit(tmp_path, address, {"count": 2, "hosts": hosts}, SUM, "narrowgauge")
        assert over_the_engine.returncode == 0, over_the_engine.stdout + over_the_engine.stderr
        summary = json.loads(over_the_engine.stdout)
        assert summary["notes"] == {"sum0": [3.0], "sum1": [3.0]}
        assert summary["collectives"]["ops"] >= 1


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    done = submit(tmp_path, "127.0.0.1:1", {"count": 1})
    assert done.returncode == 1
    assert "cannot reach the Ray cluster at '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr
