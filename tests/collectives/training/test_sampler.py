"""Samplers of real ranks: every sample once, by speed, the same order whatever the shares."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import collectives
from collectives.errors import UsageError
from tests.processes import run


class Slow(nn.Module):
    """Takes `sample_s` seconds for each sample."""

    def __init__(self, sample_s: float) -> None:
        super().__init__()
        self.layer, self.sample_s = nn.Linear(1, 1), sample_s

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self.sample_s * len(inputs))
        result: Tensor = self.layer(inputs)
        return result


def sample(rank: int, size: int, store: Any) -> dict[str, Any]:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    found: dict[str, Any] = {"before": collectives.local_batch(12)}
    sampler = collectives.Sampler(50, global_batch=12, seed=5)
    found["lengths"] = len(sampler)
    found["epochs"], found["first"] = [], list(sampler)
    for epoch in (0, 0, 1):
        sampler.set_epoch(epoch)
        found["epochs"].append(list(sampler))
    model = DistributedDataParallel(Slow(0.002 if rank == 0 else 0.02))
    collectives.attach(model)
    data = [(torch.ones(1), index) for index in range(50)]
    for inputs, indices in DataLoader(data, batch_sampler=sampler):  # type: ignore[arg-type]
        collectives.set_weight(len(indices))
        model(inputs).mean().backward()
    found["shares"] = sampler.balance()
    found["after"] = collectives.local_batch(12)
    sampler.set_epoch(0)
    found["balanced"] = list(sampler)
    try:
        collectives.Sampler(50, global_batch=1)
    except UsageError as error:
        found["told"] = str(error)
    found["bucket_mb"] = collectives.bucket_mb()
    dist.destroy_process_group()
    return found


def test_two_ranks_of_unlike_speed() -> None:
    found = run(sample, 2)
    assert [each["before"] for each in found] == [6, 6]
    assert found[0]["lengths"] == 5
    for epoch in range(3):
        assert sorted(index for each in found for batch in each["epochs"][epoch] for index in batch) == list(range(50))
    assert found[0]["epochs"][0] == found[0]["epochs"][1] != found[0]["epochs"][2]
    assert [len(each["epochs"][0][-1]) for each in found] == [1, 1]

    shares = found[0]["shares"]
    assert shares == found[1]["shares"]
    assert sum(shares) == 12
    assert shares[0] > shares[1]
    assert [each["after"] for each in found] == shares
    for batch in range(5):  # the same samples in each global batch, shared otherwise
        before, after = (sorted(found[0][key][batch] + found[1][key][batch]) for key in ("first", "balanced"))
        assert before == after
    assert len(found[0]["balanced"][0]) == shares[0]

    assert "a batch of 1 samples for 2 ranks" in found[0]["told"]
    assert 1 / 16 <= found[0]["bucket_mb"] == found[1]["bucket_mb"] <= 256
