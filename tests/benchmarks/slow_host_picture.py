"""The README's picture: 25 MB over three fast hosts and a slow one, ours and Gloo in turn, beside the bound (root).

    python -m tests.benchmarks.slow_host_picture docs/assets/slow-host.svg

Runs the bench in the lab several times, plain and with int8, and draws the median; whiskers reach from the best run to
the worst. The figures go into a JSON file beside the picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from tests.paths import REPOSITORY

LAB = "configs/lab/three-fast-one-slow.yaml"
SIZE = "25M"
OURS, GLOO, BOUND = "#2f6fdb", "#8a8f98", "#d0582f"


def measure(codec: str, round_s: float) -> dict[str, Any]:
    """One run of the bench in the lab: seconds of ours, of Gloo, and of the limit for what crosses the links."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "bench.json"
        bench = f"-m collectives bench --sizes {SIZE} --round-s {round_s} --codec {codec} --save {saved}".split()
        lab = [sys.executable, "-m", "launcher.cli", "lab", "run", LAB, "--", sys.executable, *bench]
        subprocess.run(lab, cwd=REPOSITORY, check=True)
        (row,) = json.loads(saved.read_text())["rows"]
    return {"ours_s": row["time_s"], "gloo_s": row["gloo_time_s"], "limit_s": row["limit_s"]}


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Three bars of milliseconds, and a line for the bound that no algorithm can beat with plain float32."""
    from matplotlib.figure import Figure

    bars = [
        ("Gloo", GLOO, [run["gloo_s"] for run in found["none"]]),
        ("narrowgauge", OURS, [run["ours_s"] for run in found["none"]]),
        ("narrowgauge, int8", OURS, [run["ours_s"] for run in found["int8"]]),
    ]
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    panel = figure.subplots()
    for place, (_, color, taken) in enumerate(bars):
        middle = 1e3 * statistics.median(taken)
        spread = [[middle - 1e3 * min(taken)], [1e3 * max(taken) - middle]]
        panel.barh(place, middle, color=color, xerr=spread, ecolor="#777777", height=0.62)
        panel.text(1e3 * max(taken) + 40, place, f"{middle:.0f} ms", va="center", color="#777777")
    bound_ms = 1e3 * statistics.median(run["limit_s"] for run in found["none"])
    panel.axvline(bound_ms, color=BOUND, linestyle="--")
    panel.text(bound_ms - 30, 2.45, f"bound {bound_ms:.0f} ms", color=BOUND, ha="right", va="center")
    panel.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.15e3 * max(run["gloo_s"] for run in found["none"]))
    panel.set_title("all-reduce of 25 MB: three hosts at 1000 Mbit/s, one at 100", fontsize=10, color="#777777")
    panel.tick_params(colors="#777777")
    panel.set_xticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the picture, .svg or .png")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--round-s", type=float, default=0.15)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"none": [], "int8": []}
    for _ in range(options.runs):
        for codec, runs in found.items():
            runs.append(measure(codec, options.round_s))
    document = {"lab": LAB, "bytes": SIZE, "date": date.today().isoformat(), "runs": found}
    options.path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(found, options.path)


if __name__ == "__main__":
    main()
