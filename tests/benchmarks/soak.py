"""Half an hour of random collectives over mixed links: is every result right, and does anything grow (root)?

    python -m tests.benchmarks.soak --minutes 30

Four hosts of 1000, 500, 250 and 100 Mbit/s with two ranks each, in a lab. The cases are those of
`tests/random_collectives.py`: kinds, sizes, dtypes, reductions, strides, synchronous and not, on four groups. Each
result is compared with the oracle's. Messages between neighbours, and a group that is made and destroyed, come now and
then.

Growth is counted from the end of the first third, when all tables have been made that are kept: memory, threads and
descriptors of each rank; the largest of all ranks is shown. Memory is what is resident after the C library has given
back what is free: the oracle's arrays come and go, and leave its heaps full of holes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import yaml

from tests.paths import REPOSITORY
from tests.random_collectives import IN_FLIGHT, Running, draw

LAB = {
    "name": "soak",
    "hosts": [
        {"name": name, "mbit": mbit, "ranks": 2} for name, mbit in zip("abcd", (1000, 500, 250, 100), strict=True)
    ],
}
SEED = 0
ROUND, ROUNDS_TO_GROUP = 100, 10  # collectives between two looks at the clock; looks between two new groups
MIB = 1 << 20


def usage() -> torch.Tensor:
    """MiB of resident memory, threads and descriptors of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    return torch.tensor(
        [process.memory_info().rss / MIB, process.num_threads(), process.num_fds()], dtype=torch.float64
    )


def message(rank: int, size: int, number: int) -> None:
    """A message to the next rank, and one from the rank before."""
    count = 1 + 997 * (number % 300)
    given, got = torch.full((count,), float(rank)), torch.zeros(count)
    sending = dist.isend(given, (rank + 1) % size, tag=number)
    dist.recv(got, (rank - 1) % size, tag=number)
    sending.wait()
    if not torch.equal(got, torch.full((count,), float((rank - 1) % size))):
        raise AssertionError(f"message {number}: rank {rank} got something else")


def passing_group(size: int) -> None:
    """A group that lives for one collective."""
    group = dist.new_group(list(range(size)))
    total = torch.ones(1000)
    dist.all_reduce(total, group=group)
    if not torch.equal(total, torch.full((1000,), float(size))):
        raise AssertionError("wrong sum in a new group")
    dist.destroy_process_group(group)


def soak(seconds: float) -> None:
    """One rank; needs torchrun's environment."""
    torch.set_num_threads(1)
    dist.init_process_group("narrowgauge")
    rank, size = dist.get_rank(), dist.get_world_size()
    memberships = [tuple(range(size)), tuple(range(size - 1)), (0, size - 1), tuple(range(1, size))]
    groups = {members: dist.new_group(list(members)) for members in memberships}
    in_flight: list[Running] = []
    started, rounds, before = time.monotonic(), 0, None
    while True:
        for number in range(rounds * ROUND, (rounds + 1) * ROUND):
            case = draw(number, SEED, memberships)
            if rank not in case.members:
                continue
            in_flight.append(Running(case, SEED, groups[case.members], case.members.index(rank)))
            while len(in_flight) > IN_FLIGHT or (in_flight and not case.asynchronous):
                in_flight.pop(0).check()
        rounds += 1
        while in_flight:
            in_flight.pop(0).check()
        message(rank, size, rounds)
        if rounds % ROUNDS_TO_GROUP == 0:
            passing_group(size)
        passed_s = torch.tensor([time.monotonic() - started])
        dist.broadcast(passed_s, 0)  # all ranks stop at the same round
        if before is None and passed_s >= seconds / 3 and rounds > ROUNDS_TO_GROUP:
            before = usage()
        if passed_s >= seconds:
            break
    grown = usage() - before if before is not None else torch.zeros(3)
    now = usage()
    for figures in (grown, now):
        dist.all_reduce(figures, dist.ReduceOp.MAX)
    if rank == 0:
        took = f"{seconds / 60:g} minutes"
        print(f"{rounds * ROUND} collectives on {size} ranks and {len(groups)} groups in {took}, wrong: 0")
        print(f"{rounds} messages from each rank, {rounds // ROUNDS_TO_GROUP} groups made and destroyed, wrong: 0")
        for name, more, whole in zip(
            ("MiB resident", "threads", "descriptors"), grown.tolist(), now.tolist(), strict=True
        ):
            print(f"{name}, largest of all ranks: {whole:.0f} at the end, grown by {more:+.1f} since the first third")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    if "RANK" in os.environ:
        soak(60 * options.minutes)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "soak.yaml"
        path.write_text(yaml.safe_dump(LAB), encoding="utf-8")
        ranks = [sys.executable, "-m", "tests.benchmarks.soak", "--minutes", str(options.minutes)]
        command: list[Any] = [sys.executable, "-m", "launcher.cli", "lab", "run", str(path), "--", *ranks]
        sys.exit(subprocess.run(command, cwd=REPOSITORY, check=False).returncode)


if __name__ == "__main__":
    main()
