"""Farms that nobody tuned for: time of an all-reduce over the bound of its links, ours and Gloo in turn (root).

    python -m tests.benchmarks.random_farms --farms 20 --runs 5 --save farms.json

A farm has 3 to 8 hosts. A host's rate, up and down, is drawn from 50 to 1000 Mbit/s, uniformly in its logarithm;
bursts last 1 to 8 ms and queues 100 ms. The same seed gives the same farms. Each run brings the lab up anew, measures
the links, and times all-reduces of 25 MB, so the runs of a farm differ by what is decided when connections form.

r is the narrowness: the rate of the fastest link over that of the slowest.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.paths import REPOSITORY

SIZE = "25M"
MIN_MBIT, MAX_MBIT = 50, 1000


def farm(seed: int) -> dict[str, Any]:
    """A lab file's values."""
    draw = random.Random(seed)
    rates = [round(MIN_MBIT * (MAX_MBIT / MIN_MBIT) ** draw.random()) for _ in range(draw.randint(3, 8))]
    hosts = [{"name": "abcdefgh"[index], "mbit": rate} for index, rate in enumerate(rates)]
    return {"name": f"farm-{seed}", "hosts": hosts, "burst_ms": round(draw.uniform(1, 8), 1), "queue_ms": 100}


def measure(lab: dict[str, Any], round_s: float, with_gloo: bool) -> dict[str, Any]:
    """One run: time over the bound of ours, of the plan and of Gloo, and how many elements were wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path, saved = Path(folder) / "farm.yaml", Path(folder) / "bench.json"
        path.write_text(yaml.safe_dump(lab), encoding="utf-8")
        bench = f"-m collectives bench --sizes {SIZE} --round-s {round_s} --save {saved}".split()
        bench += [] if with_gloo else ["--no-gloo"]
        command = [sys.executable, "-m", "launcher.cli", "lab", "run", str(path), "--", sys.executable, *bench]
        done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{lab['name']}: the bench ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
        (row,) = json.loads(saved.read_text())["rows"]
    limit_s = row["limit_s"]
    gloo = row["gloo_time_s"] / limit_s if with_gloo else None
    return {
        "ours": row["time_s"] / limit_s,
        "planned": row["predicted_s"] / limit_s,
        "gloo": gloo,
        "wrong": row["wrong"],
    }


def show(lab: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    rates = [host["mbit"] for host in lab["hosts"]]
    ours = " ".join(f"{run['ours']:.3f}" for run in runs)
    gloo = [run["gloo"] for run in runs if run["gloo"] is not None]
    beside = f"  Gloo {statistics.median(gloo):.2f}" if gloo else ""
    farm_of = f"{lab['name']:8} r {max(rates) / min(rates):4.1f}  burst {lab['burst_ms']:3} ms  Mbit/s {rates}"
    return f"{farm_of}: {ours}{beside}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--farms", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first farm")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--round-s", type=float, default=0.15)
    parser.add_argument("--gloo-runs", type=int, default=1, help="runs of each farm in which Gloo takes its turn, too")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    found = []
    for seed in range(options.first, options.first + options.farms):
        lab = farm(seed)
        runs = [measure(lab, options.round_s, run < options.gloo_runs) for run in range(options.runs)]
        print(show(lab, runs), flush=True)
        found.append({"lab": lab, "runs": runs})
    ours = [run["ours"] for each in found for run in each["runs"]]
    gloo = [run["gloo"] for each in found for run in each["runs"] if run["gloo"] is not None]
    print(f"time over the bound, {len(ours)} runs: median {statistics.median(ours):.3f}, worst {max(ours):.3f}", end="")
    print(f"; Gloo median {statistics.median(gloo):.2f}, worst {max(gloo):.2f}" if gloo else "")
    if options.save is not None:
        options.save.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
