"""Shares of real ranks, one of them slow, and samplers that are stopped and go on."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import collectives
from collectives.errors import UsageError
from collectives.training import step_timer
from collectives.training.rebalance import Rebalanced, listeners
from tests.processes import run

SAMPLE_S = 0.001


class Clock:
    """In place of perf_counter: the time is what `sleep` has passed, and a little for each reading."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1e-9
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class Slow(nn.Module):
    """Takes `sample_s` seconds for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sample_s, self.sleep = nn.Linear(1, 1), SAMPLE_S, time.sleep

    def forward(self, inputs: Tensor) -> Tensor:
        self.sleep(self.sample_s * len(inputs))
        result: Tensor = self.layer(inputs)
        return result


def train(
    rank: int, size: int, store: Any, rebalance: bool | None, slow_from: int, steps: int, really: bool = False
) -> dict[str, Any]:
    """The last rank takes four times as long from step `slow_from` on, by a given clock or really."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    torch.manual_seed(0)
    model = DistributedDataParallel(Slow())
    if not really:
        clock = Clock()
        step_timer.perf_counter, model.module.sleep = clock, clock.sleep
    collectives.attach(model)
    shares = collectives.Shares(global_batch=32, rebalance=rebalance)
    told: list[Rebalanced] = []
    listeners.append(told.append)
    found: dict[str, Any] = {"each": [], "gradients": [], "wanted": []}
    for step in range(steps):
        if rank == size - 1 and step >= slow_from:
            model.module.sample_s = 4 * SAMPLE_S
        whole = torch.randn(32, 1, generator=torch.Generator().manual_seed(step))
        mine = shares.next()
        collectives.set_weight(mine.stop - mine.start)
        model.zero_grad()
        model(whole[mine]).square().mean().backward()
        found["each"].append(list(shares.each))
        found["gradients"].append(model.module.layer.weight.grad.item())
        alone = nn.Linear(1, 1)
        alone.load_state_dict(model.module.layer.state_dict())
        alone(whole).square().mean().backward()
        found["wanted"].append(alone.weight.grad.item())
    found["told"] = [(change.old, change.new) for change in told]
    found["state"] = shares.state_dict()
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("really", [False, pytest.param(True, marks=pytest.mark.measured)])
def test_the_first_measured_shares_are_taken_at_once(really: bool) -> None:
    found = run(train, 2, True, 0, 8, really)
    assert found[0]["each"] == found[1]["each"]
    assert found[0]["each"][:3] == [[16, 16]] * 3
    slow = found[0]["each"][-1][1]
    assert 5 <= slow <= 9 if really else slow == 6  # 6.4 would be ideal
    assert found[0]["each"][3:] == [[32 - slow, slow]] * 5
    assert found[0]["told"] == [((16, 16), (32 - slow, slow))]
    assert found[1]["told"] == []
    for each in found:
        torch.testing.assert_close(each["gradients"], each["wanted"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("really", [False, pytest.param(True, marks=pytest.mark.measured)])
def test_later_changes_are_bounded_and_twenty_steps_apart(really: bool) -> None:
    found = run(train, 2, True, 4, 50, really)
    assert found[0]["each"] == found[1]["each"]
    slow = [each[1] for each in found[0]["each"]]
    changed = [step for step in range(1, 50) if slow[step] != slow[step - 1]]
    assert changed == [23, 43]
    assert slow[0] == 16
    assert slow[23] == 13
    assert slow[43] == 11


def test_without_rebalancing_shares_stay() -> None:
    found = run(train, 2, None, 0, 8, environment={"NARROWGAUGE_REBALANCE": "0", "NARROWGAUGE_SHARES": "3,1"})
    assert found[0]["each"] == [[24, 8]] * 8


def wrong(rank: int, size: int, store: Any) -> str | None:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    try:
        collectives.Shares(global_batch=8)
    except UsageError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return None


def test_variables_that_say_something_else() -> None:
    assert "NARROWGAUGE_REBALANCE is 'yes'; wanted 0 or 1" in run(
        wrong, 2, environment={"NARROWGAUGE_REBALANCE": "yes"}
    )
    (told, _) = run(wrong, 2, environment={"NARROWGAUGE_SHARES": "1,2,3"})
    assert "NARROWGAUGE_SHARES is '1,2,3'; wanted 2 numbers" in told


def half_a_pass(rank: int, size: int, store: Any) -> dict[str, Any]:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    sampler = collectives.Sampler(50, global_batch=12, seed=3)
    sampler.set_epoch(1)
    batches = iter(sampler)
    found = {"seen": [next(batches), next(batches)], "state": sampler.state_dict()}
    dist.destroy_process_group()
    return found


def the_rest(rank: int, size: int, store: Any, state: dict[str, Any], global_batch: int) -> dict[str, Any]:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    sampler = collectives.Sampler(50, global_batch, seed=3)
    sampler.load_state_dict(state)
    sampler.set_epoch(sampler.epoch)
    found: dict[str, Any] = {"length": len(sampler), "rest": list(sampler)}
    sampler.set_epoch(2)
    found["next"] = list(sampler)
    other = collectives.Sampler(50, global_batch, seed=3)
    other.seek(2 * len(other) + 1)
    found["sought"] = (other.epoch, list(other))
    try:
        collectives.Sampler(50, global_batch, seed=4).load_state_dict(state)
    except UsageError as error:
        found["told"] = str(error)
    dist.destroy_process_group()
    return found


def test_a_sampler_goes_on_with_another_number_of_ranks_and_another_batch() -> None:
    first = run(half_a_pass, 2)
    for size, global_batch, length in ((2, 12, 3), (3, 12, 2), (1, 7, 4)):
        rest = run(the_rest, size, first[0]["state"], global_batch)
        seen = [index for each in first for batch in each["seen"] for index in batch]
        left = [index for each in rest for batch in each["rest"] for index in batch]
        whole = [index for each in rest for batch in each["next"] for index in batch]
        assert rest[0]["length"] == length
        assert len(set(seen + left)) == len(seen + left) >= 50 - (size - 1)
        assert len(whole) >= 50 - (size - 1)
        assert [each["sought"] for each in rest] == [(2, each["next"][1:]) for each in rest]
        assert "seed 3; this sampler has 4" in rest[0]["told"]
