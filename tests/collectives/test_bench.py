"""The benchmark: its formulas, its table, and that it finds wrong elements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collectives import bench
from collectives.specification import SPECIFICATIONS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("collective", "size", "factor"),
    [("all_reduce", 4, 1.5), ("all_gather", 4, 0.75), ("reduce_scatter", 2, 0.5), ("broadcast", 8, 1.0)],
)
def test_bus_factor_is_that_of_nccl_tests(collective: str, size: int, factor: float) -> None:
    assert bench.bus_factor(collective, size) == factor


def test_table_prints_what_was_not_measured_as_a_dash() -> None:
    row = bench.Row("all_reduce", 1000, 0.002, 5e5, 7.5e5, 0, 500, None, None, None)
    *_, line = bench.table([row]).splitlines()
    assert line.split() == ["1000", "2.000", "4", "6", "0", "0.50", "-", "-", "-", "-", "-"]


def test_bench_runs_every_collective_under_torchrun() -> None:
    """Two ranks, small sizes; each collective on both backends must have no wrong element."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "collectives", "bench"]
    command += ["--collective", "all", "--sizes", "8,4k", "--round-s", "0.01", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["num_bytes"] for row in rows] == [8, 4000] * len(SPECIFICATIONS)
    assert {row["collective"] for row in rows} == set(SPECIFICATIONS)
    assert all(row["wrong"] == row["gloo_wrong"] == 0 for row in rows), rows
    assert all(row["time_s"] > 0 and row["ratio"] > 0 for row in rows)


def test_bench_without_ranks_says_how_to_start_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "collectives", "bench"], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 2
    assert "torchrun --nproc-per-node 4 -m collectives bench" in done.stderr
    assert "Traceback" not in done.stderr


def test_links_that_nobody_measured_are_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(bench.dist, "get_world_size", lambda: 4)
    assert bench._limit_s("all_reduce", 1000, 6000.0, 1e9) is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert bench._limit_s("all_reduce", 1000, 6000.0, 1e9) == 2 * 6000.0 / (1e9 * (os.cpu_count() or 1))
