"""Runs every Python sample of the documentation on the ranks of torchrun, with the names that a training script has.

torchrun --nproc-per-node 2 -m tests.docs.run_samples
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import collectives
from tests.docs.pages import Block, blocks

NOT_HERE = ("accelerate", "lightning", "transformers")
"""Packages that the samples of the ecosystem need; tests/collectives/backend/test_ecosystem.py covers that ground."""


def compiled_only(block: Block) -> bool:
    return any(f"import {name}" in block.text or f"{name}." in block.text for name in NOT_HERE)


def names(block: Block) -> dict[str, Any]:
    """What a sample may take as given: an attached model, an optimizer, data. Nothing that it makes itself."""
    module = nn.Linear(4, 2)
    given: dict[str, Any] = {"__name__": "__main__", "collectives": collectives, "torch": torch, "model": module}
    if "init_process_group" not in block.text:
        dist.init_process_group("narrowgauge")
        inputs, targets = torch.randn(64, 4), torch.randn(64, 2)
        wrapped = module if "DistributedDataParallel(model" in block.text else DistributedDataParallel(module)
        given |= {
            "DistributedDataParallel": DistributedDataParallel,
            "model": wrapped,
            "optimizer": torch.optim.SGD(module.parameters(), lr=0.1),
            "dataset": TensorDataset(inputs, targets),
            "inputs": inputs,
            "epochs": 1,
            "steps": 2,
            "loss_of": nn.functional.mse_loss,
            "samples_of": lambda step, mine: (inputs[mine], targets[mine]),
            "shares": collectives.Shares(global_batch=64),
            "train": lambda step: None,
        }
        if "collectives.attach(" not in block.text and isinstance(wrapped, DistributedDataParallel):
            given["attached"] = collectives.attach(wrapped)
        exec("from torch.utils.data import DataLoader", given)
    return given


def main() -> int:
    base, rank, size = next(iter(rendezvous("env://")))
    init = dist.init_process_group
    for number, block in enumerate(blocks("python")):
        if compiled_only(block):
            continue
        # A store of its own for each: groups that are made one after another on one store would read old keys.
        store = dist.PrefixStore(f"sample-{number}", base)
        dist.init_process_group = functools.partial(init, store=store, rank=rank, world_size=size)
        try:
            exec(compile(block.text, str(block), "exec"), names(block))
        except Exception:
            print(f"failed: {block}", flush=True)
            raise
        with contextlib.suppress(ValueError, AssertionError):
            dist.destroy_process_group()
        if rank == 0:
            print(f"ran {block}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
