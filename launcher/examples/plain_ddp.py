"""A script for torchrun that uses torch alone: it asks for the backend "gloo" and imports nothing of this project.

    torchrun --nproc-per-node 2 launcher/examples/plain_ddp.py
    launcher submit configs/unmodified.yaml

Submitted, it runs on the compiled engine without a change: the launcher registers it in place of Gloo.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)  # the same initial weights on all ranks
    hidden = nn.Linear(args.width, args.width)
    layers = nn.Sequential(nn.Linear(16, args.width), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(args.width, 1))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5 / args.width)
    torch.manual_seed(rank)  # other samples on each rank
    began = time.perf_counter()
    for step in range(args.steps):
        inputs = torch.randn(64, 16)
        targets = inputs.sin().sum(dim=1, keepdim=True)
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step % 10 == 0 or step == args.steps - 1):
            print(f"step {step}: loss {loss.item():.4f}")
    if rank == 0:
        print(f"{1e3 * (time.perf_counter() - began) / args.steps:.1f} ms a step")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
