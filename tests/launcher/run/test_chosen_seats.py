"""Jobs that leave the placement to the launcher, on a Ray cluster of two nodes that say they have accelerators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.caches import new_cache
from tests.launcher.two_nodes import REPOSITORY, two_nodes

SCRIPT = """
import os
from launcher import progress
rank = os.environ["RANK"]
progress.note(**{f"rank{rank}": [os.environ["LOCAL_RANK"], os.environ.get("CUDA_VISIBLE_DEVICES")]})
"""
CARDS = {"kind": "V100-16G", "count": 2}


@pytest.fixture
def address() -> Iterator[str]:
    yield from two_nodes(gpus=2)


def launcher(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")},
        timeout=280,
    )


@pytest.mark.slow
def test_workers_are_placed_by_speed_and_see_their_nodes_accelerators(tmp_path: Path, address: str) -> None:
    new_cache(tmp_path / "cache")
    looked = launcher(tmp_path, "inventory", "--address", address, "--save", "farm.json", "--json")
    assert looked.returncode == 0, looked.stderr
    farm = json.loads(looked.stdout)
    assert farm == json.loads((tmp_path / "farm.json").read_text())
    assert [node["cpus"] for node in farm["nodes"]] == [2, 2]
    assert all(node["speed"]["single_flops_per_s"]["source"] == "measured" for node in farm["nodes"])
    assert len({node["name"] for node in farm["nodes"]}) == 2

    for node in farm["nodes"]:  # what a machine with such cards would have said
        node["accelerators"] = [CARDS]
    [remembered] = (tmp_path / "cache" / "narrowgauge" / "inventory").glob("*.json")
    remembered.write_text(json.dumps(farm))
    (tmp_path / "show.py").write_text(SCRIPT)
    job = {
        "name": "chosen",
        "entrypoint": "show.py",
        "workers": {"max": 9, "per": "gpu"},
        "cluster": {"address": address},
        "global_batch": 32,
        "workload": {"parameters": "1M", "tokens_per_sample": 1000000},
        "collectives": {"backend": "gloo"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = launcher(tmp_path, "submit", "job.yaml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "predicted step" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["world_size"] == 4
    for rank in range(4):
        local_rank, devices = summary["notes"][f"rank{rank}"]
        assert local_rank == str(rank % 2)
        assert sorted(devices.split(",")) == ["0", "1"]
    seats = json.loads((Path(summary["folder"]) / "plan.json").read_text())["seats"]
    assert [(seat["device"], seat["share"]) for seat in seats] == [("V100-16G", 8)] * 4

    too_many = launcher(tmp_path, "submit", "job.yaml", "--set", "workers.min=5")
    assert too_many.returncode == 1
    assert "no placement for 5 or more workers" in too_many.stdout + too_many.stderr
    assert "Traceback" not in too_many.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without accelerators")
def test_a_worker_per_accelerator_does_not_fall_back_to_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SCRIPT)
    job = {"name": "bare", "entrypoint": "show.py", "workers": {"count": 1, "per": "gpu"}}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = launcher(tmp_path, "submit", "job.yaml")
    assert done.returncode == 1
    assert "has no accelerator that Ray knows of" in done.stderr
    assert "Traceback" not in done.stderr
