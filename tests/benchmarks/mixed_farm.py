"""A mixed farm in the lab: what `launcher plan` predicts against what training then takes, with equal and with measured
shares. As root:

python -m tests.benchmarks.mixed_farm

Four hosts, three at 1000 Mbit/s and one at 100 (configs/lab/three-fast-one-slow.yaml), with a Ray node in each; the
worker on the slow link also has a CPU quota. First the probe measures the links. A first run, with equal shares that
stay, gives the plan its speeds; then the plan; then two runs in turn, one that begins with the plan's shares and may
change them, and one with equal shares. Prints milliseconds of a step (median of the second half), samples per second,
shares at the end, and shares in proportion to the speeds of the last run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.paths import REPOSITORY

LAB = REPOSITORY / "configs" / "lab" / "three-fast-one-slow.yaml"
NAME = "three-fast-one-slow"
PERIOD_US = 20_000
SLOW_RANK_HOST = "d"


def launcher(folder: Path, *words: str) -> str:
    """The output of a command of the launcher."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"launcher {' '.join(words)} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def in_lab(folder: Path, *words: str) -> str:
    return launcher(folder, "lab", "run", str(LAB), "--", "launcher", *words)


@contextmanager
def quota(folder: Path, percent: float) -> Iterator[None]:
    """Limit the worker on the slow host, in any run below the folder, to a percentage of a core."""
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup" if version_2 else "/sys/fs/cgroup/cpu") / "narrowgauge-mixed-farm"
    group.mkdir(exist_ok=True)
    allowed_us = int(PERIOD_US * percent / 100)
    if version_2:
        (group / "cpu.max").write_text(f"{allowed_us} {PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(allowed_us))
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for run in (folder / "runs").glob("*/events.jsonl"):
                seats = json.loads((run.parent / "plan.json").read_text())["seats"]
                slow = [seat["rank"] for seat in seats if seat["host"] == SLOW_RANK_HOST]
                for event in events(run.parent, "Started"):
                    if event["rank"] in slow and Path(f"/proc/{event['pid']}").exists():
                        (group / "cgroup.procs").write_text(str(event["pid"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        time.sleep(0.5)
        group.rmdir()


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def trained(folder: Path, *settings: str) -> dict[str, Any]:
    """Submit the job; returns step seconds, shares and speeds of its second half."""
    words = [word for setting in settings for word in ("--set", setting)]
    summary = json.loads(in_lab(folder, "submit", "job.yaml", "--json", *words))
    reported = events(Path(summary["folder"]), "Reported")
    first = [event for event in reported if event["rank"] == 0]
    later = first[len(first) // 2 :]
    step_s = statistics.median(b["at"] - a["at"] for a, b in itertools.pairwise(later))
    last = {event["rank"]: event for event in reported}
    half = later[0]["step"]
    speeds = [
        statistics.median(
            event["samples"] / event["compute_s"]
            for event in reported
            if event["rank"] == rank and event["step"] > half and event["compute_s"] > 0
        )
        for rank in sorted(last)
    ]
    return {
        "step_s": step_s,
        "first_shares": [
            int(event["samples"]) for event in sorted(reported, key=lambda event: (event["step"], event["rank"]))
        ][:4],
        "shares": [int(last[rank]["samples"]) for rank in sorted(last)],
        "speeds": speeds,
        "first_step_s": summary["seconds_to_first_step"],
        "balanced": len(events(Path(summary["folder"]), "Balanced")),
    }


def main() -> int:
    args = arguments()
    batch = args.global_batch
    with tempfile.TemporaryDirectory(prefix="narrowgauge-farm-") as scratch:
        folder = Path(scratch)
        job = {
            "name": "mixed",
            "entrypoint": "launcher.examples.train_gpt",
            "args": {"steps": args.steps, "report-every": 1, "heldout-windows": 4, "sample-bytes": 1},
            "workers": {"min": 4, "max": 4},
            "global_batch": batch,
            "cluster": {"address": "auto"},
        }
        (folder / "job.yaml").write_text(json.dumps(job))
        launcher(folder, "lab", "up", str(LAB), "--ray")
        try:
            in_lab(folder, "probe", "job.yaml", "--save", str(folder / "links.json"))
            links = f"collectives.topology={folder / 'links.json'}"
            with quota(folder, args.quota):
                equal = ("workers={count: 4, hosts: 4}", "rebalance=false", links)
                known = trained(folder, *equal)
                plan = json.loads(in_lab(folder, "plan", "job.yaml", "--json", "--set", links))
                runs = [("measured shares", trained(folder, links)), ("equal shares", trained(folder, *equal))]
        finally:
            launcher(folder, "lab", "down", NAME)
    report(args, known, plan, runs)
    return 0


def report(
    args: argparse.Namespace, known: dict[str, Any], plan: dict[str, Any], runs: list[tuple[str, dict[str, Any]]]
) -> None:
    """Print the first run, the plan, the runs after it, and the plan's error."""
    forecast, batch = plan["forecast"], args.global_batch
    print(
        f"{os.cpu_count()} cores, {args.steps} steps, global batch {batch}, quota {args.quota:g} % of a core on host d"
    )
    print(
        f"first run, equal shares: {1e3 * known['step_s']:.0f} ms/step, first step after {known['first_step_s']:.1f} s"
    )
    print(
        f"plan: {1e3 * forecast['step_s']:.0f} ms/step (compute {1e3 * forecast['compute_s']:.0f}, communication "
        f"{1e3 * forecast['communication_s']:.0f}, of which seen {1e3 * forecast['exposed_s']:.0f}, other "
        f"{1e3 * forecast['other_s']:.0f}), shares {[rank['share'] for rank in plan['ranks']]}"
    )
    for name, run in runs:
        total = sum(run["speeds"])
        ideal = [round(batch * speed / total, 1) for speed in run["speeds"]]
        print(
            f"{name}: {1e3 * run['step_s']:.0f} ms/step, {batch / run['step_s']:.1f} samples/s, shares "
            f"{run['first_shares']}, in the end {run['shares']}, ideal {ideal}, changed {run['balanced']} times, "
            f"first step after {run['first_step_s']:.1f} s"
        )
    taken = runs[0][1]["step_s"]
    print(f"error of the plan: {100 * (forecast['step_s'] / taken - 1):+.1f} %")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--quota", type=float, default=12.0, help="percent of a core for the worker on the slow link")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
