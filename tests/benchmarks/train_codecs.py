"""DDP training of a small GPT (2.1 million parameters) with each codec, beside Gloo with and without torch's PowerSGD.

launcher lab run configs/lab/four-slow.yaml -- python -m tests.benchmarks.train_codecs
torchrun --nproc-per-node 4 -m tests.benchmarks.train_codecs --steps 20 --seeds 1 --methods gloo,none,low-rank

For each method and seed the same model on the same batches. Printed by rank 0, one row for each method:

    steps/s    median step of the first seed's training
    ratio      that over Gloo's
    loss       mean training loss of all ranks over the last tenth of the steps: mean over seeds, and their range
    exposed    share of a step that is not computing, 1 - (a step without communication) / (a step): overlapped with the
               backward pass, in DDP's own buckets, and in one bucket, which has nothing to overlap with

PowerSGD on Gloo has one bucket only: torch's hook starts ops from callbacks, and with several buckets ranks could start
them in different orders. Exit status 1 if ranks end up with different parameters.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import collectives
from launcher.examples.train_gpt import GPT, batch, learning_rate, loss_of, read_stdlib

METHODS = ("gloo", "gloo-powersgd", "none", "bf16", "int8", "int4", "low-rank", "auto")
ONE_BUCKET_MB = 1000.0
WARM_STEPS = 3


@dataclass
class Row:
    """Results of one method."""

    method: str
    losses: list[float] = field(default_factory=list)
    step_s: float = 0.0
    one_bucket_s: float = 0.0
    compute_s: float = 0.0


class Training:
    """One model in training over the default group.

    Args:
        method: one of METHODS.
        seed: of the model and the batches.
        one_bucket: all gradients in one bucket.
    """

    def __init__(self, method: str, seed: int, one_bucket: bool, data: Tensor, args: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        model = GPT(args.context, args.layers, args.width, args.heads)
        powersgd = method == "gloo-powersgd"
        self.ddp = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET_MB if one_bucket or powersgd else None)
        if powersgd:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
            self.ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif method != "gloo":
            collectives.attach(self.ddp, method)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
        self.draw = torch.Generator().manual_seed(seed * dist.get_world_size() + dist.get_rank())
        self.data, self.args, self.step = data, args, 0

    def steps(self, count: int, communicate: bool = True) -> tuple[list[float], list[float]]:
        """Losses of this rank, and seconds, of so many more steps."""
        losses, seconds = [], []
        dist.barrier()
        for _ in range(count):
            began = perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.args)
            with nullcontext() if communicate else self.ddp.no_sync():
                loss = loss_of(self.ddp, *batch(self.data, self.args.batch, self.args.context, self.draw))
                loss.backward()
            nn.utils.clip_grad_norm_(self.ddp.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            losses.append(loss.item())
            seconds.append(perf_counter() - began)
        return losses, seconds


def measured(method: str, data: Tensor, args: argparse.Namespace) -> Row:
    """Train with every seed, then time the first one's model without overlap and without communication."""
    row = Row(method)
    for seed in range(1, args.seeds + 1):
        training = Training(method, seed, False, data, args)
        losses, seconds = training.steps(args.steps)
        _check_equal(training.ddp)
        row.losses.append(_mean_of_ranks(statistics.fmean(losses[-max(1, args.steps // 10) :])))
        if seed == 1:
            row.step_s = statistics.median(seconds[WARM_STEPS:])
            row.compute_s = statistics.median(training.steps(args.timed_steps, communicate=False)[1])
    timed = Training(method, 1, True, data, args).steps(WARM_STEPS + args.timed_steps)[1]
    row.one_bucket_s = statistics.median(timed[WARM_STEPS:])
    return row


def _mean_of_ranks(value: float) -> float:
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _check_equal(model: nn.Module) -> None:
    """All ranks have the same bits, as they must under every codec."""
    digest = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    lowest, highest = digest.clone(), digest.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        sys.exit(f"rank {dist.get_rank()}: the ranks' parameters differ by {float((highest - lowest).max())}")


def table(rows: list[Row]) -> str:
    """For people."""
    gloo_s = next((row.step_s for row in rows if row.method == "gloo"), None)
    lines = [f"{'method':14}{'steps/s':>9}{'ratio':>7}{'loss':>8}{'range':>18}{'exposed':>9}{'one bucket':>12}"]
    for row in rows:
        ratio = f"{gloo_s / row.step_s:.2f}" if gloo_s else "-"
        span = f"{min(row.losses):.4f} to {max(row.losses):.4f}"
        exposed, without = (1 - row.compute_s / taken for taken in (row.step_s, row.one_bucket_s))
        lines.append(
            f"{row.method:14}{1 / row.step_s:>9.3f}{ratio:>7}{statistics.fmean(row.losses):>8.4f}{span:>18}"
            f"{exposed:>9.1%}{without:>12.1%}"
        )
    return "\n".join(lines)


def main() -> int:
    args = arguments()
    torch.set_num_threads(1)
    store, rank, size = next(dist.rendezvous("env://"))
    data, _ = read_stdlib()
    rows = []
    kept: list[Any] = []  # torch's Gloo aborts the process if PowerSGD's callbacks drop its last reference
    for method in args.methods:
        backend = "gloo" if method.startswith("gloo") else "narrowgauge"
        dist.init_process_group(backend, store=dist.PrefixStore(method, store), rank=rank, world_size=size)
        kept.append(dist.group.WORLD)
        rows.append(measured(method, data, args))
        if rank == 0:
            print(f"{method}: {rows[-1]}", file=sys.stderr, flush=True)
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        print(f"{size} ranks, {args.steps} steps, {args.seeds} seeds, {os.cpu_count()} cores")
        print(table(rows), flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="gloo,gloo-powersgd,none,int8,int4,low-rank", help=", ".join(METHODS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timed-steps", type=int, default=10, help="for the exposed shares")
    parser.add_argument("--batch", type=int, default=16, help="windows per rank and step")
    parser.add_argument("--context", type=int, default=64, help="bytes in a window")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=208)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    unknown = [method for method in args.methods if method not in METHODS]
    if unknown or args.steps <= WARM_STEPS:
        parser.error(f"methods are out of {', '.join(METHODS)}, steps are more than {WARM_STEPS}")
    return args


if __name__ == "__main__":
    sys.exit(main())
