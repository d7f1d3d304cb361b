"""torch.compile over our groups: the numbers of Gloo, from models and from functions that communicate."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import collectives
from tests.processes import run


def trained(rank: int, compiler: str, attach: Callable[[DistributedDataParallel], object]) -> tuple[list[float], Any]:
    """Losses of four steps of a compiled model whose forward broadcasts buffers, and its parameters."""
    torch._dynamo.reset()
    torch.manual_seed(7)
    layers = (nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))
    model = DistributedDataParallel(nn.Sequential(*layers))
    attach(model)
    compiled = torch.compile(model, backend=compiler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        batch = torch.randn(5, 12, generator=torch.Generator().manual_seed(1000 * rank + step))
        loss = compiled(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach() for parameter in model.parameters()]


def waited(given: Tensor) -> Tensor:
    total = given * 2
    dist.all_reduce(total)
    return total + 1


def overlapped(given: Tensor) -> Tensor:
    total = given * 2
    work: Any = dist.all_reduce(total, async_op=True)
    beside = given.sin()
    work.wait()
    return total + beside


def gathered(given: Tensor) -> Tensor:
    parts = [torch.empty_like(given) for _ in range(2)]
    dist.all_gather(parts, given)
    whole = torch.empty(8)
    dist.all_gather_into_tensor(whole, given)
    return torch.cat([*parts, whole]) * 2


def whole_step(given: Tensor) -> Tensor:
    """Forward and backward in one function; what `model` is bound to belongs to its backend."""
    loss = MODEL[0](given[None].repeat(3, 1)).square().mean()
    loss.backward()
    return loss.detach()


def coded(given: Tensor) -> Tensor:
    total = given * 2
    collectives.all_reduce(total, codec="bf16")
    return total + 1


MODEL: list[Any] = []
FUNCTIONS = (waited, overlapped, gathered, whole_step)


def results(rank: int, backend: str, compiler: str) -> list[Any]:
    torch.manual_seed(1)
    MODEL[:] = [DistributedDataParallel(nn.Linear(4, 4))]
    compiled = [torch.compile(function, backend=compiler)(torch.arange(4.0) + rank) for function in FUNCTIONS]
    gradients = [parameter.grad for parameter in MODEL[0].parameters()]
    return [trained(rank, compiler, lambda model: None), compiled, gradients]


def both(rank: int, size: int, store: Any, compiler: str) -> None:
    outcomes = {}
    for backend in ("gloo", "narrowgauge"):
        meeting = dist.PrefixStore(backend, store)
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size)
        outcomes[backend] = results(rank, backend, compiler)
        dist.barrier()
        dist.destroy_process_group()
    torch.testing.assert_close(outcomes["narrowgauge"], outcomes["gloo"], rtol=0, atol=0)


def with_hooks(rank: int, size: int, store: Any, compiler: str) -> None:
    """Our own hooks and calls, which Gloo has not: as without the compiler."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    torch.testing.assert_close(torch.compile(coded, backend=compiler)(torch.ones(4)), torch.full((4,), 5.0))
    for codec in ("none", "int8", "low-rank"):
        compiled = trained(rank, compiler, lambda model, codec=codec: collectives.attach(model, codec))
        plain = trained(rank, "eager", lambda model, codec=codec: collectives.attach(model, codec))
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    MODEL[:] = [DistributedDataParallel(nn.Linear(4, 4))]
    collectives.attach(MODEL[0], "int8")
    torch.compile(whole_step, backend=compiler)(torch.arange(4.0) + rank)
    dist.barrier()
    dist.destroy_process_group()


def test_compiled_programs_compute_what_they_compute_over_gloo() -> None:
    run(both, 2, "aot_eager")


@pytest.mark.slow
def test_compiled_models_that_are_attached() -> None:
    run(with_hooks, 2, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ for the CPU and needs g++")
def test_inductor() -> None:
    run(both, 2, "inductor", deadline_s=600)


def test_a_group_does_not_load_dynamo() -> None:
    """It takes seconds, which a program that compiles nothing need not spend."""
    program = (
        "import sys, collectives, torch.distributed as dist\n"
        "import collectives.backend.process_group, collectives.training.ddp\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
