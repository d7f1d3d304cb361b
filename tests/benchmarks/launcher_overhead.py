"""Overhead of the launcher over plain torchrun: the same script both ways, in turn, on this machine.

python -m tests.benchmarks.launcher_overhead

Prints milliseconds of a step for each run (median over windows of ten steps, without the first), the seconds from the
command to the first step, and how much longer the launcher's step takes than that of the torchrun run beside it: the
median over the turns, since a machine's speed drifts, and the range.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.paths import REPOSITORY

SCRIPT = "launcher.examples.train_gpt"
WINDOW = 10


def script_args(args: argparse.Namespace) -> dict[str, int]:
    return {"steps": args.steps, "report-every": WINDOW, "heldout-windows": 4, "sample-bytes": 1}


def by_torchrun(args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step, and from the start to the first report."""
    words = [word for name, value in script_args(args).items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node",
                str(args.workers),
                "-m",
                SCRIPT,
                *words,
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        first_s, windows = 0.0, []
        for line in process.stdout:
            if line.startswith("step ") and not first_s:
                first_s = time.time() - began
            if found := re.search(r"([0-9.]+) ms/step", line):
                windows.append(float(found[1]) / 1e3)
        if process.wait():
            sys.exit(f"torchrun ended with status {process.returncode}")
    return statistics.median(windows[1:]), first_s


def by_launcher(args: argparse.Namespace) -> tuple[float, float]:
    """The same under the launcher."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"name": "overhead", "entrypoint": SCRIPT, "args": script_args(args), "workers": args.workers}
        (Path(folder) / "job.yaml").write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "launcher.cli", "submit", "job.yaml", "--json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        summary = json.loads(done.stdout)
        lines = (Path(summary["folder"]) / "events.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] == "Reported" and event["rank"] == 0]
    windows = [(b["at"] - a["at"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(events)]
    return statistics.median(windows[1:]), summary["seconds_to_first_step"]


def main() -> int:
    args = arguments()
    ways = {"torchrun": by_torchrun, "launcher": by_launcher}
    step_s: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.runs):
        for name in sorted(ways, reverse=turn % 2 == 0):
            found, first_s = ways[name](args)
            step_s[name].append(found)
            print(f"{name:9} {1e3 * found:7.1f} ms/step, first step after {first_s:4.1f} s", flush=True)
    more = sorted(100 * (ours / plain - 1) for ours, plain in zip(step_s["launcher"], step_s["torchrun"], strict=True))
    print(
        f"{args.workers} workers on {os.cpu_count()} cores: the launcher's step takes {statistics.median(more):+.1f} % "
        f"({more[0]:+.1f} to {more[-1]:+.1f})"
    )
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
