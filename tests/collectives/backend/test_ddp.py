"""DDP trains the same over narrowgauge as over torch's own Gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import collectives
from tests.processes import run

STEPS = 10
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several buckets": {"bucket_cap_mb": 0.02},
    "find unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "gradient as bucket view": {"gradient_as_bucket_view": True},
    "fp16 hook": {},
    "PowerSGD hook": {},
}


class Model(nn.Module):
    """Small, with a buffer that is broadcast and, if asked, a branch that some ranks skip."""

    def __init__(self, branching: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(20, 64)
        self.norm = nn.BatchNorm1d(64)
        self.branch = nn.Linear(64, 64)
        self.leave = nn.Linear(64, 5)
        self.branching = branching

    def forward(self, inputs: Tensor, take_branch: bool) -> Tensor:
        hidden = self.norm(self.enter(inputs)).relu()
        if take_branch or not self.branching:
            hidden = hidden + self.branch(hidden).relu()
        return self.leave(hidden)


def add_hook(model: DistributedDataParallel, variant: str) -> None:
    """Torch's own hooks; PowerSGD's calls and awaits further collectives from its callbacks."""
    if variant == "fp16 hook":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif variant == "PowerSGD hook":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def train(rank: int, variant: str) -> tuple[list[float], list[Tensor]]:
    settings = VARIANTS[variant]
    torch.manual_seed(rank)  # DDP has to make the parameters equal
    model = DistributedDataParallel(Model(bool(settings.get("find_unused_parameters"))), **settings)
    add_hook(model, variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(100 + rank)
    losses = []
    for step in range(STEPS):
        inputs = torch.randn(16, 20, generator=generator)
        targets = torch.randint(5, (16,), generator=generator)
        optimizer.zero_grad()
        if step == 5 and "static_graph" not in settings:
            with model.no_sync():
                nn.functional.cross_entropy(model(inputs, True), targets).backward()
        loss = nn.functional.cross_entropy(model(inputs, (step + rank) % 2 == 0), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach().clone() for parameter in model.parameters()]


def compare(rank: int, size: int, store: Any, executor: str) -> dict[str, tuple[float, float, float]]:
    """By variant: first loss on Gloo, largest difference of a loss, largest difference of a parameter."""
    collectives.configure(backend=executor)
    # Kept, because torch's Gloo aborts the process if its last reference goes on one of its own threads, and PowerSGD's
    # callbacks can bring that about.
    figures, kept = {}, []
    for name in VARIANTS:
        outcomes = []
        for backend in ("gloo", "narrowgauge"):
            meeting = dist.PrefixStore(f"{name}/{backend}", store)
            dist.init_process_group(backend, store=meeting, rank=rank, world_size=size)
            kept.append(dist.group.WORLD)
            outcomes.append(train(rank, name))
            dist.destroy_process_group()
        (losses, parameters), (our_losses, our_parameters) = outcomes
        figures[name] = (
            losses[0],
            max(abs(ours - theirs) for ours, theirs in zip(our_losses, losses, strict=True)),
            max((ours - theirs).abs().max().item() for ours, theirs in zip(our_parameters, parameters, strict=True)),
        )
    return figures


@pytest.fixture(scope="module", params=["narrowgauge", "gloo"])
def figures(request: pytest.FixtureRequest) -> list[dict[str, tuple[float, float, float]]]:
    return run(compare, 3, request.param, deadline_s=280)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_parameters_as_over_gloo(figures: list[dict[str, tuple[float, float, float]]], variant: str) -> None:
    for of_rank in figures:
        first_loss, loss_difference, parameter_difference = of_rank[variant]
        assert first_loss > 1
        tolerance = 2e-3 if "hook" in variant else 1e-5  # Gloo rounds fp16 at every step of its sum
        assert loss_difference < tolerance
        assert parameter_difference < tolerance


def exposed_wait(rank: int, size: int, store: Any) -> tuple[float, float]:
    """Seconds that ten backward passes added to stats()'s wait, and that ops were under way."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    model = DistributedDataParallel(nn.Linear(1000, 1000))
    before = collectives.stats()
    for _ in range(10):
        model(torch.ones(2, 1000)).sum().backward()
    after = collectives.stats()
    dist.destroy_process_group()
    return after["wait_s"] - before["wait_s"], after["busy_s"] - before["busy_s"]


def test_ddp_waits_are_metered() -> None:
    for wait_s, busy_s in run(exposed_wait, 2):
        assert wait_s > 0
        assert busy_s > 0


@pytest.mark.measured
def test_ddp_waits_no_longer_than_ops_take() -> None:
    for wait_s, busy_s in run(exposed_wait, 2):
        assert 0 < wait_s < busy_s + 0.1  # a future may settle a little after its op has ended


def shard(rank: int, size: int, store: Any) -> tuple[float, float]:
    """FSDP2's full parameters after training, against a single process's on the whole batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    inputs, outcomes = torch.randn(8, 20, generator=torch.Generator().manual_seed(3)), []
    for sharded in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 31), nn.ReLU(), nn.Linear(31, 7))
        if sharded:
            fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs.chunk(size)[rank] if sharded else inputs).square().mean().backward()
            optimizer.step()
        weight: Any = model[0].weight
        outcomes.append(weight.full_tensor() if sharded else weight)
    dist.destroy_process_group()
    return (outcomes[0] - outcomes[1]).abs().max().item(), outcomes[1].abs().max().item()


def test_fully_sharded() -> None:
    for difference, largest in run(shard, 2):
        assert difference < 1e-6
        assert largest > 0.1
