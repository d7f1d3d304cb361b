"""All-reduces of sparse tensors: the sum of dense ones, the same bits on all ranks, in order with other ops."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.processes import run

SIZE = 3
SHAPES = {  # the whole shape, and how many of its dimensions are sparse
    "vector": ((40,), 1),
    "embedding": ((30, 5), 1),
    "matrix": ((7, 9), 2),
    "hybrid": ((4, 5, 2, 3), 2),
    "one place": ((1,), 1),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int16)


def drawn(rank: int, shape: tuple[int, ...], sparse_dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A tensor of this rank's, uncoalesced, with another number of rows on each rank and none on one of them."""
    draw = torch.Generator().manual_seed(100 * seed + rank)
    count = 0 if rank == seed % (SIZE + 1) else 3 + 11 * rank
    indices = torch.stack([torch.randint(length, (count,), generator=draw) for length in shape[:sparse_dim]])
    values = 10 * torch.randn(count, *shape[sparse_dim:], generator=draw, dtype=torch.float64)
    return torch.sparse_coo_tensor(indices, values.to(dtype), shape, check_invariants=False)


def summed(rank: int, size: int, store: Any) -> list[bytes]:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    results, seed = [], 0
    for shape, sparse_dim in SHAPES.values():
        for dtype in DTYPES:
            seed += 1
            tensor = drawn(rank, shape, sparse_dim, dtype, seed)
            wide = {torch.bfloat16: torch.float64, torch.float32: torch.float64}.get(dtype, dtype)
            others = [drawn(other, shape, sparse_dim, dtype, seed).coalesce().to_dense() for other in range(size)]
            wanted = torch.stack([each.to(wide) for each in others]).sum(0).to(dtype)
            work = dist.all_reduce(tensor, async_op=bool(seed % 2))
            dist.all_reduce(torch.ones(3))  # in order with the one before, which may still be under way
            if work is not None:
                assert work.get_future().wait()[0] is tensor
            assert tensor.is_coalesced()
            assert tensor.dtype == dtype
            torch.testing.assert_close(tensor.to_dense(), wanted)
            parts = (part.contiguous().view(-1).view(torch.uint8) for part in (tensor.indices(), tensor.values()))
            results.append(bytes(torch.cat([*parts]).tolist()))
    dist.destroy_process_group()
    return results


@pytest.mark.parametrize("executor", ["narrowgauge", "gloo"])
def test_as_the_sum_of_dense_tensors_and_alike_on_all_ranks(executor: str) -> None:
    first, *others = run(summed, SIZE, environment={"NARROWGAUGE_BACKEND": executor})
    assert all(other == first for other in others)


def refused(rank: int, size: int, store: Any) -> list[str]:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    said = []
    for tensor, op in (
        (torch.ones(2, 3 + (rank == 1)).to_sparse(), dist.ReduceOp.SUM),
        (torch.ones(2).to_sparse(), dist.ReduceOp.AVG),
    ):
        with pytest.raises(ValueError, match="sparse") as caught:
            dist.all_reduce(tensor, op)
        said.append(str(caught.value))
    tensor = torch.ones(2).to_sparse()
    dist.all_reduce(tensor)  # the group is whole
    assert tensor.to_dense().tolist() == [float(size)] * 2
    with torch.profiler.profile(record_shapes=True), torch.inference_mode():
        dist.all_reduce(torch.ones(2).to_sparse())
    dist.destroy_process_group()
    return said


def test_what_does_not_fit_is_refused_on_all_ranks() -> None:
    results = run(refused, 2)
    ours, theirs = (
        "float32 with 2 sparse dimensions, of shape (2, 3)",
        "float32 with 2 sparse dimensions, of shape (2, 4)",
    )
    assert results[0][0] == (
        f"all_reduce of a sparse tensor: rank 1 has {theirs}; rank 0 has {ours}; wanted the same on all ranks"
    )
    assert f"rank 0 has {ours}; rank 1 has {theirs}" in results[1][0]
    assert {said[1] for said in results} == {"all_reduce of a sparse tensor: got the reduction avg; wanted sum"}
