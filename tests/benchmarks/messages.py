"""send and recv: this backend and Gloo in turn, between the first and the last rank; prints the median of the rounds.

torchrun --nproc-per-node 2 -m tests.benchmarks.messages
launcher lab run configs/lab/two-hosts-four-ranks.yaml -- python -m tests.benchmarks.messages

Microseconds are those of half a round trip (ping-pong); GB/s (1e9 bytes) those of one message after the other in one
direction, until the receiver has answered the last. Between hosts the limit is the narrower of the two links.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

LATENCIES = (8, 4096)
STREAMS = (1_000_000, 25_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each backend (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement, roughly (default 0.5)")
    options = parser.parse_args()
    import collectives  # registers the backend

    del collectives
    dist.init_process_group("narrowgauge", timeout=timedelta(seconds=300))
    groups = {"narrowgauge": dist.group.WORLD, "Gloo": dist.new_group(backend="gloo")}
    measured: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, group in groups.items():
            for num_bytes in LATENCIES:
                measured[num_bytes, name].append(1e6 * repeated(ping_pong, num_bytes, group, options.seconds) / 2)
            for num_bytes in STREAMS:
                measured[num_bytes, name].append(num_bytes / repeated(one_way, num_bytes, group, options.seconds) / 1e9)
    if dist.get_rank() == 0:
        report({key: statistics.median(values) for key, values in measured.items()}, options.json)
    dist.barrier()
    dist.destroy_process_group()


def repeated(step: Callable[[torch.Tensor, int, Any, int], None], num_bytes: int, group: Any, wanted_s: float) -> float:
    """Seconds of one step, from as many as take about `wanted_s`; the first and last rank take part, others wait."""
    ends = (0, dist.get_world_size() - 1)
    tensor = torch.zeros(num_bytes, dtype=torch.uint8)
    count, seconds = 4, 0.0
    while True:
        dist.barrier()
        began = time.perf_counter()
        if dist.get_rank() in ends:
            peer = ends[1] if dist.get_rank() == 0 else 0
            step(tensor, peer, group, count)
        took = torch.tensor([time.perf_counter() - began if dist.get_rank() == 0 else 0.0])
        dist.broadcast(took, 0)
        seconds = took.item()
        if seconds > wanted_s / 2:
            return seconds / count
        count = int(count * min(20.0, wanted_s / max(seconds, 1e-6))) + 1


def ping_pong(tensor: torch.Tensor, peer: int, group: Any, count: int) -> None:
    for _ in range(count):
        if dist.get_rank() == 0:
            dist.send(tensor, peer, group)
            dist.recv(tensor, peer, group)
        else:
            dist.recv(tensor, peer, group)
            dist.send(tensor, peer, group)


def one_way(tensor: torch.Tensor, peer: int, group: Any, count: int) -> None:
    for _ in range(count):
        if dist.get_rank() == 0:
            dist.send(tensor, peer, group)
        else:
            dist.recv(tensor, peer, group)
    answer = torch.zeros(1)
    if dist.get_rank() == 0:
        dist.recv(answer, peer, group)
    else:
        dist.send(answer, peer, group)


def report(medians: dict[tuple[int, str], float], as_json: bool) -> None:
    rows = [
        {
            "num_bytes": num_bytes,
            "unit": "us" if num_bytes in LATENCIES else "GB/s",
            "narrowgauge": medians[num_bytes, "narrowgauge"],
            "gloo": medians[num_bytes, "Gloo"],
        }
        for num_bytes in (*LATENCIES, *STREAMS)
    ]
    if as_json:
        print(json.dumps({"ranks": dist.get_world_size(), "rows": rows}))
        return
    print(f"send and recv between ranks 0 and {dist.get_world_size() - 1}")
    print(f"{'bytes':>10}{'narrowgauge':>13}{'Gloo':>10}")
    for row in rows:
        print(f"{row['num_bytes']:>10}{row['narrowgauge']:>13.4g}{row['gloo']:>10.4g} {row['unit']}")


if __name__ == "__main__":
    main()
