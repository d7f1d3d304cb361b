"""What a group costs beside Gloo's: time of `new_group`, of its first op, and open files.

torchrun --nproc-per-node 8 -m tests.benchmarks.new_groups

Groups of all ranks, ours and Gloo's in turn. Ours form whole, see "Forming" in docs/internals/engine.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=10, help="of each backend (default 10)")
    options = parser.parse_args()
    import collectives  # registers the backend

    del collectives
    torch.set_num_threads(1)
    dist.init_process_group("narrowgauge")
    measured: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    groups = []
    for _ in range(options.groups):
        for backend in ("narrowgauge", "gloo"):
            group, row = formed(backend)
            groups.append(group)  # a group without a reference closes
            measured[backend].append(row)
    if dist.get_rank() == 0:
        print(f"{'backend':12} {'new_group ms':>13} {'first op ms':>12} {'open files':>11}   median (worst)")
        for backend, rows in measured.items():
            form, first, files = zip(*rows, strict=True)
            print(
                f"{backend:12} {statistics.median(form):6.1f} ({max(form):4.0f}) {statistics.median(first):5.2f} "
                f"({max(first):4.1f}) {statistics.median(files):11g}"
            )
    dist.barrier()
    dist.destroy_process_group()


def formed(backend: str) -> tuple[Any, tuple[float, float, int]]:
    """A new group of all ranks: milliseconds until all have it, those of its first all-reduce, and its open files."""
    dist.barrier()
    before, began = open_files(), time.perf_counter()
    group = dist.new_group(backend=backend)
    dist.barrier()
    form_s, began = time.perf_counter() - began, time.perf_counter()
    dist.all_reduce(torch.ones(1000), group=group)
    return group, (1e3 * form_s, 1e3 * (time.perf_counter() - began), open_files() - before)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
