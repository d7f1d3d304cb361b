"""Are streams joined on a real device: ``torchrun --nproc-per-node 2 -m tests.benchmarks.device_streams``.

Both ranks use the first accelerator. Corrections that run in futures' callbacks (of sums of weights, of low-rank's
matrices) are delayed by a long kernel on whatever stream they run, so that a stream which does not wait for them reads
what was there before. The program trains in a side stream and compares each gradient with one of the CPU's. Printed for
each case: how many steps were wrong, of how many; the program ends with 1 if any was. It takes less than a minute.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import collectives
from collectives.training import low_rank, sample_weights

STEPS = 20
DELAY = 512  # rows of a square matrix that is multiplied over and over, for some milliseconds
CASES = {"weights": "none", "low-rank": "low-rank", "weights, int8": "int8"}


@contextlib.contextmanager
def delayed(device: torch.device) -> Iterator[None]:
    """Callbacks queue their work behind a long kernel on their current stream."""
    matrix = torch.ones(DELAY, DELAY, device=device)

    def behind(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            product = matrix
            for _ in range(50):
                product = product @ matrix / DELAY
            return function(*arguments)

        return call

    correct, finish = sample_weights.Weights.correct, low_rank.LowRank._finish
    sample_weights.Weights.correct = behind(correct)  # type: ignore[method-assign]
    low_rank.LowRank._finish = behind(finish)  # type: ignore[method-assign]
    try:
        yield
    finally:
        sample_weights.Weights.correct = correct  # type: ignore[method-assign]
        low_rank.LowRank._finish = finish  # type: ignore[method-assign]


def gradients(device: torch.device, codec: str) -> list[Tensor]:
    """Each step's gradients, copied to the host by the stream that trained, without waiting for other streams."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 64)).to(device)
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.1)  # type: ignore[arg-type]
    attached = collectives.attach(ddp, codec=codec)
    rank, seen = dist.get_rank(), []
    for step in range(STEPS):
        attached.set_weight(float(1 + (step + rank) % 3 + step % 2))  # the total changes, so means are corrected
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(100 * step + rank)).to(device)
        model.zero_grad()
        ddp(inputs).square().mean().backward()
        seen.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).cpu())  # type: ignore[union-attr]
    return seen


def main() -> int:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        print("skipped: this machine has no accelerator")
        return 0
    device = torch.device(accelerator.type, 0)
    dist.init_process_group("narrowgauge")
    wrong = 0
    for name, codec in CASES.items():
        wanted = gradients(torch.device("cpu"), codec)
        stream = torch.Stream(device)
        with delayed(device), stream:
            got = gradients(device, codec)
        # int8 rounds to other steps where the device's gradients differ in their last bits
        apart = 0.1 if codec == "int8" else 0.01
        bad = sum(bool((a - b).norm() > apart * b.norm()) for a, b in zip(got, wanted, strict=True))
        print(f"rank {dist.get_rank()}, {name}: {bad} of {STEPS} steps wrong", flush=True)
        wrong += bad
    dist.destroy_process_group()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
