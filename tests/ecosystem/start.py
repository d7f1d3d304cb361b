"""One rank of a program: ``python start.py BACKEND DEVICE FOLDER SCRIPT [ARGUMENTS...]``, under torchrun or alone.

Runs the script unchanged, as the main program, and leaves in FOLDER what this rank did: what it printed, and a record
with the weights and gradients after each step of each optimizer, and the name of each process group. Both backends
are started here, so that the only difference between two runs is `collectives.install`. DEVICE is what the script
wants: "cpu" or "accelerator", see `as_cpu`.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.ecosystem import as_cpu
from tests.ecosystem.program import OURS

MAX_STEPS = 1000  # of which the record has more than a count


def main() -> None:
    backend, device, folder, script, *arguments = sys.argv[1:]
    rank = int(os.environ.get("RANK", "0"))
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder) / f"rank-{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ["ECOSYSTEM_BACKEND"] = backend
    torch.set_num_threads(1)
    torch.manual_seed(1000 + rank)
    if backend == OURS:
        import collectives

        collectives.install(replace=("gloo", "nccl"))
    else:
        _gloo_for_nccl()
    if device == "accelerator":
        as_cpu.pretend()
    record: dict[str, Any] = {"groups": [], "steps": []}
    _note_groups(record["groups"])
    _note_steps(record["steps"])
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.stdout.flush()
        (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(record))


def _gloo_for_nccl() -> None:
    """A script's "nccl" is Gloo here; without an accelerator torch has no other to compare with."""
    make = c10d._new_process_group_helper

    def make_group(size: int, rank: int, ranks: list[int], backend: Any, *more: Any, **named: Any) -> Any:
        return make(size, rank, ranks, dist.Backend("gloo") if str(backend) == "nccl" else backend, *more, **named)

    c10d._new_process_group_helper = make_group


def _note_groups(groups: list[str]) -> None:
    """Keep the true name of each group that this rank is a member of."""
    make = c10d._new_process_group_helper

    def make_group(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        if isinstance(made[0], dist.ProcessGroup):
            groups.append(made[0].name())
        return made

    c10d._new_process_group_helper = make_group


def _note_steps(steps: list[list[Any]]) -> None:
    """Keep [digest, norm of the weights, norm of the gradients] after each step of each optimizer."""

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if len(steps) >= MAX_STEPS:
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        steps.append([digest([*weights, *gradients]), _norm(weights), _norm(gradients)])

    register_optimizer_step_post_hook(note)


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Twelve hexadecimal digits of the hash of all bytes of this rank's part of tensors."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        local = _local(tensor).contiguous()
        hashed.update(local.view(torch.uint8).numpy().tobytes() if local.numel() else b"")
    return hashed.hexdigest()[:12]


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    """The norm of this rank's part of tensors, taken in float64."""
    squares = (float(_local(tensor).double().square().sum()) for tensor in tensors)
    return float(sum(squares)) ** 0.5


def _local(tensor: torch.Tensor) -> torch.Tensor:
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


if __name__ == "__main__":
    main()
