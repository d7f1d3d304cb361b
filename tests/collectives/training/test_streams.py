"""What callbacks queue on a device is ordered with the streams of whoever waits, on a fake device that checks it."""

from __future__ import annotations

import functools
import gc
from typing import Any

import torch
import torch.distributed as dist

from collectives.backend.c10d import all_reduce_options
from collectives.backend.work import Promise
from collectives.training.bucket_layout import BucketLayout
from collectives.training.error_feedback import Bucket
from collectives.training.low_rank import LowRank
from tests.collectives.backend.test_staging import needs_fake_device
from tests.collectives.fake_streams import Stream, StreamTensor, install, problems
from tests.processes import run


class Halving:
    """Weights whose total was twice that of the step before."""

    def correct(self, mean: torch.Tensor) -> None:
        mean.mul_(0.5)


def average(flat: torch.Tensor) -> Any:
    return dist.group.WORLD.allreduce([flat], all_reduce_options(dist.ReduceOp.AVG))  # type: ignore[union-attr]


def corrected(flat: torch.Tensor, pending: Any) -> Promise:
    """As the hook does it."""
    return Promise(flat).follow(pending, functools.partial(Halving().correct, flat))


def on_streams(rank: int, size: int, store: Any) -> list[str]:
    install()
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    names = {torch.nn.Parameter(torch.ones(40, 30)): "matrix", torch.nn.Parameter(torch.ones(7)): "vector"}
    with Stream().current():
        # the average, with a correction in a callback
        flat = StreamTensor(torch.ones(1207))
        flat.mul_(2.0)
        corrected(flat, average(flat)).wait()
        flat.add_(1.0)
        assert flat.host.tolist() == [2.0] * 1207
        # low-rank, whose second message is finished in a callback
        low_rank = LowRank(names, average)
        low_rank.load_state_dict({"matrix": StreamTensor(torch.randn(30, 4))})
        residual = StreamTensor(torch.zeros(1207))
        for _ in range(3):
            flat = StreamTensor(torch.randn(1207))
            flat.mul_(1.0)
            low_rank.begin_step()
            future = corrected(flat, low_rank.reduce(Bucket(0, True, list(names), flat), residual))
            low_rank.end_step()
            future.wait()
            flat.mul_(2.0)
            residual.mul_(1.0)
        del low_rank
        # the first step after a restart, whose buckets are held back
        layout = BucketLayout(names)
        layout.load_state_dict([["vector", "matrix"]])
        flat = StreamTensor(torch.ones(1207))
        bucket = Bucket(0, True, list(names), flat)
        layout.reduce(bucket, lambda each: corrected(each.flat, average(each.flat))).wait()
        flat.mul_(2.0)
        assert flat.host.tolist() == [1.0] * 1207
        gc.collect()
    dist.destroy_process_group()
    return problems


@needs_fake_device
def test_streams_are_joined() -> None:
    assert run(on_streams, 1) == [[]]
